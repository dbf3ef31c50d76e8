"""Which instances together prove that no acknowledged commit is missing. Pure.

With synchronous replication a commit is acknowledged once any `standbys` of `members` have it on
disk. Whoever sees enough of the members sees at least one of those, whichever they were:
R + W > N, here visible + standbys > members. The most advanced of the visible ones then has every
acknowledged commit.

Each configuration that may be in force at the primary stands in the Lease before postgres loads it,
and goes from there only when another one is in force. A promotion has to satisfy all that stand
there, so that no crash in the middle of a change leaves a gap.
Source: PostgreSQL, "Synchronous Replication", quorum-based; Patroni's quorum.py has the same rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_ANY = re.compile(r'ANY ([0-9]+) \(("[^"]+"(?:, ?"[^"]+")*)\)', re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Quorum:
    """What `primary` waits for before it acknowledges: any `standbys` of `members` (pods).

    With 0 standbys nothing is promised, and nothing has to be proven.
    """

    standbys: int
    members: tuple[str, ...] = ()
    primary: str = ""

    def setting(self) -> str:
        """Value of `synchronous_standby_names`; empty where nothing is promised."""
        if self.standbys == 0 or not self.members:
            return ""
        names = ", ".join(f'"{pod}"' for pod in self.members)
        return f"ANY {self.standbys} ({names})"

    def unproven(self, visible: Collection[str]) -> str | None:
        """Why the instances that can be seen prove nothing; None where they do."""
        if self.standbys == 0 or not self.members or self.primary in visible:
            return None
        seen = [pod for pod in self.members if pod in visible]
        needed = len(self.members) - self.standbys + 1
        if len(seen) >= needed:
            return None
        return (
            f"a commit may be known to {self.standbys} of {', '.join(self.members)} alone: at least"
            f" {needed} of them must be seen, and {len(seen)} are"
        )


def of_setting(value: str, *, primary: str) -> Quorum:
    """Read `synchronous_standby_names` as we write it; anything else promises nothing."""
    found = _ANY.fullmatch(value.strip())
    if found is None:
        return Quorum(0)
    return Quorum(int(found[1]), tuple(re.findall(r'"([^"]+)"', found[2])), primary)


def wanted(standbys: int, *, primary: str, instances: Iterable[str]) -> Quorum:
    """The quorum of a primary: any `standbys` of all other instances, or as many as there are."""
    members = tuple(sorted(set(instances) - {primary}, key=lambda pod: (len(pod), pod)))
    number = min(standbys, len(members))
    return Quorum(number, members, primary) if number else Quorum(0)


def dump(quorums: Iterable[Quorum]) -> str:
    """As the Lease's annotation has it."""
    return json.dumps(
        [
            {"primary": each.primary, "standbys": each.standbys, "members": list(each.members)}
            for each in quorums
        ]
    )


def parse(text: str | None) -> tuple[Quorum, ...] | None:
    """Read the annotation: () where there is none, None where it makes no sense."""
    if not text:
        return ()
    try:
        return tuple(
            Quorum(
                int(each["standbys"]),
                tuple(str(pod) for pod in each["members"]),
                str(each["primary"]),
            )
            for each in json.loads(text)
        )
    except (ValueError, KeyError, TypeError):
        return None


def unproven(quorums: tuple[Quorum, ...] | None, visible: Collection[str]) -> str | None:
    """Why the visible instances do not prove that nothing is missing; None where they do."""
    if quorums is None:
        return "the Lease does not say readably which instances acknowledge commits"
    return next((reason for each in quorums if (reason := each.unproven(visible))), None)


def promises(quorums: tuple[Quorum, ...] | None) -> bool:
    """Whether acknowledged commits are known to others than the primary."""
    return quorums is None or any(each.standbys > 0 and each.members for each in quorums)
