"""The cost that `cryofire check` expects against the runs that were recorded."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from cryofire.data.cost import CostModel, estimated_cost

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def recorded(box: int, particles: int) -> list[dict[str, float]]:
    """Runs of the default molecule and settings, however many there are."""
    rows = json.loads((RESULTS / "quality.json").read_text())["rows"]
    rows += json.loads((RESULTS / "robustness.json").read_text())["rows"]
    names = {"default", "box128"}
    alike = [row for row in rows if (row["particles"], row.get("box", 64)) == (particles, box) and row["set"] in names]
    grown = json.loads((RESULTS / "growth.json").read_text())["rows"]
    return alike or [
        {**row, "cpu_s": sum(row["cpu_s"].values())}
        for row in grown
        if (row["particles"], row["box"]) == (particles, box)
    ]


SIZES = [(1000, 64), (2_000, 64), (10_000, 32), (10_000, 64), (20_000, 64), (40_000, 64), (20_000, 128)]


@pytest.mark.parametrize(("particles", "box"), [*SIZES, (100_000, 64)])
def test_expected_time_is_within_thirty_percent_of_what_was_recorded(particles: int, box: int) -> None:
    measured = mean(row["cpu_s"] for row in recorded(box, particles))
    assert estimated_cost(particles, box).seconds * CostModel().cores_in_use == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize(("particles", "box"), SIZES)
def test_expected_memory_is_within_thirty_percent_of_what_was_recorded(particles: int, box: int) -> None:
    """Pages of a mapped cache, which the system takes back when it needs them, count in a larger set: they are not expected."""
    measured = mean(row["peak_memory_gb"] for row in recorded(box, particles))
    assert estimated_cost(particles, box).memory_bytes / 1e9 == pytest.approx(measured, rel=0.3)
