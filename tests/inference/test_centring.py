from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.inference.conftest import BOX, blob_sections
from torch import Tensor

from cryofire.geometry.grids import half_plane
from cryofire.geometry.rotations import random_rotations
from cryofire.inference import centring
from cryofire.inference.centring import Centres, CentringModel, find_centres, learn_centring, search_radius
from cryofire.physics.ctf import ContrastTransfer
from cryofire.physics.imaging import ImageBatch, WhitenedImages
from cryofire.physics.shift import phase_ramp

SHELL = 12
SPREAD, OFFSET = 2.2, torch.tensor([1.5, -0.8])


def lobed(arms: int) -> Tensor:
    """A round molecule, or one of three separate lobes."""
    cloud = 2.0 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    if arms == 1:
        return cloud
    corners = torch.tensor([[5.5, 0.0, 0.0], [-3.0, 5.0, 0.0], [-3.0, -5.0, 1.0]])
    lobes = 0.6 * cloud + corners.repeat(10, 1)
    return lobes - lobes.mean(0)


def image_set(
    positions: Tensor, noise: float, spread: float = SPREAD, offset: Tensor = OFFSET, count: int = 1200
) -> tuple[WhitenedImages, Tensor, Tensor]:
    """Whitened images, their shifts in pixels, and their rotations."""
    generator = torch.Generator().manual_seed(1)
    plane = half_plane(BOX, SHELL)
    rotations = random_rotations(count, generator)
    shifts = offset + spread * torch.randn(count, 2, generator=generator)
    defocus = 0.03 + 0.02 * torch.rand(count, generator=generator)
    zeros = torch.zeros(count)
    ctf = ContrastTransfer(torch.stack([defocus, zeros, defocus], 1), zeros, zeros + 0.3, zeros, torch.ones(count))
    clean = ctf.evaluate(plane.frequencies) * blob_sections(positions, rotations, SHELL)
    clean = clean * phase_ramp(shifts, plane.frequencies, BOX)
    data = clean / noise + torch.randn(clean.shape, dtype=torch.complex64, generator=generator)
    sigma = torch.full((SHELL + 1,), noise)
    images = WhitenedImages(
        torch.view_as_real(data).half().numpy(), np.arange(len(data)), ctf, plane, sigma, torch.ones(SHELL + 1)
    )
    return images, shifts, rotations


def residual(found: Tensor, shifts: Tensor, rotations: Tensor) -> float:
    """Deviation per coordinate after the best common shift in space, which poses take up."""
    views = rotations[:, :2].reshape(-1, 3)
    error = (found - shifts).reshape(-1, 1)
    return float((error - views @ torch.linalg.lstsq(views, error).solution).square().mean().sqrt())


def centres(images: WhitenedImages) -> Centres:
    return find_centres(images, lambda _: None)


@pytest.mark.parametrize("arms", [1, 3])
@pytest.mark.parametrize("noise", [50.0, 200.0])
def test_centres_are_found_and_their_error_known(arms: int, noise: float) -> None:
    images, shifts, rotations = image_set(lobed(arms), noise)
    found = centres(images)
    error = residual(found.shifts_px, shifts, rotations)
    assert error < 0.5 * SPREAD
    assert 0.6 < found.residual_px / error < 1.6
    assert BOX * found.model.spread == pytest.approx(SPREAD, rel=0.1)
    assert not found.model.is_centred
    torch.testing.assert_close(BOX * found.model.offset, OFFSET, rtol=0, atol=0.25)


def test_pure_noise_has_unit_spectra_and_moves_nothing() -> None:
    images, _, _ = image_set(lobed(1), 1e6)
    batch = images.batch(torch.arange(1000), centring.SHELL)
    spectra, squares = centring._spectra(batch)
    pixels, powers = torch.fft.irfft2(spectra), torch.fft.irfft2(squares)
    assert float(pixels.square().mean()) == pytest.approx(1, abs=0.01)
    assert float(powers.mean()) == pytest.approx(0, abs=0.01)
    found = centres(images)
    assert float((found.shifts_px - BOX * found.model.offset).square().mean().sqrt()) < 0.3


def test_centred_particles_stay_where_they_are() -> None:
    images, shifts, rotations = image_set(lobed(3), 100.0, spread=0.1, offset=torch.zeros(2))
    found = centres(images)
    assert residual(found.shifts_px, shifts, rotations) < 0.02 * BOX
    assert found.residual_px < 0.02 * BOX


def test_images_of_extreme_power_have_no_say_in_where_the_others_sit() -> None:
    images, shifts, rotations = image_set(lobed(1), 50.0)
    bright = images.cache.astype(np.float32)
    disc = 60 * torch.randn(len(images.plane), 2, generator=torch.Generator().manual_seed(4)).numpy()
    bright[::60] += disc * (images.plane.shells < 4).numpy()[:, None]
    found = centres(replace(images, cache=bright.astype(np.float16)))
    usual = torch.arange(len(images)) % 60 != 0
    assert BOX * found.model.spread == pytest.approx(SPREAD, rel=0.1)
    assert residual(found.shifts_px[usual], shifts[usual], rotations[usual]) < 0.5 * SPREAD


def test_a_correlation_is_the_likelihood_of_every_pixel() -> None:
    images, _, _ = image_set(lobed(1), 50.0, count=300)
    batch = images.batch(torch.arange(300), centring.SHELL)
    model = learn_centring([batch])
    lattice = centring._lattice()
    spectra, squares = centring._spectra(batch.take(torch.tensor([7])))
    image = torch.fft.irfft2(spectra)[0]
    mean, variance = lattice.spread_out(model.mean), lattice.spread_out(model.variance)
    wanted = torch.empty(len(lattice.shifts))
    for index, (x, y) in enumerate((lattice.shifts * centring.PIXELS).round().long().tolist()):
        here, power = mean.roll((y, x), (0, 1)), 1 + variance.roll((y, x), (0, 1))
        density = -(image - here).square() / (2 * power) + image.square() / 2
        wanted[index] = lattice.independent * density.sum()
    far = (lattice.shifts - model.offset).square().sum(1) / (2 * model.spread**2)
    posterior = (wanted - far).masked_fill(lattice.excluded, -math.inf).softmax(0)
    _, _, found = model._moments(spectra, squares)
    torch.testing.assert_close(found[0].flatten(), posterior, rtol=1e-2, atol=1e-4)


def test_images_may_come_in_any_pieces_and_amplitudes() -> None:
    images, _, _ = image_set(lobed(3), 150.0)
    model = centres(images).model
    batch = images.batch(torch.arange(200), SHELL)
    whole, _ = model.centres(batch)
    parts = [model.centres(batch.take(torch.arange(a, a + 50)))[0] for a in range(0, 200, 50)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)
    weaker, _, _ = image_set(lobed(3), 300.0)
    scaled, relearnt = model.scaled(0.5), centres(weaker).model
    torch.testing.assert_close(scaled.mean, relearnt.mean, rtol=0, atol=0.25 * float(relearnt.mean.max()))


def test_the_disc_of_shifts_holds_nearly_all() -> None:
    model = CentringModel(torch.zeros(17), torch.zeros(17), torch.zeros(2), 0.05)
    assert search_radius(Centres(torch.zeros(1, 2), 1.0, model), 32) == pytest.approx(0.1)
    assert search_radius(Centres(torch.zeros(1, 2), 0.01, model), 32) == pytest.approx(0.02)


def test_a_small_box_is_looked_at_as_far_as_it_goes() -> None:
    plane = half_plane(8)
    generator = torch.Generator().manual_seed(0)
    batch = ImageBatch(
        torch.randn(64, len(plane), dtype=torch.complex64, generator=generator), torch.ones(64, len(plane)), plane
    )
    shifts, variance = learn_centring([batch]).centres(batch)
    assert bool(torch.isfinite(shifts).all() and torch.isfinite(variance).all())


def test_centred_images_are_said_to_be_centred() -> None:
    images, _, _ = image_set(lobed(1), 200.0, spread=0.05, offset=torch.zeros(2), count=800)
    assert learn_centring([images.batch(torch.arange(800), centring.SHELL)]).spread < 0.03
    nothing = CentringModel(torch.zeros(17), torch.zeros(17), torch.zeros(2), centring.LEAST_SPREAD)
    assert nothing.is_centred
