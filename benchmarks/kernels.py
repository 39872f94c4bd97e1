"""Processor time of the compiled kernels for a Fourier coefficient of an image, on one core.

    python benchmarks/kernels.py [--box 64 128] [--against OTHER/src/cryofire/physics/kernels.py]
        [--json benchmarks/results/kernels.json]

Random orientations, a grid of the size of a refinement's, coefficients in the order of the cache. With --against, the kernels of
another state of the code are measured in turns with ours, on the same arrays.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from common import machine, use_threads, write_rows
from cryofire.geometry.grids import HalfPlane, half_plane
from cryofire.geometry.rotations import random_rotations
from cryofire.physics import kernels
from cryofire.physics.projection import grid_reach

IMAGES = 300
"""In a call; their slices together touch most of the grid."""
TURNS = 3
LATENTS = (0, 1, 4)
"""Components of the latent space beside the mean."""


@dataclass(frozen=True)
class Work:
    """Arrays for kernels at some box, with some components beside the mean."""

    plane: HalfPlane
    grid: Tensor
    sums: Tensor
    rotations: Tensor
    shifts: Tensor
    latents: Tensor
    data: Tensor
    modulation: Tensor
    first: Tensor
    second: Tensor

    def calls(self, module: ModuleType) -> dict[str, Callable[[], Any]]:
        """The kernels of a module, ready to be called."""
        size = 6 + self.latents.shape[1]
        out = torch.empty(IMAGES, len(self.plane), self.grid.shape[-1]).numpy()
        hessian, gradient = torch.empty(IMAGES, size, size).numpy(), torch.empty(IMAGES, size).numpy()
        loss, contrast, slots = (
            torch.empty(IMAGES).numpy(),
            torch.ones(IMAGES).numpy(),
            torch.zeros(IMAGES).int().numpy(),
        )
        grid, rotations, shifts = self.grid.numpy(), self.rotations.numpy(), self.shifts.numpy()
        frequencies, data, modulation = (
            self.plane.frequencies.float().numpy(),
            self.data.numpy(),
            self.modulation.numpy(),
        )
        return {
            "sections": lambda: module.extract_slices(grid, rotations, frequencies, out),
            "back-projection": lambda: module.insert_images(
                self.sums.numpy(), 1, rotations, shifts, slots, frequencies, self.plane.box, data, modulation,
                self.first.numpy(), self.second.numpy(),
            ),
            "Gauss–Newton equations": lambda: module.normal_equations(
                grid, rotations, shifts, self.latents.numpy(), contrast, frequencies, self.plane.box, data, modulation,
                hessian, gradient, loss,
            ),
        }  # fmt: skip


def main() -> int:
    """Measure, print, write."""
    arguments = parser().parse_args()
    use_threads(1)
    modules = [kernels] if arguments.against is None else [kernels, loaded(arguments.against)]
    rows = []
    for box in arguments.box:
        for latents in LATENTS:
            work = prepared(box, latents)
            ours, *other = (work.calls(module) for module in modules)
            for name, call in ours.items():
                seconds = in_turns([call, *(calls[name] for calls in other)])
                each = [1e9 * one / (IMAGES * len(work.plane)) for one in seconds]
                row: dict[str, Any] = {
                    "kernel": name,
                    "box": box,
                    "latents": latents,
                    "machine_shared": arguments.shared,
                }
                row |= {"ns": each[0], **({"against_ns": each[1]} if other else {})}
                print(json.dumps(row, ensure_ascii=False), flush=True)
                rows.append(row)
    if arguments.json is not None:
        write_rows(arguments.json, machine(1), rows, key=("kernel", "box", "latents"))
    return 0


def parser() -> argparse.ArgumentParser:
    """Command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--box", type=int, nargs="+", default=[64, 128])
    result.add_argument("--against", type=Path, metavar="KERNELS", help="kernels.py of another state of the code")
    result.add_argument("--shared", action="store_true", help="other work shared the machine: times are upper bounds")
    result.add_argument("--json", type=Path, help="write the results there")
    return result


def loaded(path: Path) -> ModuleType:
    """A module by its file."""
    spec = importlib.util.spec_from_file_location("other_kernels", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SystemExit(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepared(box: int, latents: int) -> Work:
    """Random arrays."""
    generator = torch.Generator().manual_seed(0)
    plane, coordinates = half_plane(box), latents + 1
    pairs, reach = coordinates * (coordinates + 1) // 2, grid_reach(plane.max_shell)
    points = (2 * reach + 1, 2 * reach + 1, reach + 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Work(
        plane, normal(*points, 2 * coordinates), torch.zeros(1, *points, 2 * coordinates + pairs),
        random_rotations(IMAGES, generator), normal(IMAGES, 2), normal(IMAGES, latents),
        torch.view_as_complex(normal(IMAGES, len(plane), 2)), normal(IMAGES, len(plane)),
        normal(IMAGES, coordinates), normal(IMAGES, pairs),
    )  # fmt: skip


def in_turns(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Least processor seconds of each of some calls, made in turns after one that compiles."""
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    for _ in range(TURNS):
        for number, call in enumerate(calls):
            start = time.process_time()
            call()
            best[number] = min(best[number], time.process_time() - start)
    return best


if __name__ == "__main__":
    sys.exit(main())
