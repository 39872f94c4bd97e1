"""The contrast transfer function against its formula, physics, and another implementation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import constants
from torch_ctf import calculate_ctf_2d

from cryofire.data.particles import Optics
from cryofire.geometry.grids import half_plane
from cryofire.physics.ctf import contrast_transfer, electron_wavelength

BOX, PIXEL_SIZE = 128, 1.7


def formula(optics: Optics, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """-scale [√(1-w²) sin γ + w cos γ] exp(-B k²/4) at spatial frequencies in 1/Å, shape (particle, frequency)."""
    o = {name: value[:, None] for name, value in vars(optics).items()}
    k = np.hypot(kx, ky)
    wavelength = 12.2642597 / np.sqrt(o["voltage_kv"] * 1e3 + 0.978475598e-6 * (o["voltage_kv"] * 1e3) ** 2)
    mean, difference = (o["defocus_u"] + o["defocus_v"]) / 2, (o["defocus_u"] - o["defocus_v"]) / 2
    defocus = mean + difference * np.cos(2 * (np.arctan2(ky, kx) - o["defocus_angle"]))
    gamma = np.pi * wavelength * defocus * k**2 - np.pi / 2 * o["cs_mm"] * 1e7 * wavelength**3 * k**4 + o["phase_shift"]
    w = o["amplitude_contrast"]
    value = np.sqrt(1 - w**2) * np.sin(gamma) + w * np.cos(gamma)
    return np.asarray(-o["scale"] * value * np.exp(-o["b_factor"] * k**2 / 4))


def uniform(count: int = 1, **changes: float) -> Optics:
    """Ordinary optics without astigmatism, phase plate or decay, with the given changes."""
    values = {
        "voltage_kv": 300.0, "cs_mm": 2.7, "amplitude_contrast": 0.1, "defocus_u": 15000.0, "defocus_v": 15000.0,
        "defocus_angle": 0.0, "phase_shift": 0.0, "b_factor": 0.0, "scale": 1.0,
    }  # fmt: skip
    return Optics(**{name: np.full(count, value) for name, value in {**values, **changes}.items()})


def test_wavelength_is_that_of_relativistic_electrons() -> None:
    voltage = np.array([100.0, 200.0, 300.0])
    energy = constants.e * voltage * 1e3
    rest = constants.m_e * constants.c**2
    momentum = np.sqrt(2 * constants.m_e * energy * (1 + energy / (2 * rest)))
    np.testing.assert_allclose(electron_wavelength(voltage), constants.h / momentum * 1e10, rtol=1e-6)
    np.testing.assert_allclose(electron_wavelength(voltage), [0.037014, 0.025079, 0.019687], rtol=3e-5)


def test_every_term_follows_the_formula(optics: Optics) -> None:
    plane = half_plane(BOX)
    extent = np.linspace(150.0, 300.0, 12)
    transfer = contrast_transfer(optics, extent, torch.float64)
    value = transfer.evaluate(plane.frequencies).numpy()
    for i in range(12):
        k = plane.frequencies.numpy() / extent[i]
        np.testing.assert_allclose(value[i], formula(optics.take(np.array([i])), k[:, 0], k[:, 1])[0], atol=1e-11)


def test_single_precision_errs_less_than_promised_at_box_128() -> None:
    """A fine pixel and a strong defocus make the phase as steep as it gets within 10³ radians."""
    optics = uniform(voltage_kv=300.0, defocus_u=40000.0, defocus_v=38000.0, defocus_angle=0.7)
    extent = np.array([BOX * 1.0])
    plane = half_plane(BOX)
    k = plane.frequencies.numpy() / extent[0]
    phase = np.pi * electron_wavelength(optics.voltage_kv) * 40000.0 * np.square(k).sum(1)
    assert 500 < phase.max() < 1000
    single = contrast_transfer(optics, extent).evaluate(plane.frequencies)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), formula(optics, k[:, 0], k[:, 1]), atol=1e-4)


@pytest.mark.parametrize("box", [32, 33])
def test_it_agrees_with_torch_ctf(box: int) -> None:
    """Which makes protein bright."""
    optics = uniform(4, defocus_angle=0.4, defocus_u=17000.0, defocus_v=14500.0, amplitude_contrast=0.07)
    optics = replace(
        optics, phase_shift=np.array([0.0, 0.3, 1.2, 2.0]), voltage_kv=np.array([100.0, 200.0, 300.0, 300.0])
    )
    plane = half_plane(box)
    ours = contrast_transfer(optics, np.full(4, box * 3.0), torch.float64).evaluate(plane.frequencies)
    for i in range(4):
        theirs = calculate_ctf_2d(
            defocus=torch.tensor((optics.defocus_u[i] + optics.defocus_v[i]) / 2e4),
            astigmatism=torch.tensor((optics.defocus_u[i] - optics.defocus_v[i]) / 2e4),
            astigmatism_angle=torch.tensor(math.degrees(optics.defocus_angle[i])),
            voltage=torch.tensor(optics.voltage_kv[i]),
            spherical_aberration=torch.tensor(optics.cs_mm[i]),
            amplitude_contrast=torch.tensor(optics.amplitude_contrast[i]),
            phase_shift=torch.tensor(math.degrees(optics.phase_shift[i])),
            pixel_size=torch.tensor(3.0),
            image_shape=(box, box),
            rfft=False,
            fftshift=True,
        )
        torch.testing.assert_close(ours[i], -plane.gather(theirs.to(torch.complex128)).real, atol=2e-4, rtol=0)


def test_the_axis_of_the_stronger_defocus_is_measured_from_x_towards_y() -> None:
    optics = uniform(defocus_u=20000.0, defocus_v=10000.0, defocus_angle=math.pi / 4)
    transfer = contrast_transfer(optics, np.array([200.0]), torch.float64)
    diagonal, antidiagonal = transfer.evaluate(torch.tensor([[5, 5], [5, -5]]))[0]
    round_u, round_v = (
        contrast_transfer(uniform(defocus_u=d, defocus_v=d), np.array([200.0]), torch.float64)
        for d in (20000.0, 10000.0)
    )
    torch.testing.assert_close(diagonal, round_u.evaluate(torch.tensor([[5, 5]]))[0, 0])
    torch.testing.assert_close(antidiagonal, round_v.evaluate(torch.tensor([[5, 5]]))[0, 0])
    along_x = contrast_transfer(replace(optics, defocus_angle=np.zeros(1)), np.array([200.0]), torch.float64)
    torch.testing.assert_close(along_x.evaluate(torch.tensor([[6, 0]])), round_u.evaluate(torch.tensor([[6, 0]])))


def test_protein_is_dark_in_an_underfocused_image() -> None:
    transfer = contrast_transfer(uniform(), np.array([200.0]), torch.float64)
    low = transfer.evaluate(torch.tensor([[0, 0], [1, 0], [3, 2], [0, 4]]))
    assert (low < 0).all()
    torch.testing.assert_close(float(low[0, 0]), -0.1)  # only the amplitude contrast is left at k = 0
    torch.testing.assert_close(transfer.inverted().evaluate(torch.tensor([[3, 2]])), -low[:, 2:3])


def test_a_quarter_wave_plate_makes_phase_objects_visible_at_low_frequency() -> None:
    plate = contrast_transfer(uniform(phase_shift=math.pi / 2, amplitude_contrast=0.0), np.array([1e4]), torch.float64)
    torch.testing.assert_close(float(plate.evaluate(torch.tensor([[1, 0]]))), -1.0, atol=1e-3, rtol=0)


def test_decay_and_scale_multiply() -> None:
    plane = half_plane(24)
    plain = contrast_transfer(uniform(), np.array([100.0]), torch.float64).evaluate(plane.frequencies)
    scaled = contrast_transfer(uniform(b_factor=80.0, scale=2.5), np.array([100.0]), torch.float64)
    square = plane.frequencies.double().square().sum(-1) / 100.0**2
    torch.testing.assert_close(scaled.evaluate(plane.frequencies), 2.5 * torch.exp(-20 * square) * plain)


def test_it_is_even_in_frequency_and_takes_rows(optics: Optics) -> None:
    plane = half_plane(24)
    transfer = contrast_transfer(optics, np.full(12, 120.0))
    value = transfer.evaluate(plane.frequencies)
    torch.testing.assert_close(transfer.evaluate(-plane.frequencies), value)
    rows = torch.tensor([7, 0, 3])
    torch.testing.assert_close(transfer.take(rows).evaluate(plane.frequencies), value[rows])
    torch.testing.assert_close(transfer.take(slice(2, 5)).evaluate(plane.frequencies), value[2:5])
