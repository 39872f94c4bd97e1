"""Measuring a new set of images before anything is inferred from it: noise, contrast, amplitude and offset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Image
from cryofire.data.measure import contrast_of, measure_images
from cryofire.errors import ImageError
from cryofire.geometry.fourier import volume_spectrum
from cryofire.geometry.grids import radius_map, shell_map
from cryofire.inference.centring import SHELL, CentringModel, learn_centring
from cryofire.inference.new_images import Amplitude, NewImages, Sampling, Whitening, without_background
from cryofire.inference.prepare import WorkingGrid, evenly_chosen, ring
from cryofire.physics.ctf import contrast_transfer

SAMPLE = 2048
CONTRAST_SAMPLE = 500
FEW = 30
ENOUGH_TO_CENTRE = 200
"""Images that say by themselves how their particles look on average."""
PRIOR_COEFFICIENTS = 200.0
"""The spectrum of the training set counts as this many coefficients a shell: it steadies the estimate from a few images."""
SAME_GAIN = 1.2
"""Amplitudes that differ by less than this factor are taken to be the same."""


@dataclass(frozen=True)
class Reference:
    """How the images were that a model was learnt from: what new ones are brought to.

    Attributes
    ----------
    grid : WorkingGrid
    noise : Float[Tensor, "shell"]
        Standard deviation of the noise of coefficients, as measured around the particles.
    correction : Float[Tensor, "shell"]
        What the residuals of the final model showed the noise to be, relative to `noise`.
    is_white : bool
        Particles were white in the stacks.
    centring : CentringModel
        How they look on average, and how far off centre they are.
    """

    grid: WorkingGrid
    noise: Float[Tensor, " shell"]
    correction: Float[Tensor, " shell"]
    is_white: bool
    centring: CentringModel


def spectral_power(maps: Float[Tensor, "coordinate z y x"], variance: Float[Tensor, " component"]) -> Tensor:
    """Expected |section|² in every shell for random views: the spherical mean of |V_0|² + Σ_j var(z_j) |V_j|², shape (shell,)."""
    box = maps.shape[-1]
    weights = torch.cat([torch.ones(1), variance.to(maps)])
    power = sum(weight * volume_spectrum(volume).abs().square() for weight, volume in zip(weights, maps, strict=True))
    limit, shells = (box - 1) // 2, shell_map(box, 3).flatten()
    keep = shells <= limit
    total = torch.zeros(limit + 1).index_add_(0, shells[keep], torch.as_tensor(power).flatten()[keep].float())
    return total / torch.bincount(shells[keep], minlength=limit + 1)


def particle_radius(mean: Float[Tensor, "z y x"]) -> float:
    """Radius in voxels of the sphere about the origin that holds 95 % of the squared density of a map."""
    box = mean.shape[-1]
    radius = radius_map(box, 3).flatten()
    order = radius.argsort()
    share = mean.flatten()[order].double().square().cumsum(0)
    if float(share[-1]) <= 0:
        return 0.36 * box
    return float(radius[order][torch.searchsorted(share, 0.95 * share[-1]).clamp_max(len(order) - 1)])


def measure_set(
    images: NewImages, rows: np.ndarray, reference: Reference, power: Float[Tensor, " shell"]
) -> tuple[Whitening, tuple[str, ...]]:
    """What is known of some rows of a table as a whole, and what a user should hear of it.

    The amplitude follows from the signal's power beyond the noise in the lower shells, compared with what the model expects
    of random views; stacks normalised in another way are recognised so.

    Parameters
    ----------
    images : NewImages
    rows : Int[np.ndarray, "row"]
        Rows whose images exist.
    reference : Reference
        Of the model.
    power : Float[Tensor, "shell"]
        From `spectral_power`.

    Raises
    ------
    ImageError
        No image is usable, or some cannot be brought to the grid.
    """
    sample = evenly_chosen(rows, SAMPLE)
    sums = _Sums.of(images, sample)
    if sums.count == 0:
        raise ImageError(
            "every image is constant or not finite", file=images.table.path, hint="check how the stack was written"
        )
    noise = _steadied(sums, reference, images.plane.max_shell) * reference.correction[: images.plane.max_shell + 1]
    is_white, notes = _is_white(images, sample, reference.is_white)
    gain = _gain(sums, noise, reference, power)
    if gain != 1:
        notes.append(f"the images have {gain:.2g} times the amplitude of those the model was learnt from: rescaled")
    amplitude = Amplitude(noise, -1.0 if is_white else 1.0, gain)
    return Whitening(amplitude, _centring(images, sample, amplitude, reference)), tuple(notes)


@dataclass
class _Sums:
    """Sums over a sample: ring noise, power and squared transfer in every shell."""

    noise: Tensor
    power: Tensor
    transfer: Tensor
    sizes: Tensor
    count: int = 0

    @staticmethod
    def of(images: NewImages, sample: np.ndarray) -> _Sums:
        plane = images.plane
        noise, power, total = torch.zeros(3, plane.max_shell + 1)
        sums = _Sums(noise, power, total, plane.shell_sizes().float())
        ctf = contrast_transfer(images.table.optics, np.full(len(images.table), images.grid.field_of_view))
        for piece, pixels, sampling in images.raw(sample):
            held = torch.arange(plane.max_shell + 1) <= sampling.reach
            transfer = ctf.take(torch.from_numpy(piece)).evaluate(plane.frequencies)
            values = sampling.coefficients(without_background(pixels))
            sums.noise += held * _ring_power(pixels, sampling)
            sums.power += held * plane.shell_mean(values.abs().square()).sum(0)
            sums.transfer += held * plane.shell_mean(transfer.square()).sum(0)
            sums.count += len(piece)
        return sums


def _ring_power(images: Image, sampling: Sampling) -> Tensor:
    """Noise power in every shell, summed over images, from the ring of each (Welch's estimate with that window)."""
    window = ring(images.shape[-1]).window
    values = sampling.coefficients(without_background(images) * window)
    return sampling.plane.shell_mean(values.abs().square().sum(0)) / window.square().mean()


def _steadied(sums: _Sums, reference: Reference, max_shell: int) -> Tensor:
    """Standard deviation of the ring noise; shells with few coefficients lean on the spectrum of the training set."""
    prior = reference.noise[: max_shell + 1].square()
    measured = sums.noise / sums.count
    seen = measured > 0
    ratio = ((sums.sizes * measured)[seen].sum() / (sums.sizes * prior)[seen].sum()) if bool(seen.any()) else 1.0
    number = sums.count * sums.sizes * seen
    variance = (number * measured + PRIOR_COEFFICIENTS * ratio * prior) / (number + PRIOR_COEFFICIENTS)
    variance[0] = variance[1]
    return variance.clamp_min(1e-30).sqrt()


def _is_white(images: NewImages, sample: np.ndarray, of_model: bool) -> tuple[bool, list[str]]:
    rows = evenly_chosen(sample, CONTRAST_SAMPLE)
    values = []
    for piece, pixels, _ in images.raw(rows):
        optics, pixel_size = images.table.optics.take(piece), images.table.pixel_size[piece]
        values.append(measure_images(pixels.numpy(), optics, pixel_size).contrast)
    contrast = contrast_of(np.concatenate(values) if values else np.zeros(0))
    if contrast.verdict not in ("white", "dark"):
        return of_model, []
    is_white = contrast.verdict == "white"
    if is_white == of_model:
        return is_white, []
    return is_white, [f"particles are {contrast.verdict}, unlike those the model was learnt from: turned over"]


def _gain(sums: _Sums, noise: Tensor, reference: Reference, power: Tensor) -> float:
    """Amplitude of the images relative to those of the training set; 1 where it is about the same."""
    last = min(round(14 * reference.grid.box / 64), len(noise) - 1)
    band = slice(2, max(last, 3) + 1)
    expected = (sums.transfer / sums.count)[band] * power[: len(noise)][band]
    found = (sums.power / sums.count - noise.square())[band]
    weight = sums.sizes[band] / noise.square()[band] ** 2
    square = float((weight * found * expected).sum() / (weight * expected.square()).sum().clamp_min(1e-30))
    allowed = SAME_GAIN
    if sums.count < FEW or not square > 0:
        ratio = (noise / (reference.noise * reference.correction)[: len(noise)])[band]
        square, allowed = float(ratio.square().mean()), 2.0
    gain = math.sqrt(max(square, 1e-12))
    return 1.0 if 1 / allowed < gain < allowed else gain


def _centring(images: NewImages, sample: np.ndarray, amplitude: Amplitude, reference: Reference) -> CentringModel:
    """Learnt from the images where there are enough of them, else that of the training set at their strength of signal."""
    if len(sample) >= ENOUGH_TO_CENTRE:
        return learn_centring(batch for _, batch, _ in images.whitened(sample, amplitude))
    seen = slice(1, SHELL + 1)
    ratio = (reference.noise[seen] / amplitude.noise[seen]).square().mean().sqrt()
    return reference.centring.scaled(amplitude.gain * float(ratio))
