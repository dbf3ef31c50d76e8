"""Which faults there are, and a random sequence of them by a seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["primary", "standby", "pooler", "none"]
GROUPS = ("process", "pod", "pooler", "control", "node")

# How many of the faults come while another is still on.
OVERLAP = 0.25
# A fault that is over at once may still be answered by the next within this time.
OVERLAP_WITHIN_S = 4.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    `keeps_primary`: the primary is well and can be seen to be, so that nobody may take over.
    `keeps_data`: with asynchronous replication nothing that was acknowledged may be lost even if
    another instance takes over, because the change is a planned one.
    `needs_api`: it is done by the API server, or undone.
    """

    name: str
    group: str
    role: Role
    weight: float = 1.0
    lasts_s: tuple[float, float] = (0.0, 0.0)
    keeps_primary: bool = False
    keeps_data: bool = False
    needs_api: bool = False

    @property
    def title(self) -> str:
        """Name and role, as the report has it."""
        return self.name if self.role in ("none", "pooler") else f"{self.name} {self.role}"

    @property
    def takes_api_away(self) -> bool:
        """Whether nothing can be asked of the API server meanwhile."""
        return self.name.startswith("api-")


def _both(
    name: str,
    group: str,
    *,
    weight: float = 1.0,
    lasts_s: tuple[float, float] = (0.0, 0.0),
    keeps_data: bool = False,
    needs_api: bool = False,
) -> Iterator[Kind]:
    """A fault of the primary, and, half as often, the same of a standby."""
    yield Kind(name, group, "primary", weight, lasts_s, keeps_data=keeps_data, needs_api=needs_api)
    yield Kind(name, group, "standby", weight / 2, lasts_s, keeps_primary=True, needs_api=needs_api)


CATALOGUE: tuple[Kind, ...] = (
    *_both("postmaster-kill", "process", weight=2),
    *_both("container-kill", "process", weight=2),
    *_both("agent-kill", "process", weight=2),
    *_both("postmaster-stop", "process", lasts_s=(1, 15)),
    *_both("agent-stop", "process", lasts_s=(1, 15)),
    Kind("backend-kill", "process", "primary", keeps_primary=True),
    Kind("repmgrd-kill", "process", "primary", keeps_primary=True),
    Kind("repmgrd-kill", "process", "standby", keeps_primary=True),
    *_both("pod-delete", "pod", weight=2, keeps_data=True, needs_api=True),
    *_both("pod-delete-force", "pod", weight=2, needs_api=True),
    Kind("pooler-kill", "pooler", "pooler", keeps_primary=True),
    Kind("pooler-agent-kill", "pooler", "pooler", keeps_primary=True),
    Kind("api-stop", "control", "none", lasts_s=(5, 40)),
    Kind("api-freeze", "control", "none", lasts_s=(5, 40)),
    Kind("operator-away", "control", "none", 1, (5, 40), keeps_primary=True, needs_api=True),
    Kind("dns-gone", "control", "none", 1, (5, 40), keeps_primary=True, needs_api=True),
    Kind("load", "control", "none", 1, (5, 20), keeps_primary=True),
    *_both("node-off", "node", weight=1.5, lasts_s=(5, 40)),
    *_both("node-cut", "node", weight=1.5, lasts_s=(2, 40)),
    *_both("node-cut-in", "node", lasts_s=(2, 40)),
    *_both("node-cut-out", "node", lasts_s=(2, 40)),
    *_both("node-freeze", "node", weight=1.5, lasts_s=(2, 30)),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the sequence. `pick` chooses among those that play the role."""

    number: int
    kind: Kind
    starts_s: float  # since the step began
    lasts_s: float
    pick: float

    @property
    def ends_s(self) -> float:
        """When it is undone, since the step began."""
        return self.starts_s + self.lasts_s


@dataclass(frozen=True, slots=True)
class Step:
    """Faults after which the cluster is left alone until it has settled."""

    faults: tuple[Fault, ...]
    pause_s: float  # from settled to the first fault

    @property
    def label(self) -> str:
        """Its kinds, for the report."""
        return " + ".join(fault.kind.title for fault in self.faults)

    @property
    def keeps_primary(self) -> bool:
        """Whether nobody may take over."""
        return all(fault.kind.keeps_primary for fault in self.faults)

    @property
    def keeps_data(self) -> bool:
        """Whether a change of primary may lose nothing, with asynchronous replication."""
        return all(fault.kind.keeps_data or fault.kind.keeps_primary for fault in self.faults)


def plan(
    seed: int, faults: int, groups: Sequence[str] = GROUPS, without: Sequence[str] = ()
) -> Iterator[Step]:
    """`faults` faults of these groups, some of them overlapping; the same for the same seed.

    `without` names kinds to leave out, such as those whose defect is known.
    """
    chance = random.Random(seed)  # noqa: S311 # no secret: the same sequence again is the aim
    kinds = [kind for kind in CATALOGUE if kind.group in groups and kind.name not in without]
    number = 0
    while number < faults:
        number += 1
        drawn = [_fault(chance, number, kinds, starts_s=0.0)]
        while number < faults and chance.random() < OVERLAP:
            last = drawn[-1]
            starts_s = last.starts_s + chance.uniform(0, last.lasts_s or OVERLAP_WITHIN_S)
            fits = [kind for kind in kinds if all(_fit(kind, f.kind) for f in drawn)]
            if not fits:
                break
            number += 1
            drawn.append(_fault(chance, number, fits, starts_s=starts_s))
        yield Step(tuple(drawn), pause_s=round(chance.uniform(0, 3), 3))


def _fault(chance: random.Random, number: int, kinds: Sequence[Kind], *, starts_s: float) -> Fault:
    kind = chance.choices(kinds, [kind.weight for kind in kinds])[0]
    return Fault(
        number=number,
        kind=kind,
        starts_s=round(starts_s, 3),
        lasts_s=round(chance.uniform(*kind.lasts_s), 3),
        pick=chance.random(),
    )


def _fit(kind: Kind, other: Kind) -> bool:
    """Whether two kinds may overlap: not twice the same, nor one that the other prevents."""
    if kind.takes_api_away or other.takes_api_away:
        return not (
            kind.needs_api or other.needs_api or (kind.takes_api_away and other.takes_api_away)
        )
    return kind.name != other.name
