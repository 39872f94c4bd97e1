"""A small simulated set and one finished run of it, shared by the tests of runs and of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryofire.cli.main import main

QUICK = [
    "search.steps=24", "search.images=700", "search.rotations=3000", "search.least_images=150", "search.held_out=100",
    "search.most_starts=2", "refine.passes=7", "subspace.components=1", "subspace.most_components=1",
    "refine.images=700", "amortise.steps=50", "amortise.batch=64", "amortise.real=32", "field.steps=10",
]  # fmt: skip


def quick_arguments() -> list[str]:
    return [word for assignment in QUICK for word in ("--set", assignment)]


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "set"
    words = [
        "simulate",
        "--particles",
        "900",
        "--box",
        "40",
        "--pixel-size",
        "12.06",
        "--snr",
        "0.3",
        "-o",
        str(folder),
    ]
    assert main([*words, "--weights", "0.7", "0.3", "--angles", "0", "20"]) == 0
    return folder


@pytest.fixture(scope="session")
def finished_run(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["reconstruct", str(small_set / "particles.star"), "-o", str(folder), *quick_arguments()]) == 0
    return folder
