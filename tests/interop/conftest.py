"""RELION's programs on a part of the reference set."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cryofire.formats.mrc import open_stack, stack_writer

COUNT = 600


@pytest.fixture(scope="session")
def relion() -> Callable[..., None]:
    """Run a program of RELION in a folder; tests that need it are skipped where it is not installed."""

    def run(folder: Path, program: str, *arguments: str) -> None:
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, timeout=300)

    for program in ("relion_reconstruct", "relion_project"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian package relion)")
    return run


@pytest.fixture(scope="session")
def truth_star(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first particles of the reference set with their true poses, as float32: RELION 3.1 reads no float16."""
    folder = tmp_path_factory.mktemp("reference")
    source = open_stack(shared_data / "reference_set" / "particles.mrcs")
    with stack_writer(folder / "particles.mrcs", 64, 7.54) as writer:
        writer.append(source.frames(np.arange(COUNT)))
    lines = (shared_data / "reference_set" / "truth.star").read_text().splitlines()
    kept = [line for line in lines if not (found := re.match(r"(\d+)@", line)) or int(found[1]) <= COUNT]
    path = folder / "truth.star"
    path.write_text("\n".join(kept) + "\n")
    return path
