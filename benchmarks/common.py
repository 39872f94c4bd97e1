"""What the scripts share: the machine in words, calls of the command line, and the arguments for scoring unseen images."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def machine(threads: int) -> dict[str, Any]:
    """The machine that numbers were measured on."""
    processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, "torch": torch.__version__}


def call(words: list[str]) -> None:
    """Run a verb of the command line in a process of its own."""
    subprocess.run([sys.executable, "-m", "cryofire", *words], check=True)


def unseen_parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of a script that scores a run on images it has not seen."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("run", type=Path)
    result.add_argument("particles", type=Path)
    result.add_argument("--truth", type=Path, required=True)
    result.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    result.add_argument("--json", type=Path, help="write the results there")
    return result
