"""What a reconstruction will take, from a simple stated model; every constant of it is here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cryofire.data.findings import Cost


@dataclass(frozen=True)
class CostModel:
    """Constants of the model, measured on two CPU cores.

    With P particles, images cropped to a box of at most `largest_box`, and K = π/2 · (box/2)² Fourier coefficients
    in half a disc:

        seconds = fixed_seconds + search_seconds · (box/64)² + seconds_per_coefficient · P · K
        memory  = fixed_bytes + maps · 8 · (2 · box)³ + images_in_memory · 8 · K
        disk    = 4 · P · K + maps · 4 · box³

    Attributes
    ----------
    fixed_seconds, search_seconds, seconds_per_coefficient : float
        Start-up and report; the search on a subset at box 64; everything that visits all particles.
    fixed_bytes : int
        Program and libraries.
    maps : int
        Volumes in memory at once, padded to twice the box, and volumes written.
    images_in_memory : int
        Images a step holds.
    largest_box : int
        Larger images are cropped in Fourier space to this box.
    """

    fixed_seconds: float = 30.0
    search_seconds: float = 90.0
    seconds_per_coefficient: float = 1.3e-5
    fixed_bytes: int = 900_000_000
    maps: int = 20
    images_in_memory: int = 8192
    largest_box: int = 128


def estimated_cost(particles: int, box: int, model: CostModel | None = None) -> Cost:
    """Return the expected cost of a reconstruction; see `CostModel` for the equations.

    Parameters
    ----------
    particles : int
        Particles in the table.
    box : int
        Side of the images, px.
    model : CostModel, optional
        Constants; by default those measured.
    """
    model = model or CostModel()
    box = min(box, model.largest_box)
    coefficients = math.pi / 2 * (box / 2) ** 2
    return Cost(
        seconds=model.fixed_seconds
        + model.search_seconds * (box / 64) ** 2
        + model.seconds_per_coefficient * particles * coefficients,
        memory_bytes=int(
            model.fixed_bytes
            + model.maps * 8 * (2 * box) ** 3
            + min(particles, model.images_in_memory) * 8 * coefficients
        ),
        disk_bytes=int(4 * particles * coefficients + model.maps * 4 * box**3),
    )
