"""What the tables of the documentation are made of: recorded results, columns of scores, and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_RUN = "not run"

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The folder of recorded results, and the bounds they are held against."""

    folder: Path
    bounds: dict[str, dict[str, dict[str, float]]]

    def rows(self, name: str) -> list[Row]:
        """Rows of a file; none where it was not run."""
        return list(self.content(name).get("rows", []))

    def row(self, name: str, of_set: str) -> Row | None:
        """The row of one set."""
        return next((row for row in self.rows(name) if row["set"] == of_set), None)

    def machine(self, name: str) -> str:
        """Where a file was measured."""
        found = self.content(name).get("machine")
        return f"{processors(found)} ({found['processor']}), torch {found['torch']}" if found else NOT_RUN

    def content(self, name: str) -> dict[str, Any]:
        """What a file holds; nothing where there is none."""
        path = self.folder / f"{name}.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def processors(machine: dict[str, Any]) -> str:
    """What did the work: threads on a machine's cores, and its graphics processor."""
    cores, threads = machine["cores"], machine["threads"]
    used = f"{cores} CPU cores" if threads >= cores else f"{threads} of {cores} CPU cores"
    return f"{machine['gpu']}, {used}" if "gpu" in machine else used


def measured_on(row: Row) -> str:
    """What did the work of a row, and whether other work shared it."""
    return processors(row["machine"]) + (" (shared)" if row["machine_shared"] else "")


@dataclass(frozen=True)
class Score:
    """A column: the name in the JSON, what it is called, and how it is written."""

    key: str
    title: str
    form: str = "{:.3g}"
    unit: str = ""

    def text(self, row: Row | None) -> str:
        """The value in a row, "not run" without a row, a dash where it means nothing."""
        if row is None:
            return NOT_RUN
        value = row.get(self.key)
        if isinstance(value, list):
            return ", ".join(self.form.format(one) + self.unit for one in value)
        return "–" if value is None else self.form.format(value) + self.unit


VIEWING = Score("viewing_median_deg", "viewing direction, median", "{:.3f}", "°")
VIEWING_MEAN = Score("viewing_mean_deg", "viewing direction, mean", "{:.3f}", "°")
SHIFT = Score("shift_squared_median_px", "squared shift, median (px²)", "{:.4f}")
CONFUSION = Score("confusion_unsupervised", "confusion, unsupervised", "{:.2g}")
RATIO = Score("resolution_ratio_to_oracle", "resolution over oracle, worst state", "{:.2f}")
WALL = Score("wall_s", "wall time (s)", "{:.0f}")
PROCESSOR = Score("cpu_s", "CPU seconds", "{:.0f}")
MEMORY = Score("peak_memory_gb", "peak memory (GB)", "{:.2f}")
OWN_FRAME = Score("viewing_own_frame_median_deg", "median in each state's own frame", "{:.3f}", "°")
VIEWING_ORACLE = Score("oracle_viewing_median_deg", "oracle, median", "{:.3f}", "°")
SHIFT_ORACLE = Score("oracle_shift_squared_median_px", "oracle (px²)", "{:.4f}")
OWN_STATES = Score("confusion_states", "confusion, the run's states", "{:.2g}")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
