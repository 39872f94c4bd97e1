"""The decoder of the published recipe: real densities, sections of its own volume, gradients, learning."""

from __future__ import annotations

import pytest
import torch

from cryofire.geometry.fourier import volume_spectrum
from cryofire.geometry.grids import half_plane
from cryofire.geometry.rotations import random_rotations
from cryofire.volumes.slice_field import FieldShape, SliceField, canonical_sign


def small_field(box: int, seed: int = 0) -> SliceField:
    generator = torch.Generator().manual_seed(seed)
    return SliceField(FieldShape(box, 2, hidden=16, layers=2, features=8), 3.0, generator)


@pytest.mark.parametrize("box", [12, 13])
def test_spectra_are_those_of_real_densities(box: int) -> None:
    field, generator = small_field(box), torch.Generator().manual_seed(1)
    latents = torch.randn(3, 2, generator=generator)
    points = 4 * torch.randn(3, 50, 3, generator=generator)
    points[:, :10, 0] = 0  # ties on the plane that divides the halves, then on its dividing line
    points[:, :5, 1] = 0
    torch.testing.assert_close(field.spectrum(-points, latents), field.spectrum(points, latents).conj(), rtol=0, atol=0)
    assert torch.equal(canonical_sign(-points), -canonical_sign(points))


@pytest.mark.parametrize("box", [12, 13])
def test_sections_are_central_sections_of_the_volume(box: int) -> None:
    field, latent = small_field(box), torch.tensor([0.3, -1.0])
    plane = half_plane(box)
    volume = field.volume(latent)
    assert volume.shape == (box, box, box)
    assert float(volume.mean().abs()) < 1e-6 * float(volume.abs().max())
    spectrum = volume_spectrum(volume)
    turns = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, -1.0], [0, 1, 0], [1, 0, 0]]])
    sections = field(turns, latent.expand(2, -1), plane).detach()
    middle = box // 2
    expected = torch.stack([plane.gather(spectrum[middle]), _section(spectrum, turns[1], plane.frequencies, middle)])
    torch.testing.assert_close(sections, expected, rtol=1e-4, atol=1e-4)


def _section(spectrum: torch.Tensor, rotation: torch.Tensor, frequencies: torch.Tensor, middle: int) -> torch.Tensor:
    flat = torch.cat([frequencies, torch.zeros_like(frequencies[:, :1])], dim=1).float()
    x, y, z = (flat @ rotation).round().long().unbind(1)  # rows of kᵀR are Rᵀk
    return spectrum[z + middle, y + middle, x + middle]


def test_turning_the_image_by_half_a_turn_conjugates_its_section() -> None:
    field, plane = small_field(13), half_plane(13)
    generator = torch.Generator().manual_seed(2)
    rotations, latents = random_rotations(4, generator), torch.randn(4, 2, generator=generator)
    turned = torch.diag(torch.tensor([-1.0, -1.0, 1.0])) @ rotations
    torch.testing.assert_close(field(turned, latents, plane), field(rotations, latents, plane).conj())


def test_gradients_in_pose_conformation_and_weights() -> None:
    field, plane = small_field(8).double(), half_plane(8, 2)
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    latents = torch.randn(2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = field.coordinates.weight

    def sections(rotations: torch.Tensor, conformations: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(field(rotations, conformations, plane))

    assert torch.autograd.gradcheck(sections, (vectors, latents, weight))


def test_the_same_seed_gives_the_same_field() -> None:
    first, second, other = small_field(12), small_field(12), small_field(12, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.positions, other.positions)


def test_a_density_is_learnt_from_its_sections(blobs) -> None:
    plane, generator = half_plane(32, 5), torch.Generator().manual_seed(4)
    field = SliceField(FieldShape(32, 1, hidden=64, layers=2, features=48), 5.0, generator)
    optimiser = torch.optim.Adam(field.parameters(), 3e-3)
    power = []
    for _ in range(150):
        rotations = random_rotations(16, generator)
        wanted = blobs.sections(rotations, plane).to(torch.complex64)
        error = (field(rotations, torch.zeros(16, 1), plane) - wanted).abs().square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        power.append(float(error.detach() / wanted.abs().square().mean()))
    assert power[0] > 0.5
    assert sum(power[-10:]) / 10 < 0.02
