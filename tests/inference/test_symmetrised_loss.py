"""The symmetrised loss and its encoder: exact under the half turn it is symmetric under, and able to learn poses."""

from __future__ import annotations

import pytest
import torch

from cryofire.geometry.grids import HalfPlane, half_plane
from cryofire.geometry.rotations import geodesic_angle, random_rotations, rotation_from_vector
from cryofire.inference.published_encoder import (
    EncoderShape,
    PointEstimate,
    PublishedEncoder,
    filter_bank,
    rotation_from_vectors,
    turned_half_way,
)
from cryofire.inference.symmetrised_loss import both_copies, misfit, symmetrised_fit
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.shift import phase_ramp
from cryofire.volumes.slice_field import FieldShape, SliceField

COUNT = 6


def parts(box: int) -> tuple[PublishedEncoder, SliceField, ImageBatch]:
    generator = torch.Generator().manual_seed(box)
    plane = half_plane(box)
    encoder = PublishedEncoder(EncoderShape(box, 2, channels=8, hidden=16), generator)
    field = SliceField(FieldShape(box, 2, hidden=16, layers=1, features=8), 1.0, generator)
    images = torch.randn(COUNT, box, box, generator=generator) * box
    modulation = torch.randn(COUNT, len(plane), generator=generator)
    return encoder, field, ImageBatch(plane.coefficients(images), modulation, plane)


@pytest.mark.parametrize("box", [16, 17])
def test_the_half_turn_is_exact_in_real_space(box: int) -> None:
    _, _, batch = parts(box)
    image, turned = (batch.plane.images(both_copies(batch).data[rows]) for rows in (slice(COUNT), slice(COUNT, None)))
    index = (
        2 * (box // 2) - torch.arange(box)
    ) % box  # about the pixel n // 2; the first row of an even box is its own image
    torch.testing.assert_close(turned, image[:, index][:, :, index], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("box", [16, 17])
def test_an_image_and_its_half_turn_have_the_same_loss(box: int) -> None:
    encoder, field, batch = parts(box)
    turned = ImageBatch(batch.data.conj().resolve_conj(), batch.modulation, batch.plane)
    first, second = (symmetrised_fit(encoder, field, one, 6) for one in (batch, turned))
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-5, atol=0)
    expected = turned_half_way(first.estimate)
    torch.testing.assert_close(second.estimate.rotations, expected.rotations, atol=1e-5, rtol=0)
    torch.testing.assert_close(second.estimate.shifts_px, expected.shifts_px, atol=1e-5, rtol=0)
    torch.testing.assert_close(second.estimate.latents, expected.latents, atol=1e-5, rtol=0)


def test_the_loss_is_the_better_of_both_copies_and_belongs_to_the_estimate() -> None:
    encoder, field, batch = parts(16)
    fit = symmetrised_fit(encoder, field, batch, 6)
    limited = batch.truncated(6)
    each = misfit(field, both_copies(limited), encoder(both_copies(batch).data)).unflatten(0, (2, COUNT))
    torch.testing.assert_close(fit.loss, each.amin(0))
    torch.testing.assert_close(misfit(field, limited, fit.estimate), fit.loss)


def test_the_misfit_of_the_truth_is_that_of_the_noise() -> None:
    _, field, batch = parts(16)
    generator = torch.Generator().manual_seed(0)
    truth = PointEstimate(
        random_rotations(COUNT, generator), torch.randn(COUNT, 2, generator=generator), torch.zeros(COUNT, 2)
    )
    ramp = phase_ramp(truth.shifts_px, batch.plane.frequencies, 16)
    clean = batch.modulation * ramp * field(truth.rotations, truth.latents, batch.plane)
    assert float(misfit(field, ImageBatch(clean, batch.modulation, batch.plane), truth).detach().max()) < 1e-10
    noisy = ImageBatch(clean + 1.0, batch.modulation, batch.plane)
    torch.testing.assert_close(misfit(field, noisy, truth), torch.ones(COUNT))


def test_random_conformations_replace_those_of_the_encoder() -> None:
    encoder, field, batch = parts(16)
    latents = torch.randn(COUNT, 2)
    fit = symmetrised_fit(encoder, field, batch, 6, latents)
    assert torch.equal(fit.estimate.latents, latents)
    fit.loss.sum().backward()
    assert all(weight.grad is None for weight in encoder.latent.parameters())
    assert all(weight.grad is not None for weight in encoder.rotation.parameters())


def test_rotations_from_vectors_are_rotations_with_their_first_row_along_the_first_vector() -> None:
    vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotations = rotation_from_vectors(vectors)
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(rotations[:, 0], torch.nn.functional.normalize(vectors[:, :3], dim=1))
    torch.testing.assert_close(rotation_from_vectors(rotations[:, :2].flatten(1)), rotations)


@pytest.mark.parametrize("box", [16, 17])
def test_filters_pass_white_noise_with_unit_variance(box: int) -> None:
    shape = EncoderShape(box, 2)
    plane, generator = half_plane(box), torch.Generator().manual_seed(2)
    noise = torch.randn(600, len(plane), generator=generator, dtype=torch.complex64)
    filters = filter_bank(shape)
    variance = plane.images(noise[:, None] * filters).square().mean((0, 2, 3))
    torch.testing.assert_close(variance, torch.ones(shape.filters), rtol=0.08, atol=0)
    assert bool((filters[:, -1] / filters[:, 0]).diff().le(0).all())  # each passes less detail than the one before


def test_the_encoder_does_not_depend_on_the_rest_of_the_batch() -> None:
    encoder, _, batch = parts(17)
    together, alone = encoder(batch.data), encoder(batch.data[2:3])
    torch.testing.assert_close(together.rotations[2:3], alone.rotations, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.shifts_px[2:3], alone.shifts_px, atol=1e-5, rtol=0)


def test_poses_are_learnt_when_the_density_is_known(blobs) -> None:
    """From views within some 15° of where the encoder starts; from anywhere, local minima are the method's own."""
    box, generator = 20, torch.Generator().manual_seed(5)
    plane, latents = half_plane(box), torch.zeros(16, 1)

    def density(rotations: torch.Tensor, _: torch.Tensor, limited: HalfPlane) -> torch.Tensor:
        return blobs.sections(rotations, limited).to(torch.complex64)

    truth = rotation_from_vector(0.25 * torch.randn(16, 3, generator=generator))
    batch = ImageBatch(density(truth, latents, plane), torch.ones(16, len(plane)), plane)
    encoder = PublishedEncoder(EncoderShape(box, 1, channels=8, hidden=32), generator)
    encoder.fit_scale(batch.data)
    last = encoder.rotation[-1]
    assert isinstance(last, torch.nn.Linear)
    last.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])
    last.weight.data *= 0.1
    optimiser = torch.optim.Adam(encoder.parameters(), 1e-3)
    errors, losses = [], []
    for _ in range(100):
        fit = symmetrised_fit(encoder, density, batch, 4, latents)
        optimiser.zero_grad()
        fit.loss.mean().backward()
        optimiser.step()
        losses.append(float(fit.loss.detach().median()))
        errors.append(float(geodesic_angle(fit.estimate.rotations.detach(), truth).median()))
    assert losses[-1] < 0.05 * losses[0]
    assert errors[0] > 0.2
    assert errors[-1] < 0.05
    assert float(fit.estimate.shifts_px.detach().norm(dim=1).median()) < 0.1
