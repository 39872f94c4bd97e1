"""The decoder as an encoder sees it: its sections at quasi-uniform viewing directions, as polar images.

A cell is a viewing direction d and an in-plane angle α; its rotation is Rz(α) R_d, and its section the polar image of
R_d shifted by α. Around every cell the image model is linear in θ = (rotation tangent, shift, contrast, latent), in
the frame of the cell:

    Y C ≈ C² (S_d + Σ_j θ_j G_j),   G = (∂S/∂w, ∂S/∂t, S, V_1, V_2, …),

so that inner products with the G_j and the Gram matrices of the G_j say all that an image says of θ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.arrays import Rotations, Shifts
from cryofire.geometry.rotations import rotation_from_vector
from cryofire.inference.polar import PolarGrid
from cryofire.inference.polish import CONTRAST
from cryofire.physics.projection import SpectrumGrid, central_sections, spectrum_grid

STEP = 0.02
"""Half the turn, in radians, over which sections are differenced."""


@dataclass(frozen=True)
class ViewGrid:
    """Quasi-uniform viewing directions with a rotation for each.

    Attributes
    ----------
    directions : Float[Tensor, "direction 3"]
    frames : Float[Tensor, "direction 3 3"]
        Rotations R_d whose third row is the direction.
    """

    directions: Float[Tensor, "direction 3"]
    frames: Rotations

    def __len__(self) -> int:
        return self.directions.shape[0]

    def on(self, device: torch.device) -> ViewGrid:
        """The same on a device."""
        return ViewGrid(self.directions.to(device), self.frames.to(device))

    def nearest(self, rotations: Rotations, turns: int) -> tuple[Int[Tensor, " particle"], Int[Tensor, " particle"]]:
        """Cell of each rotation: direction, and in-plane angle as a multiple of 2π / `turns`."""
        direction = (rotations[:, 2] @ self.directions.T).argmax(1)
        relative = rotations @ self.frames[direction].transpose(1, 2)
        angle = torch.atan2(relative[:, 1, 0] - relative[:, 0, 1], relative[:, 0, 0] + relative[:, 1, 1])
        return direction, (angle / (2 * math.pi) * turns).round().long() % turns

    def rotations(self, direction: Int[Tensor, " particle"], turn: Int[Tensor, " particle"], turns: int) -> Rotations:
        """Rotations of cells."""
        return in_plane_rotations(turn * (2 * math.pi / turns)) @ self.frames[direction]


def view_grid(count: int) -> ViewGrid:
    """`count` viewing directions on a Fibonacci spiral."""
    index = torch.arange(count).double() + 0.5
    height = 1 - 2 * index / count
    longitude = index * math.pi * (3 - math.sqrt(5.0))
    radius = (1 - height.square()).sqrt()
    z = torch.stack([radius * longitude.cos(), radius * longitude.sin(), height], dim=-1).float()
    pole = torch.where(z[:, 2:].abs() < 0.9, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]))
    x = torch.nn.functional.normalize(torch.linalg.cross(pole, z), dim=1)
    return ViewGrid(z, torch.stack([x, torch.linalg.cross(z, x), z], dim=1))


def in_plane_rotations(angles: Float[Tensor, " particle"]) -> Rotations:
    """Rotations of images by angles in radians, about the viewing axis."""
    zero = torch.zeros_like(angles)
    return rotation_from_vector(torch.stack([zero, zero, angles], dim=-1))


@dataclass(frozen=True)
class CoarseBank:
    """Sections of the mean map for all in-plane angles at once, by correlation along the angle.

    Correlations of a polar image with a section are products of angular harmonics; all of it, the way back from harmonics to angles
    included, is matrix products.

    Attributes
    ----------
    views : ViewGrid
    bands : tuple of int
        Upper shells of the bands, the first from shell 1, in which correlations are kept apart.
    spectra : Float[Tensor, "part pair column"]
        For the real and imaginary part of each harmonic of the product: what multiplies the real and imaginary parts of the image's
        harmonics at every radius, for every (band, direction).
    synthesis : Float[Tensor, "turn part"]
        From those parts to in-plane angles.
    energy : Float[Tensor, "radius column"]
        Σ|S|² of each radius, zero outside the band of the column.
    """

    views: ViewGrid
    bands: tuple[int, ...]
    spectra: Float[Tensor, "part pair column"]
    synthesis: Float[Tensor, "turn part"]
    energy: Float[Tensor, "radius column"]

    def on(self, device: torch.device) -> CoarseBank:
        """The same on a device."""
        spectra, synthesis, energy = (one.to(device) for one in (self.spectra, self.synthesis, self.energy))
        return CoarseBank(self.views.on(device), self.bands, spectra, synthesis, energy)

    def log_likelihoods(
        self, images: Float[Tensor, "particle radius angle"], power: Float[Tensor, "particle radius"]
    ) -> Float[Tensor, "turn particle column"]:
        """2 ⟨Y C, S⟩ - Σ C² |S|² of every cell; columns are (band, direction), `power` is C² averaged over each shell."""
        harmonics = torch.fft.rfft(images, dim=-1)
        pairs = torch.cat([harmonics.real, harmonics.imag], dim=1).permute(2, 0, 1).contiguous()
        products = torch.bmm(pairs.repeat_interleave(2, 0), self.spectra)
        table = (self.synthesis @ products.flatten(1)).unflatten(1, products.shape[1:])
        return table.sub_(power @ self.energy)


@dataclass(frozen=True)
class FineBank:
    """Sections and their derivatives in θ.

    Attributes
    ----------
    views : ViewGrid
    templates : Float[Tensor, "direction parameter radius angle"]
        The G_j, times the weight of each polar point.
    gram : Float[Tensor, "direction radius parameter parameter"]
        Weighted ⟨G_j, G_l⟩ of each radius.
    """

    views: ViewGrid
    templates: Float[Tensor, "direction parameter radius angle"]
    gram: Float[Tensor, "direction radius parameter parameter"]

    def on(self, device: torch.device) -> FineBank:
        """The same on a device."""
        return FineBank(self.views.on(device), self.templates.to(device), self.gram.to(device))

    def normal_equations(
        self,
        images: Float[Tensor, "particle radius angle"],
        power: Float[Tensor, "particle radius"],
        direction: Int[Tensor, " particle"],
        turn: Int[Tensor, " particle"],
        bands: tuple[int, ...],
    ) -> tuple[Float[Tensor, "particle band parameter parameter"], Float[Tensor, "particle band parameter"]]:
        """2 Re JᴴJ and 2 Re Jᴴ(Y C), J being C G, over shells 1 … band for every band, in the frame of each image's cell."""
        angles = images.shape[-1]
        index = (torch.arange(angles, device=turn.device) + turn[:, None]) % angles
        turned = images.gather(2, index[:, None].expand_as(images))
        products = torch.einsum("njra,nra->njr", self.templates[direction], turned)
        last = torch.tensor(bands, device=turn.device) - 1
        gram = (self.gram[direction] * power[:, :, None, None]).cumsum(1)[:, last]
        return 2 * gram, 2 * products.cumsum(2)[:, :, last].transpose(1, 2)


def coarse_bank(grid: SpectrumGrid, polar: PolarGrid, count: int, turns: int, bands: tuple[int, ...]) -> CoarseBank:
    """Bank of the first map of `grid` at `count` viewing directions and `turns` in-plane angles."""
    views = view_grid(count)
    sections = polar.transform(central_sections(grid, views.frames, polar.plane)[:, 0])
    weighted = sections * polar.weights()[:, None]
    harmonics = torch.fft.rfft(weighted, dim=-1).permute(2, 1, 0)
    separate = torch.cat([harmonics * inside for inside in _band_masks(polar.radii, bands)], dim=2)
    real, imaginary = separate.real, separate.imag
    parts = torch.stack([torch.cat([real, imaginary], dim=1), torch.cat([-imaginary, real], dim=1)], dim=1)
    energy = (weighted * sections).sum(-1).T
    columns = torch.cat([energy * inside for inside in _band_masks(polar.radii, bands)], dim=1)
    return CoarseBank(views, bands, parts.flatten(0, 1).contiguous(), 2 * _synthesis(polar.angles, turns), columns)


def _band_masks(radii: int, bands: tuple[int, ...]) -> list[Float[Tensor, "radius 1"]]:
    shell = torch.arange(1, radii + 1)[:, None]
    return [((shell > low) & (shell <= high)).float() for low, high in zip((0, *bands), bands, strict=False)]


def _synthesis(angles: int, turns: int) -> Float[Tensor, "turn part"]:
    """Inverse transform of `angles` points from half the harmonics' real and imaginary parts, at `turns` of the points."""
    order = torch.arange(angles // 2 + 1)
    phase = 2 * math.pi / turns * torch.arange(turns)[:, None] * order
    mates = torch.where((order == 0) | (2 * order == angles), 1.0, 2.0) / angles
    return torch.stack([mates * phase.cos(), -mates * phase.sin()], dim=-1).flatten(1)


def fine_bank(grid: SpectrumGrid, polar: PolarGrid, count: int) -> FineBank:
    """Bank of all maps of `grid` (the mean, then the components) at `count` viewing directions."""
    views = view_grid(count)
    sections = central_sections(grid, views.frames, polar.plane)
    frequencies = polar.plane.frequencies
    moved = [sections[:, 0] * (-2j * math.pi / polar.plane.box * frequencies[:, axis]) for axis in range(2)]
    columns = [*_turned(grid, views, polar), *moved, *sections.unbind(1)]
    values = torch.stack([polar.transform(column) for column in columns], dim=1)
    rooted = (values * polar.weights().sqrt()[:, None]).transpose(1, 2)
    return FineBank(views, values * polar.weights()[:, None], rooted @ rooted.transpose(2, 3))


def _turned(grid: SpectrumGrid, views: ViewGrid, polar: PolarGrid) -> list[Tensor]:
    """Derivatives of the mean's sections in the tangent of the rotation."""
    result = []
    for axis in torch.eye(3).unbind():
        there, back = (
            central_sections(grid, rotation_from_vector(sign * STEP * axis) @ views.frames, polar.plane)[:, 0]
            for sign in (1, -1)
        )
        result.append((there - back) / (2 * STEP))
    return result


def bank_grid(maps: Float[Tensor, "coordinate z y x"], polar: PolarGrid) -> SpectrumGrid:
    """Spectrum from which the banks of some maps are cut."""
    return spectrum_grid(maps, polar.radii)


def residual_descent(
    system: Float[Tensor, "particle band parameter parameter"], products: Float[Tensor, "particle band parameter"]
) -> Float[Tensor, "particle band parameter"]:
    """Descent direction 2 Re Jᴴ(Y - C S) at the cell itself, where the contrast is 1 and everything else 0."""
    return products - system[..., CONTRAST]


def turned_shifts(shifts_px: Shifts, angles: Float[Tensor, " particle"]) -> Shifts:
    """Shifts turned with the image."""
    return (in_plane_rotations(angles)[:, :2, :2] @ shifts_px[..., None])[..., 0]
