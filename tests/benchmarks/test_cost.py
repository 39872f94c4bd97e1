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
    names = {f"ref{seed}" for seed in range(5)} | {"box128", "smoke"}
    alike = [row for row in rows if (row["particles"], row.get("box", 64)) == (particles, box) and row["set"] in names]
    grown = json.loads((RESULTS / "growth.json").read_text())["rows"]
    return alike or [
        {**row, "cpu_s": sum(row["cpu_s"].values())}
        for row in grown
        if (row["particles"], row["box"]) == (particles, box)
    ]


@pytest.mark.parametrize(("particles", "box"), [(2_000, 64), (10_000, 64), (20_000, 64), (40_000, 64), (20_000, 128)])
def test_expected_cost_is_within_thirty_percent_of_what_was_recorded(particles: int, box: int) -> None:
    rows = recorded(box, particles)
    assert rows, "no such run was recorded"
    expected = estimated_cost(particles, box)
    assert expected.seconds * CostModel().cores_in_use == pytest.approx(mean(row["cpu_s"] for row in rows), rel=0.3)
    assert expected.memory_bytes / 1e9 == pytest.approx(mean(row["peak_memory_gb"] for row in rows), rel=0.3)
