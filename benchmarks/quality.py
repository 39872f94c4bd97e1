"""Score the default reconstruction on simulated sets, against the truth and against the oracle, with the cost of each stage.

The oracle (oracle.py) knows the true poses, classes and maps.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from common import call, costs_of, machine, write_rows
from cryofire.analysis.evaluate import aligned
from cryofire.analysis.run_files import read_estimates
from cryofire.analysis.run_record import read_run
from cryofire.analysis.truth import Truth, read_truth
from cryofire.analysis.verdicts import HAND, judge_run
from cryofire.config import Settings
from cryofire.data.estimates import ParticleEstimates
from cryofire.settings_by_name import settings_from_dict
from cryofire.training.run_folder import RunFolder
from oracle import MOST_MAPS, oracle_scores

HERE = Path(__file__).resolve().parent

_FAB = ["--molecule", "{antibody}", "--move", "L", "H:1-220", "--pixel-size", "3.8"]
SETS: dict[str, list[str]] = {
    "default": [],
    "minus14db": ["--snr", "0.0398"],
    "minus20db": ["--snr", "0.01"],
    "uncentred": ["--shift-std", "35"],
    "preferred": ["--views", "preferred"],
    "white": ["--contrast", "white"],
    "empty": ["--empty", "0.3"],
    "contaminated": ["--contaminated", "0.02"],
    "homogeneous": ["--weights", "1", "--angles", "0"],
    "box128": ["--box", "128", "--pixel-size", "3.77"],
    "four_motions": ["--angles", "-10", "0", "10", "20", "--weights", "0.1", "0.4", "0.3", "0.2"],
    "four_states": ["--angles", "0", "10", "20", "--omit", "S*", "--weights", "0.4", "0.3", "0.2", "0.1"],
    "real_views": ["--views-from", "{views}", "--defocus-from", "{views}", "--contrast-std", "0.2"],
    "ice_noise": ["--noise", "{noise}", "--noise-pixel-size", "1.6375"],
    "igg": [*_FAB, "--angles", "0", "40", "--weights", "0.7", "0.3"],
    "igg_continuum": [*_FAB, "--continuum", "0", "90", "100"],
}
"""What `cryofire simulate` is told of each set; names in braces are files that are given with ``--material``."""
MATERIAL = {
    "antibody": "atoms of PDB entry 1HZH",
    "views": "poses and contrast transfer of EMPIAR-10076 (.npz with arrays rot and ctf)",
    "noise": "its noise variance per shell, 256 px of 1.6375 Å (.npy)",
}


def main() -> int:
    """Run what was asked for; the exit status says whether every score is inside its bounds."""
    arguments = parser().parse_args()
    if arguments.list:
        print("\n".join(SETS))
        return 0
    if arguments.score is not None:
        rows = [{**made_before(run), "machine_shared": arguments.shared} for run in arguments.score]
        return report(rows, arguments.expect, arguments.json)
    name = arguments.only or ("custom" if arguments.simulate else "default")
    words = [*with_material(SETS.get(name, []), dict(arguments.material)), *arguments.simulate]
    seeds = [0] if arguments.short else arguments.seeds
    particles = 4000 if arguments.short else arguments.particles
    rows = [{**measured(name, words, seed, particles), "machine_shared": arguments.shared} for seed in seeds]
    return report(rows, arguments.expect or ("smoke" if arguments.short else name), arguments.json)


def parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds of set and run")
    result.add_argument("--particles", type=int, default=10_000, help="particles in each set")
    result.add_argument("--short", action="store_true", help="one seed, 4 000 particles")
    result.add_argument("--only", choices=sorted(SETS), help="which set (default: default)")
    result.add_argument("--list", action="store_true", help="name the sets")
    files = "; ".join(f"{name}: {what}" for name, what in MATERIAL.items())
    result.add_argument(
        "--material",
        nargs="+",
        type=named_file,
        default=[],
        metavar="NAME=FILE",
        help=f"what some sets are made from. {files}",
    )
    result.add_argument("--score", type=Path, nargs="+", metavar="RUN", help="score finished runs instead")
    result.add_argument("--shared", action="store_true", help="note that other programs ran beside the runs")
    result.add_argument("--expect", help="name of the bounds in bounds.json")
    result.add_argument("--json", type=Path, help="write the rows there, beside those of other sets that it holds")
    result.add_argument(
        "simulate", nargs="*", metavar="WORD", help="after --: further arguments of cryofire simulate, for other sets"
    )
    return result


def named_file(text: str) -> tuple[str, str]:
    """Name and file of a ``NAME=FILE``."""
    name, _, file = text.partition("=")
    if name not in MATERIAL or not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"{text}: give {', '.join(MATERIAL)} and a file that is there, as NAME=FILE")
    return name, file


def with_material(words: list[str], files: dict[str, str]) -> list[str]:
    """Words for `cryofire simulate` with files in the place of their names in braces."""
    try:
        return [word.format(**files) for word in words]
    except KeyError as error:
        name = str(error.args[0])
        raise SystemExit(f"this set needs --material {name}=FILE ({MATERIAL[name]})") from error


def measured(name: str, words: list[str], seed: int, particles: int) -> dict[str, Any]:
    """Simulate a set, reconstruct it in a process of its own, and score it."""
    folder = Path(tempfile.mkdtemp(prefix=f"cryofire-{name}-"))
    try:
        call(["simulate", "--particles", str(particles), "--seed", str(seed), "-o", str(folder / "set"), *words])
        start = time.perf_counter()
        call(["reconstruct", str(folder / "set" / "particles.star"), "-o", str(folder / "run"), "--seed", str(seed)])
        wall = time.perf_counter() - start
        return {"set": name, "seed": seed, "particles": particles, **scored(folder / "run", wall)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def made_before(run: Path) -> dict[str, Any]:
    """Score a run that was made before; it is named after the folder of its set."""
    folder = RunFolder(run)
    inputs, settings = folder.read_json("inputs.json"), folder.read_json("settings.json")
    changed = settings_from_dict({name: value for name, value in settings.items() if name != "version"})
    name = Path(inputs["table"]).parent.name
    is_default = replace(changed, seed=0) == Settings()
    row = {"set": name, "seed": changed.seed, "particles": inputs["particles"], "default_settings": is_default}
    return {**row, **scored(run, None)}


def scored(run: Path, wall: float | None) -> dict[str, Any]:
    """Scores of a finished run whose set lies in the folder it was read from."""
    folder = RunFolder(run)
    table_path = Path(folder.read_json("inputs.json")["table"])
    truth = table_path.parent / "truth.star"
    scores, made = run / "evaluation.json", run / "results.json"
    if not scores.exists() or scores.stat().st_mtime < made.stat().st_mtime:
        call(["evaluate", str(run), "--truth", str(truth)])
    evaluation = json.loads(scores.read_text(encoding="utf-8"))
    stages = [asdict(cost) for cost in costs_of(run)]
    poses, states = evaluation["poses"], evaluation["states"] or {}
    oracle = oracle_scores(run, truth)
    best_possible = oracle["oracle_resolution_at_half"]
    found: dict[str, float] = {}
    for one in evaluation["maps"]:
        if one["kind"] == "map" and one["resolution_half"] is not None:
            found[one["truth"]] = min(one["resolution_half"], found.get(one["truth"], math.inf))
    ratios = [found[name] / best for name, best in best_possible.items() if name in found]
    return {
        "empty": evaluation["empty"],
        "empty_used": evaluation["empty_used"],
        "contaminated": evaluation["contaminated"],
        "contaminated_used": evaluation["contaminated_used"],
        "viewing_median_deg": poses["direction_median_deg"],
        "viewing_mean_deg": poses["direction_mean_deg"],
        "rotation_median_deg": poses["rotation_median_deg"],
        "rotation_mean_deg": poses["rotation_mean_deg"],
        "shift_squared_median_px": poses["shift_median_px2"],
        "rotations_inside_90_region": poses["rotation_coverage"][1],
        **described(run, table_path.parent),
        "confusion_unsupervised": states.get("confusion_mixture"),
        "confusion_states": states.get("confusion_states"),
        "coordinate_correlation": states.get("coordinate_correlation"),
        "resolution_at_half": found,
        **oracle,
        "resolution_ratio_to_oracle": max(ratios) if ratios else None,
        "wall_s": wall if wall is not None else sum(stage["wall_s"] for stage in stages),
        "cpu_s": sum(stage["cpu_s"] for stage in stages),
        "peak_memory_gb": max(stage["peak_memory_bytes"] for stage in stages) / 1e9,
        "stages": stages,
    }


def described(run: Path, folder: Path) -> dict[str, Any]:
    """What the run says of itself, and what its set holds."""
    record = read_run(run)
    estimates = read_estimates(record)
    verdicts = judge_run(record, estimates)
    known = read_truth(folder / "truth.star")
    states = true_states(known)
    simulation = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["settings"]
    return {
        "heterogeneity": record.heterogeneity,
        "components": record.components,
        "unexplained": record.unexplained,
        "states_found": len(record.states),
        "states_true": None if states is None else len(states),
        "viewing_own_frame_median_deg": own_frames(estimates, known, states),
        "doubts": [f"{one.level}: {one.topic}" for one in verdicts if one.level != "good" and one != HAND],
        "box": simulation["box"],
        "pixel_size": simulation["pixel_size"],
        "snr": simulation["snr"],
    }


def true_states(known: Truth) -> Int[np.ndarray, " state"] | None:
    """States that images with a particle are in, as the truth numbers them."""
    return None if known.labels is None else np.unique(known.labels[~known.is_empty])


def own_frames(
    estimates: ParticleEstimates, known: Truth, states: Int[np.ndarray, " state"] | None
) -> list[float] | None:
    """Median error of viewing directions in each true state, degrees, after aligning the frame of each on its own.

    A turn of the whole molecule and a conformation with its parts turned the other way are the same image, so a run is
    free to choose the frame of each state; the errors over all particles contain that difference of frames.
    """
    if states is None or len(states) > MOST_MAPS:
        return None
    found = [aligned(estimates, known, estimates.used & (known.labels == state)) for state in states]
    return [float(np.rad2deg(np.median(one.direction_error))) for one in found]


def report(rows: list[dict[str, Any]], expected: str | None, path: Path | None) -> int:
    """Print the table, write the JSON, and compare with the bounds."""
    bounds = json.loads((HERE / "bounds.json").read_text(encoding="utf-8")).get(expected or "", {})
    failures = 0
    for row in rows:
        print(f"\n{row['set']} seed {row['seed']}")
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and name not in {"seed", "particles"}:
                bound = bounds.get(name, {}).get("most")
                outside = bound is not None and value > bound
                failures += outside
                limit = f"  (at most {bound:g}){'  OUTSIDE' if outside else ''}" if bound else ""
                print(f"  {name:32s} {value:10.4g}{limit}")
    if path is not None:
        write_rows(path, machine(torch.get_num_threads()), rows, key=("set", "seed", "particles"))
    print(f"\n{failures} scores outside their bounds" if bounds else "\nno bounds were compared")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
