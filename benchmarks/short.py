"""A short benchmark: a piece of each of the long ones.

    python benchmarks/short.py [--work bench]

Every piece prints its rows and writes them to WORK/results, apart from those of the repository. A piece that is there already is
not made again. The exit status says whether a piece failed, or a score is outside its bound.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def pieces(work: Path) -> dict[str, list[str]]:
    """Commands by what they measure; each writes the results of its name."""
    return {
        "quality": ["quality.py", "--short"],
        "paper": ["paper.py", "2k-64", "--work", str(work / "paper")],
        "growth": ["growth.py", str(work / "paper" / "2k-64-0" / "default")],
        "robustness_map": ["robustness_map.py", "--seeds", "0", "--snr", "0.1"],
        "conformations": [
            *("conformations.py", "--only", "assembly", "--snr", "0.1", "--poses", "given", "--particles", "2000"),
            *("--work", str(work / "conformations")),
        ],
        "peers": ["peers.py", "relion-reduced", "--particles", "1000", "--minutes", "3", "--work", str(work / "peers")],
    }


def main() -> int:
    """Run the pieces one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("bench"), help="everything stays there (default: bench)")
    work: Path = parser.parse_args().work
    results = work / "results"
    results.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, (script, *words) in pieces(work).items():
        path = results / f"{name}.json"
        if path.exists():
            continue
        start = time.monotonic()
        status = subprocess.run([sys.executable, str(HERE / script), *words, "--json", str(path)], check=False)
        print(f"{name}: {time.monotonic() - start:.0f} s{'' if path.exists() else ', not run'}", flush=True)
        if status.returncode != 0:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "no piece failed, no score is outside its bound")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
