"""Where images are compared with maps: on a graphics processor that is there and has the memory, else on the CPU.

States, maps and decisions stay on the CPU. What an image costs, its coefficients against sections of the maps and its share of a
back-projection, is worked out where its coefficients are; `CUDA_VISIBLE_DEVICES` says which graphics processors may be used.
"""

from __future__ import annotations

from functools import lru_cache

import torch

CPU = torch.device("cpu")
SHARE = 0.8
"""Part of the free memory of a graphics processor that grids may fill."""
WORKING_MEMORY = 4 << 30
"""What a batch of images needs beside them, bytes."""


def device_with(memory: int) -> torch.device:
    """A device that holds so many bytes of grids and has room for a batch of images."""
    if not _works():
        return CPU
    free, _ = torch.cuda.mem_get_info()
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.device("cuda") if memory + WORKING_MEMORY < SHARE * free else CPU


def accelerator_name() -> str | None:
    """Name of the graphics processor that may be used."""
    return torch.cuda.get_device_name() if _works() else None


@lru_cache(maxsize=1)
def _works() -> bool:
    """Whether there is a graphics processor that this build of torch has code for."""
    try:
        return torch.cuda.is_available() and float(torch.ones(1, device="cuda").sum()) == 1.0
    except RuntimeError:
        return False
