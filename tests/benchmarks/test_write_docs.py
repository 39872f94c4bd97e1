"""The page of benchmarks says what the recorded results say, and nothing that was not run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def write_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_docs", BENCHMARKS / "write_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["write_docs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_what_the_script_writes(write_docs: ModuleType) -> None:
    committed = write_docs.DOCUMENT.read_text(encoding="utf-8")
    assert committed == write_docs.document(write_docs.recorded()), "run python benchmarks/write_docs.py"


def test_without_results_every_number_is_not_run(write_docs: ModuleType, tmp_path: Path) -> None:
    bounds = json.loads((BENCHMARKS / "bounds.json").read_text())
    page = write_docs.document(write_docs.Results(tmp_path, bounds))
    lines = page.splitlines()
    rows = [
        line for line, above in zip(lines[1:], lines, strict=False) if above.startswith("| ") and line.startswith("| ")
    ]
    cells = [cell.strip() for line in rows for cell in line.strip("|").split("|")[1:]]
    assert len(cells) > 60
    expected = {cell for line in lines if " particles, box " in line for cell in line.strip("| ").split(" | ")}
    assert {cell for cell in cells if not cell.startswith("≤")} - expected <= {write_docs.NOT_RUN, "", "---"}


def test_a_result_appears_where_it_belongs(write_docs: ModuleType, tmp_path: Path) -> None:
    stage = {"name": "search", "wall_s": 4.0, "cpu_s": 7.0, "peak_memory_bytes": 2e9, "bytes_read": 3e6}
    row = {
        "set": "ref2", "seed": 0, "particles": 10000, "viewing_median_deg": 0.4321, "cpu_s": 77.0, "peak_memory_gb": 2.0,
        "confusion_unsupervised": None, "stages": [stage], "doubts": ["bad: Solution"], "heterogeneity": "discrete",
        "states_found": 3, "states_true": 2,
    }  # fmt: skip
    machine = {"cores": 2, "processor": "any", "torch": "2"}
    (tmp_path / "quality.json").write_text(json.dumps({"machine": machine, "rows": [row]}))
    (tmp_path / "robustness.json").write_text(json.dumps({"machine": machine, "rows": [{**row, "set": "ribo_m20"}]}))
    (tmp_path / "remarks.json").write_text(json.dumps({"ribo_m20": "too noisy", "white": "never shown"}))
    page = write_docs.document(write_docs.Results(tmp_path, {}))
    line = next(line for line in page.splitlines() if line.startswith("| viewing direction, median"))
    assert line == "| viewing direction, median |  | not run | not run | 0.432° | not run | not run | not run |"
    line = next(line for line in page.splitlines() if "−20 dB" in line and line.startswith("| "))
    assert line.endswith("| 77 | 3 / 2 | bad: Solution |")
    assert "- **noise at −20 dB**: too noisy" in page and "never shown" not in page
    assert "| search | 7 | 4 | 2.00 | 3.0 | not run |" in page
