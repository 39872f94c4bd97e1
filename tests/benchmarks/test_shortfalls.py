"""Where others win is told from the rows: errors against the oracle, and times of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import page
import shortfalls


def snapshots(*reached: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"elapsed_s": seconds, "viewing_median_deg": error} for seconds, error in reached]


def test_only_what_is_clearly_behind_the_oracle_is_listed() -> None:
    row = {
        "viewing_median_deg": 0.33, "oracle_viewing_median_deg": 0.31, "viewing_mean_deg": 0.9, "oracle_viewing_mean_deg": 0.3,
        "shift_squared_median_px": 0.1,
    }  # fmt: skip
    assert list(shortfalls.clearly_behind(row)) == ["viewing direction, mean: 0.900° against 0.300° (3.00)"]


@pytest.mark.parametrize(
    ("reached", "said"),
    [
        ([(10.0, 80.0), (900.0, 20.0)], []),
        ([(10.0, 80.0), (30.0, 20.0)], ["20.00° after 30 s, ours 100 s"]),
        ([(10.0, 80.0), (900.0, 0.2)], ["poses end at 0.20°, ours at 0.30°", "0.20° after 900 s, ours never"]),
        ([(10.0, 62.0), (20.0, 60.0)], []),
    ],
)
def test_a_program_wins_by_its_end_or_by_being_sooner(reached: list[tuple[float, float]], said: list[str]) -> None:
    other = {"program": "other", "settings": "default", "snapshots": snapshots(*reached)}
    ours = {"snapshots": snapshots((100.0, 1.0), (200.0, 0.3))}
    found = list(shortfalls.wins_over(other, [ours]))
    assert len(found) == len(said)
    assert all(text in line for text, line in zip(said, found, strict=True))


def test_maps_smaller_than_the_oracles_are_listed() -> None:
    assert list(shortfalls.clearly_behind({"state_area_mean": 0.36, "oracle_state_area_mean": 0.45})) == [
        "FSC area, state by state: 0.360 against 0.450 (0.80)"
    ]
    assert not list(shortfalls.clearly_behind({"state_area_mean": 0.44, "oracle_state_area_mean": 0.45}))
    assert not list(shortfalls.clearly_behind({"state_area_mean": 0.44, "oracle_state_area_mean": None}))


def test_a_remedy_stands_beside_its_set(tmp_path: Path) -> None:
    row = {"set": "igg", "viewing_median_deg": 2.0, "oracle_viewing_median_deg": 1.0}
    (tmp_path / "robustness.json").write_text(json.dumps({"rows": [row]}))
    (tmp_path / "remedies.json").write_text(json.dumps({"igg": "more images"}))
    text = shortfalls.shortfalls(page.Results(tmp_path, {}), {"igg": "antibody"})
    assert "| antibody | viewing direction, median: 2.000° against 1.000° (2.00) | more images |" in text
