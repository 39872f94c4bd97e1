"""What a reconstruction will take, from a simple stated model; every constant of it is here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cryofire.data.findings import Cost


@dataclass(frozen=True)
class CostModel:
    """Constants of the model, fitted to the runs on two CPU cores that ``docs/benchmarks.md`` shows.

    With P particles, S = min(P, `subset`) of them in the subset the latent space is opened on, images cropped to a box
    of n ≤ `largest_box` pixels, and K = π/2 · (n/2)² Fourier coefficients in half a disc:

        processor seconds = fixed + per_image · P + (per_voxel · P + subspace · S + field) · n³
        seconds = processor seconds / cores_in_use
        memory  = fixed_bytes + maps · 8 · (2n)³ + S · 8 · K
        disk    = 4 · P · K + written_maps · 4 · n³

    Passes over all images march to higher resolution with n, and each of them takes n²: hence n³.

    Attributes
    ----------
    fixed : float
        Search on a subset, teaching the encoder, start-up and report, s.
    per_image : float
        Exhaustive assignment at low resolution, and one look of the encoder, s.
    per_voxel : float
        Preparation, consensus, latents, frames, polish and maps of states, s.
    subspace, field : float
        Opening the latent space, and fitting the neural field to sums of images, s.
    cores_in_use : float
        Processor seconds in a second.
    fixed_bytes : int
        Program and libraries.
    maps : int
        Volumes in memory at once, padded to twice the box.
    written_maps : int
        Volumes written.
    subset : int
        Images that the latent space is opened on.
    largest_box : int
        Larger images are cropped in Fourier space to this box.
    """

    fixed: float = 44.0
    per_image: float = 4.0e-3
    per_voxel: float = 5.3e-9
    subspace: float = 2.0e-8
    field: float = 1.2e-4
    cores_in_use: float = 1.9
    fixed_bytes: int = 940_000_000
    maps: int = 23
    written_maps: int = 20
    subset: int = 6000
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
    subset = min(particles, model.subset)
    processor_seconds = (
        model.fixed
        + model.per_image * particles
        + (model.per_voxel * particles + model.subspace * subset + model.field) * box**3
    )
    return Cost(
        seconds=processor_seconds / model.cores_in_use,
        memory_bytes=int(model.fixed_bytes + model.maps * 8 * (2 * box) ** 3 + subset * 8 * coefficients),
        disk_bytes=int(4 * particles * coefficients + model.written_maps * 4 * box**3),
    )
