"""What the suite measured: printed at its end and kept in build/e2e/report.json."""

from __future__ import annotations

import json
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build" / "e2e"


class Report:
    """Measurements by name; a name measured several times keeps every value."""

    def __init__(self) -> None:
        self._values: dict[str, list[object]] = {}
        self._units: dict[str, str] = {}

    def measured(self, name: str, value: object, unit: str = "") -> None:
        """Keep one measurement and write the file anew: a run that is cut off keeps its own."""
        if isinstance(value, float):
            value = round(value, 3)
        self._values.setdefault(name, []).append(value)
        self._units[name] = unit
        BUILD.mkdir(parents=True, exist_ok=True)
        document = {
            key: {"values": values, "unit": self._units[key]}
            for key, values in sorted(self._values.items())
        }
        (BUILD / "report.json").write_text(json.dumps(document, indent=2) + "\n")

    def lines(self) -> list[str]:
        """The table for a terminal."""
        width = max((len(name) for name in self._values), default=0)
        return [
            f"{name:<{width}}  {', '.join(str(value) for value in values)} {self._units[name]}"
            for name, values in sorted(self._values.items())
        ]
