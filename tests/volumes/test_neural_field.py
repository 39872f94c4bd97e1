"""The neural field: symmetry, real maps, filters and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cryofire.config import FieldSettings
from cryofire.geometry.fourier import (
    half_grid_shells,
    half_volume_spectrum,
    shells_scaled,
    volume_spectrum,
)
from cryofire.volumes.neural_field import (
    NeuralField,
    expected_amplitude,
    lattice_sizes,
)

SETTINGS = FieldSettings(coarsest=4, features=3, hidden=16)


def random_field(box: int, seed: int = 0, count: int = 2) -> NeuralField:
    shells = torch.arange((box - 1) // 2 + 1)
    amplitude = torch.stack([(j + 1) * torch.exp(-0.3 * shells) for j in range(count)])
    field = NeuralField(SETTINGS, box, amplitude, torch.Generator().manual_seed(seed))
    return field.requires_grad_(False)


@pytest.mark.parametrize("box", [16, 17])
def test_spectrum_is_hermitian(box: int) -> None:
    spectrum = random_field(box).spectrum()
    plane = spectrum[..., 0]
    assert torch.allclose(plane, plane.flip(-1, -2).conj(), atol=1e-6 * float(spectrum.abs().max()))
    assert float(plane[:, plane.shape[-1] // 2, plane.shape[-1] // 2].imag.abs().max()) < 1e-6


@pytest.mark.parametrize("box", [16, 17])
def test_maps_are_real_and_agree_with_the_spectrum(box: int) -> None:
    field = random_field(box)
    maps, reach = field.maps(), field.max_shell
    assert maps.dtype == torch.float32
    assert maps.shape == (2, box, box, box)
    middle = slice(box // 2 - reach, box // 2 + reach + 1)
    whole = volume_spectrum(maps)[:, middle, middle, box // 2 : box // 2 + reach + 1]
    assert torch.allclose(field.spectrum(), whole, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("box", [16, 17])
def test_nothing_outside_the_support(box: int) -> None:
    field = random_field(box)
    outside = field.support == 0
    assert outside.any()
    assert float(field.maps()[:, outside].abs().max()) == 0
    assert len(field.index) == int((~outside).sum())


@pytest.mark.parametrize("box", [16, 17])
def test_answers_of_whitened_maps_give_the_maps_back(box: int) -> None:
    """A compact density survives whitening, cutting at the support and colouring."""
    field = random_field(box)
    x = torch.arange(box) - box // 2
    square = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).float()
    density = shells_scaled(torch.exp(-square / 3).expand(2, -1, -1, -1), torch.ones(2, field.max_shell + 1))
    again = field.support * field.filtered(field.whitened(density))
    assert float((again - density * field.support).norm() / density.norm()) < 0.02


@pytest.mark.parametrize("box", [16, 17])
def test_voxels_complete_the_network(box: int) -> None:
    field = random_field(box)
    wanted = torch.randn(2, box, box, box, generator=torch.Generator().manual_seed(2))
    field.complete(wanted)
    assert torch.allclose(field.maps(), field.support * wanted, atol=1e-5)
    assert float(field.voxels[:, field.support == 0].abs().max()) == 0


def test_amplitude_gives_the_prior_power() -> None:
    """White answers of variance 1 have spectra of power 1 / P in every shell."""
    precision = torch.exp(torch.linspace(0, 4, 16)).expand(2, -1)
    settings, box = FieldSettings(coarsest=4, features=2, hidden=8), 32
    field = NeuralField(settings, box, expected_amplitude(precision, settings, box), torch.Generator().manual_seed(0))
    shells = half_grid_shells(field.max_shell)
    generator = torch.Generator().manual_seed(1)
    white = torch.zeros(2, box**3)
    white[:, field.index] = torch.randn(2, len(field.index), generator=generator)
    spectrum = half_volume_spectrum(white.unflatten(1, (box,) * 3), box, field.max_shell)
    spectrum = spectrum * field.amplitude[:, shells.clamp_max(15)]
    for shell in (5, 10, 15):
        power = spectrum[:, shells == shell].abs().square().mean(1) * precision[:, shell]
        assert torch.allclose(power, torch.ones(2), atol=0.25)


def test_small_box_is_the_same_density() -> None:
    field = random_field(16)
    small, large = field.maps(12), field.maps()
    assert small.shape == (2, 12, 12, 12)
    low = volume_spectrum(large)[:, 4:13, 4:13, 4:13]
    assert torch.allclose(
        volume_spectrum(small)[:, 2:11, 2:11, 2:11] * (16 / 12) ** 3, low, atol=1e-3 * float(low.abs().max())
    )


def test_lattices_end_at_the_box() -> None:
    assert lattice_sizes(64, 8) == [8, 16, 32, 64]
    assert lattice_sizes(50, 8) == [8, 16, 32, 50]
    assert lattice_sizes(5, 8) == [5]


def test_same_seed_same_field() -> None:
    first, second, third = random_field(16), random_field(16), random_field(16, seed=1)
    assert torch.equal(first.maps(), second.maps())
    assert not torch.equal(first.maps(), third.maps())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    field = random_field(16).requires_grad_(True)

    def answers_and_gradient() -> tuple[Tensor, Tensor]:
        field.zero_grad()
        maps = field.maps()
        maps.square().sum().backward()
        gradient = field.lattices[-1].grad
        assert gradient is not None
        return maps.detach(), gradient.clone()

    whole = answers_and_gradient()
    monkeypatch.setattr("cryofire.volumes.neural_field.CHUNK", 100)
    for one, other in zip(whole, answers_and_gradient(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6 * float(one.abs().max()))


def test_saved_field_gives_identical_maps(tmp_path: Path) -> None:
    field = random_field(16)
    save_file(field.state_dict(), tmp_path / "field.safetensors")
    again = NeuralField(field.settings, field.box, torch.ones_like(field.amplitude), torch.Generator().manual_seed(9))
    again.load_state_dict(load_file(tmp_path / "field.safetensors"))
    assert torch.equal(again.maps(), field.maps())
