"""What the scripts share: the machine in words, calls of the command line, runs opened from Python, and what is true of a set."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numba
import numpy as np
import torch
from jaxtyping import Int

from cryofire.analysis.run_record import read_run
from cryofire.config import Settings
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.formats.atomic import replacing
from cryofire.inference.polish import ImageStates
from cryofire.physics.devices import accelerator_name
from cryofire.settings_by_name import read_settings
from cryofire.training.checkpoint import load_checkpoint, states_from
from cryofire.training.progress import SilentProgress, StageCost, joined_costs, stage_costs
from cryofire.training.run_folder import RunFolder, open_run_folder, start_log
from cryofire.training.stages import Prepared, Run

_Cell = TypeVar("_Cell")


def machine(threads: int, gpu: bool = True) -> dict[str, Any]:
    """The machine that numbers were measured on, with a graphics processor that is there, unless programs were kept from it."""
    processor = platform.processor() or platform.machine()
    used = {"processor": processor, "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}
    return {**used, "gpu": name} if gpu and (name := accelerator_name()) else used


def use_threads(count: int) -> None:
    """Let this process work with so many threads, in torch and in compiled kernels."""
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.get_num_threads()))


def environment(threads: int | None) -> dict[str, str]:
    """Surroundings of a program that is to work with so many threads; None: with as many as it likes."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **({} if threads is None else dict.fromkeys(names, str(threads)))}


def call(words: list[str], threads: int | None = None) -> None:
    """Run a verb of the command line in a process of its own."""
    subprocess.run([sys.executable, "-m", "cryofire", *words], check=True, env=environment(threads))


def call_for(words: list[str], seconds: float, threads: int | None = None) -> None:
    """Run a verb that can be continued for some time at most; raises `subprocess.TimeoutExpired` when it was stopped."""
    subprocess.run(
        [sys.executable, "-m", "cryofire", *words], check=True, timeout=max(seconds, 1.0), env=environment(threads)
    )


def started(folder: Path, table: ParticleTable, settings: Settings) -> Run:
    """A run in a folder of its own, without progress bars; taken up where it stopped if the folder holds it."""
    return Run(
        open_run_folder(folder, table, settings), table, settings, SilentProgress(), start_log(RunFolder(folder))
    )


def finished(folder: Path) -> Run:
    """A run that was made before, with its particle table."""
    run_folder = RunFolder(folder)
    table = read_particles(Path(run_folder.read_json("inputs.json")["table"]))
    return Run(run_folder, table, read_settings(folder / "settings.json"), SilentProgress(), start_log(run_folder))


def costs_of(run: Path) -> tuple[StageCost, ...]:
    """Cost of each stage of a run, those of the runs of its species added."""
    return joined_costs([stage_costs(RunFolder(run)), *(costs_of(one.folder) for one in read_run(run).species)])


@dataclass(frozen=True)
class Truth:
    """What is true of the prepared images of a simulated set: poses (without components), and the labels of states."""

    poses: ImageStates
    labels: Int[np.ndarray, " particle"] | None


def truth_of(path: Path, prepared: Prepared) -> Truth:
    """True poses and labels from the table that `cryofire simulate` writes."""
    known, rows = read_particles(path, stacks=False), prepared.rows
    if known.poses is None:
        raise SystemExit(f"{path} holds no poses")
    poses = ImageStates(
        torch.from_numpy(known.poses.rotations[rows]).float(),
        torch.from_numpy(known.poses.shifts[rows] / prepared.grid.pixel_size).float(),
        torch.ones(len(rows)),
        torch.zeros(len(rows), 0),
    )
    return Truth(poses, None if known.labels is None else known.labels[rows])


def write_rows(path: Path, machine_used: dict[str, Any], rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    """Write rows, and where they were measured, beside those of a file of results; in place of rows whose key is the same."""
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    again = {tuple(row.get(name) for name in key) for row in rows}
    kept = [row for row in earlier if tuple(row.get(name) for name in key) not in again]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine_used, "rows": [*kept, *({**row, "machine": machine_used} for row in rows)]}
    with replacing(path) as new:
        new.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def add_piece_options(parser: argparse.ArgumentParser, name: str, minutes: str) -> None:
    """Options of a script that is run in pieces: how long a piece takes, where its sets and runs stay, where results go."""
    parser.add_argument("--minutes", type=float, default=30.0, help=minutes)
    work = Path(tempfile.gettempdir()) / f"cryofire-{name}"
    parser.add_argument("--work", type=Path, default=work, help=f"sets and runs stay there (default: {work})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    results = Path(__file__).resolve().parent / "results" / f"{name}.json"
    parser.add_argument("--json", type=Path, default=results, help="results go there, beside those that it holds")


class HasKey(Protocol):
    """A cell of a table, by what tells it from the others."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Values of the names in the key of its row."""


_Keyed = TypeVar("_Keyed", bound=HasKey)


def missing_cells(cells: Iterable[_Keyed], path: Path, names: tuple[str, ...]) -> list[_Keyed]:
    """Cells that have no row in a file of results, whose keys are the values of some names."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    there = {tuple(row.get(name) for name in names) for row in rows}
    return [cell for cell in cells if cell.key not in there]


def until_time_is_up(cells: Sequence[_Cell], minutes: float) -> Iterator[_Cell]:
    """Cells one after another; none is begun after so many minutes, and how many are left is printed."""
    end = time.monotonic() + 60 * minutes
    for number, cell in enumerate(cells):
        if time.monotonic() > end:
            print(f"{len(cells) - number} cells are left: the same command goes on")
            return
        yield cell


def posed_stages(run: Run, prepared: Prepared) -> Iterator[tuple[str, float, ImageStates]]:
    """Each stage of a finished run that left a pose of every image: its name, seconds since the start, and the states."""
    elapsed = 0.0
    for cost in stage_costs(run.folder):
        elapsed += cost.wall_s
        path = run.folder.checkpoint(cost.name)
        tensors = load_checkpoint(path).tensors if path.exists() else {}
        if len(tensors.get("rotations", ())) == len(prepared.rows):
            yield cost.name, elapsed, states_from(tensors)


def unseen_parser(description: str | None, scored: bool = True) -> argparse.ArgumentParser:
    """Arguments of a script that shows a run images it has not seen, and compares with their truth if they are scored."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("run", type=Path)
    result.add_argument("particles", type=Path)
    if scored:
        result.add_argument("--truth", type=Path, required=True)
    result.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    result.add_argument("--json", type=Path, help="write the results there")
    return result
