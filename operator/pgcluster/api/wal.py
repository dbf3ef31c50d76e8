"""WAL positions and timelines as values that compare rightly.

Source: PostgreSQL, "pg_lsn Type": an LSN is a 64-bit byte position, printed as two hexadecimal
numbers of up to eight digits with a slash between. As text "0/9" sorts after "0/10".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", re.ASCII)


@dataclass(frozen=True, order=True, slots=True)
class Lsn:
    """A byte position in the write-ahead log."""

    value: int

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Parse PostgreSQL's form, such as `16/B374D848`; ValueError for anything else."""
        found = _LSN.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"not a WAL position: {text!r}")
        return cls((int(found[1], 16) << 32) | int(found[2], 16))

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"

    def __sub__(self, other: Lsn) -> int:
        """Distance in bytes."""
        return self.value - other.value


@dataclass(frozen=True, order=True, slots=True)
class WalPoint:
    """How far an instance, or the cluster, has come: timeline first, then position."""

    timeline: int
    lsn: Lsn

    def __str__(self) -> str:
        return f"{self.lsn} on timeline {self.timeline}"
