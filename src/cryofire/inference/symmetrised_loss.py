"""The symmetrised loss of the published recipe.

Early on, an encoder that learns poses from nothing gets stuck where an image and its copy turned by 180° in the plane are taken for
each other. So both copies go through encoder and decoder, and only the one that is explained better counts:

    L(Y) = min{ d(Y), d(Y*) },      d(Y) = 1/K Σ_k |Y(k) - C(k)/σ(k) · exp(-2πi k·t(Y) / n) · S(R(Y), z(Y))(k)|².

Turning an image by 180° about its origin n // 2 maps k to -k, and as images are real that is complex conjugation of every
half-plane coefficient: encoder input and target are exactly consistent for even and odd boxes (turning the pixel array of an even
box would move its origin by one pixel). The contrast transfer is even in k and stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryofire.arrays import Coefficients, Latents, Rotations
from cryofire.geometry.grids import HalfPlane
from cryofire.inference.published_encoder import PointEstimate, PublishedEncoder, turned_half_way
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.shift import phase_ramp


class SectionDecoder(Protocol):
    """Anything that gives the section of a density of conformation z: `SliceField`, or a known density in a test."""

    def __call__(
        self, rotations: Rotations, latents: Latents, plane: HalfPlane
    ) -> Complex[Tensor, "particle coefficient"]:
        """S_i(k) = V(R_iᵀ (k_x, k_y, 0), z_i)."""


@dataclass(frozen=True)
class SymmetrisedFit:
    """How well each image is explained.

    Attributes
    ----------
    loss : Float[Tensor, "particle"]
        L, mean over coefficients; 1 when only noise is left.
    estimate : PointEstimate
        Pose and conformation of the copy that counted, as those of the image itself.
    """

    loss: Float[Tensor, " particle"]
    estimate: PointEstimate


def symmetrised_fit(
    encoder: PublishedEncoder, decoder: SectionDecoder, batch: ImageBatch, shell: int, latents: Latents | None = None
) -> SymmetrisedFit:
    """Symmetrised loss of every image, differentiable in encoder and decoder.

    Parameters
    ----------
    encoder, decoder : modules
    batch : ImageBatch
        All shells; the encoder sees all of them.
    shell : int
        Shells up to this one are compared.
    latents : Float[Tensor, "particle component"], optional
        Used instead of those of the encoder (the pose-only phase).
    """
    estimate = encoder(torch.cat([batch.data, batch.data.conj().resolve_conj()]))
    count = len(batch.data)
    if latents is not None:
        estimate = PointEstimate(estimate.rotations, estimate.shifts_px, torch.cat([latents, latents]))
    limited = batch.truncated(shell)
    misfits = misfit(decoder, both_copies(limited), estimate).unflatten(0, (2, count))
    first, second = estimate[:count], turned_half_way(estimate[count:])
    return SymmetrisedFit(misfits.amin(0), _chosen(misfits[0] <= misfits[1], first, second))


def both_copies(batch: ImageBatch) -> ImageBatch:
    """The images, then the same images turned by 180° in their plane."""
    turned = batch.data.conj().resolve_conj()
    return ImageBatch(torch.cat([batch.data, turned]), torch.cat([batch.modulation, batch.modulation]), batch.plane)


def misfit(decoder: SectionDecoder, batch: ImageBatch, estimate: PointEstimate) -> Float[Tensor, " particle"]:
    """The distance d of every image from what its pose and conformation predict: mean over the coefficients of the batch."""
    sections = decoder(estimate.rotations, estimate.latents, batch.plane)
    ramp = phase_ramp(estimate.shifts_px, batch.plane.frequencies, batch.plane.box)
    residual: Coefficients = batch.data - batch.modulation * ramp * sections
    return torch.view_as_real(residual).square().sum((1, 2)) / len(batch.plane)


def _chosen(condition: Tensor, first: PointEstimate, second: PointEstimate) -> PointEstimate:
    return PointEstimate(
        torch.where(condition[:, None, None], first.rotations, second.rotations),
        torch.where(condition[:, None], first.shifts_px, second.shifts_px),
        torch.where(condition[:, None], first.latents, second.latents),
    )
