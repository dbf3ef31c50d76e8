"""Sizes and durations as users write them, turned into bytes and seconds."""

from __future__ import annotations

import re
from decimal import Decimal

_SUFFIX = {
    "": 0,
    "Ki": 10,
    "Mi": 20,
    "Gi": 30,
    "Ti": 40,
    "Pi": 50,
    "Ei": 60,
}
_DECIMAL = {"m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(?:([KMGTPE]i)|([mkMGTPE])|[eE]([+-]?\d+))?", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


def parse_quantity(text: str) -> Decimal:
    """A Kubernetes quantity such as `16Mi`, `2G` or `500m` as a number; ValueError else."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"not a quantity: {text!r}; write for instance 16Mi or 10Gi")
    number = Decimal(found[1])
    if found[2]:
        number *= 2 ** _SUFFIX[found[2]]
    elif found[3]:
        number = number.scaleb(_DECIMAL[found[3]])
    elif found[4]:
        number = number.scaleb(int(found[4]))
    return number


def parse_bytes(text: str) -> int:
    """A Kubernetes quantity such as `16Mi` or `2G` in bytes, rounded up; ValueError else."""
    return int(parse_quantity(text).to_integral_value(rounding="ROUND_CEILING"))


def parse_seconds(text: str) -> float:
    """A duration such as `500ms`, `6s` or `2m` in seconds; ValueError else."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"not a duration: {text!r}; write for instance 500ms, 6s or 2m")
    return float(Decimal(found[1]) * _SECONDS[found[2]])
