"""Other programs on the same images: accuracy against time, scored by the same scorer.

    python benchmarks/peers.py cryofire relion cryodrgn-reduced cryofire [--particles 4000] [--minutes 30] [--gpu]
        [--work FOLDER] [--json benchmarks/results/peers.json]

Programs run one after another in the order given, so that naming one twice around another makes alternating runs. RELION is the one
on the PATH, and works with two threads or two processes; cryoDRGN is installed into an environment of its own in the work folder.
Particles are white, scaled to noise of unit variance and stored as float32, which all of them read. A program that does not end in
time is stopped, and scored by what it had written until then.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import add_piece_options, call, environment, machine, write_rows
from cryofire.analysis.alignment import align_poses
from cryofire.analysis.evaluate import mixture_labels
from cryofire.analysis.metrics import confusion
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.formats.mrc import open_stack, stack_writer
from cryofire.inference.prepare import ring
from peer_programs import PROGRAMS, Program, Snapshot

KEY = ("program", "settings", "particles", "box", "snr", "seed", "turn", "gpu")
SNR = 0.1


@dataclass(frozen=True)
class Cost:
    """Of a program and all it started."""

    wall_s: float
    cpu_s: float
    peak_memory_gb: float
    finished: bool


def main() -> int:
    """Run the programs in turn, score what they left, write a row each."""
    arguments = parser().parse_args()
    work: Path = arguments.work.resolve()  # programs run in the folder of the set
    folder = work / f"set-{arguments.particles}-{arguments.seed}"
    if not folder.exists():
        simulate(arguments.particles, arguments.seed, folder)
    surroundings = {**environment(arguments.threads), **({} if arguments.gpu else {"CUDA_VISIBLE_DEVICES": ""})}
    for place, name in enumerate(arguments.programs):
        program, turn = PROGRAMS[name], arguments.programs[:place].count(name)
        why = program.ready(work / "environments")
        if why is not None:
            print(f"{program.name}: not run, {why}")
            continue
        row: dict[str, Any] = {
            "program": program.name, "settings": program.settings, "particles": arguments.particles, "box": 64, "snr": SNR,
            "seed": arguments.seed, "turn": turn, "gpu": arguments.gpu, "machine_shared": arguments.shared,
        }  # fmt: skip
        row |= measured(program, folder, work, 60 * arguments.minutes, surroundings)
        print(json.dumps(row), flush=True)
        write_rows(arguments.json, machine(program.threads or arguments.threads, arguments.gpu), [row], key=KEY)
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("programs", nargs="+", choices=list(PROGRAMS), metavar="PROGRAM", help=", ".join(PROGRAMS))
    result.add_argument("--particles", type=int, default=4000)
    result.add_argument("--seed", type=int, default=0, help="seed of the set")
    result.add_argument("--gpu", action="store_true", help="let the programs use the graphics processor")
    add_piece_options(result, "peers", "stop a program after so long")
    return result


def simulate(particles: int, seed: int, folder: Path) -> None:
    """Make the set; the folder appears when it is complete."""
    unfinished = folder.with_suffix(".unfinished")
    call([
        "simulate", "--particles", str(particles), "--seed", str(seed), "--snr", str(SNR), "--contrast", "white",
        "--dtype", "float32", "-o", str(unfinished), "--overwrite",
    ])  # fmt: skip
    normalise(unfinished / "particles.mrcs")
    unfinished.rename(folder)


def normalise(path: Path) -> None:
    """Scale a stack such that the noise around its particles has unit variance, as RELION takes for granted."""
    stack = open_stack(path)
    frames, box = stack.frames(np.arange(len(stack))), stack.shape[-1]
    _, deviation = ring(box).mean_and_deviation(torch.from_numpy(frames))
    with stack_writer(path, box, stack.header.voxel_size[0]) as writer:
        writer.append(frames / float(deviation.mean()))


def measured(
    program: Program, folder: Path, work: Path, seconds: float, surroundings: dict[str, str]
) -> dict[str, Any]:
    """Run a program in a fresh folder and score every snapshot it left."""
    particles = folder / "particles.star"
    with tempfile.TemporaryDirectory(prefix="run-", dir=work) as text:
        out, start = Path(text), time.time()
        commands = program.commands(particles, out, work / "environments")
        cost = run_all(commands, seconds, folder, out / "log.txt", surroundings)
        known = read_particles(folder / "truth.star", stacks=False)
        snapshots = list(program.snapshots(out, read_particles(particles, stacks=False), start))
        return {**asdict(cost), "snapshots": [scored(one, known) for one in snapshots]}


def run_all(
    commands: list[list[str]], seconds: float, folder: Path, log_file: Path, surroundings: dict[str, str]
) -> Cost:
    """Run commands in a folder, one after another, for some time at most; memory is that of the largest process."""
    start, cpu, memory, is_finished = time.monotonic(), 0.0, 0.0, True
    with log_file.open("w", encoding="utf-8") as log:
        for words in commands:
            process = subprocess.Popen(
                words, cwd=folder, env=surroundings, stdout=log, stderr=log, start_new_session=True
            )
            left = max(seconds - (time.monotonic() - start), 1.0)
            alarm = threading.Timer(left, os.killpg, (process.pid, signal.SIGTERM))
            alarm.start()
            _, status, usage = os.wait4(process.pid, 0)
            alarm.cancel()
            cpu, memory = cpu + usage.ru_utime + usage.ru_stime, max(memory, usage.ru_maxrss * 1024 / 1e9)
            if status != 0 and time.monotonic() - start < seconds:
                raise SystemExit(f"{log_file.read_text(encoding='utf-8')[-2000:]}\n{words[0]} failed")
            if status != 0:
                is_finished = False
                break
    return Cost(time.monotonic() - start, cpu, memory, is_finished)


def scored(snapshot: Snapshot, known: ParticleTable) -> dict[str, Any]:
    """Errors of the poses that are there, and of two states by the latents."""
    if known.poses is None or known.labels is None:
        raise SystemExit("the truth has no poses or states")
    there = np.isfinite(snapshot.rotations).all(axis=(1, 2))
    found = align_poses(
        snapshot.rotations[there], snapshot.shifts[there], known.poses.rotations[there], known.poses.shifts[there]
    )
    direction, rotation = np.rad2deg(found.direction_error), np.rad2deg(found.rotation_error)
    wrong = None
    if snapshot.latents is not None and snapshot.latents.shape[1] > 0 and np.ptp(snapshot.latents) > 0:
        states = len(np.unique(known.labels))
        wrong = confusion(known.labels, mixture_labels(snapshot.latents, states))
    return {
        "name": snapshot.name, "elapsed_s": snapshot.elapsed_s, "particles": int(there.sum()),
        "viewing_median_deg": float(np.median(direction)), "viewing_mean_deg": float(direction.mean()),
        "rotation_median_deg": float(np.median(rotation)),
        "shift_squared_median_px": float(np.median((found.shift_error / known.pixel_size[there]) ** 2)),
        "confusion_unsupervised": wrong,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
