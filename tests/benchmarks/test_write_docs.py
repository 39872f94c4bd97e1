"""The page of benchmarks says what the recorded results say, and nothing that was not run."""

from __future__ import annotations

import json
from pathlib import Path

import page
import write_docs

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_committed_page_is_what_the_script_writes() -> None:
    committed = write_docs.DOCUMENT.read_text(encoding="utf-8")
    assert committed == write_docs.document(write_docs.recorded()), "run python benchmarks/write_docs.py"


def test_without_results_every_number_is_not_run(tmp_path: Path) -> None:
    bounds = json.loads((BENCHMARKS / "bounds.json").read_text())
    text = write_docs.document(page.Results(tmp_path, bounds))
    lines = text.splitlines()
    rows = [
        line for line, above in zip(lines[1:], lines, strict=False) if above.startswith("| ") and line.startswith("| ")
    ]
    measured = [line for line in rows if ", published |" not in line]
    cells = [cell.strip() for line in measured for cell in line.strip("|").split("|")[1:]]
    assert len(cells) > 60
    expected = {cell for line in lines if " particles, box " in line for cell in line.strip("| ").split(" | ")}
    assert {cell for cell in cells if not cell.startswith("≤")} - expected <= {page.NOT_RUN, "", "---"}


def test_a_result_appears_where_it_belongs(tmp_path: Path) -> None:
    stage = {"name": "search", "wall_s": 4.0, "cpu_s": 7.0, "peak_memory_bytes": 2e9, "bytes_read": 3e6}
    row = {
        "set": "default", "seed": 2, "particles": 10000, "viewing_median_deg": 0.4321, "cpu_s": 77.0, "peak_memory_gb": 2.0,
        "confusion_unsupervised": None, "stages": [stage], "doubts": ["bad: Solution"], "heterogeneity": "discrete",
        "states_found": 3, "states_true": 2,
    }  # fmt: skip
    machine = {"cores": 2, "threads": 2, "processor": "any", "torch": "2"}
    (tmp_path / "quality.json").write_text(json.dumps({"machine": machine, "rows": [row]}))
    (tmp_path / "robustness.json").write_text(json.dumps({"machine": machine, "rows": [{**row, "set": "minus20db"}]}))
    (tmp_path / "remarks.json").write_text(json.dumps({"minus20db": "too noisy", "white": "never shown"}))
    text = write_docs.document(page.Results(tmp_path, {}))
    line = next(line for line in text.splitlines() if line.startswith("| viewing direction, median"))
    assert line == "| viewing direction, median |  | not run | not run | 0.432° | not run | not run | not run |"
    line = next(line for line in text.splitlines() if "−20 dB" in line and line.startswith("| "))
    assert line.endswith("| 77 | 3 / 2 | bad: Solution |")
    assert "- **noise at −20 dB**: too noisy" in text and "never shown" not in text
    assert "| search | 7 | 4 | 2.00 | 3.0 | not run |" in text
