"""Whitened images: what a batch holds, and that whitening whitens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryofire.data.particles import Optics
from cryofire.geometry.grids import half_plane
from cryofire.physics.ctf import contrast_transfer
from cryofire.physics.imaging import WhitenedImages, batches

BOX, EXTENT = 24, 24 * 3.0


@pytest.fixture
def images(optics: Optics) -> WhitenedImages:
    """Twelve images of noise whose cache was divided by the right spectrum."""
    plane = half_plane(BOX)
    rng = np.random.default_rng(0)
    cache = rng.normal(scale=0.5**0.5, size=(12, len(plane), 2)).astype(np.float16)
    noise = torch.linspace(2.0, 0.5, plane.max_shell + 1)
    ctf = contrast_transfer(optics, np.full(12, EXTENT))
    return WhitenedImages(cache, np.arange(len(cache)), ctf, plane, noise, torch.ones(plane.max_shell + 1))


def complex_of(cache: np.ndarray) -> torch.Tensor:
    return torch.view_as_complex(torch.from_numpy(cache.astype(np.float32)))


@pytest.mark.parametrize("shell", [3, 8, 11])
def test_a_batch_holds_data_and_whitened_transfer_up_to_a_shell(images: WhitenedImages, shell: int) -> None:
    rows = torch.tensor([5, 0, 11])
    batch = images.batch(rows, shell)
    count = images.plane.count(shell)
    assert batch.plane.max_shell == shell
    torch.testing.assert_close(batch.data, complex_of(images.cache[rows.numpy(), :count]))
    transfer = images.ctf.take(rows).evaluate(images.plane.frequencies[:count])
    sigma = images.noise[images.plane.shells[:count]]
    torch.testing.assert_close(batch.modulation * sigma, transfer)
    assert len(images) == 12


def test_truncating_a_batch_equals_reading_less(images: WhitenedImages) -> None:
    rows = torch.arange(4)
    less, whole = images.batch(rows, 5), images.batch(rows, 11).truncated(5)
    torch.testing.assert_close(whole.data, less.data)
    torch.testing.assert_close(whole.modulation, less.modulation)
    assert len(whole.plane) == len(less.plane)
    assert whole.data.is_contiguous()


def test_taking_images_before_or_after_reading_is_the_same(images: WhitenedImages) -> None:
    whole = images.batch(torch.arange(12), 11)
    rows = torch.tensor([9, 2, 2])
    parts = (
        part.batch(torch.arange(3), 11)
        for part in (images.take(rows), images.among(rows), images.among(rows).take(torch.arange(3)))
    )
    for part in (whole.take(rows), *parts, images.batch(rows, 11)):
        torch.testing.assert_close(part.data, whole.data[rows])
        torch.testing.assert_close(part.modulation, whole.modulation[rows])
    mask = torch.arange(12) % 5 == 0
    torch.testing.assert_close(whole.take(mask).data, whole.data[mask])


def test_a_wrong_noise_spectrum_is_corrected_by_what_the_residuals_show(images: WhitenedImages) -> None:
    """Data and model are divided by the same σ, however it was arrived at."""
    variance = torch.linspace(0.5, 4.0, 12)
    rows = torch.arange(12)
    before, after = images.batch(rows, 11), images.with_noise(variance).batch(rows, 11)
    factor = variance.sqrt()[images.plane.shells]
    torch.testing.assert_close(after.data * factor, before.data)
    torch.testing.assert_close(after.modulation * factor, before.modulation)
    twice = images.with_noise(variance).with_noise(1 / variance).batch(rows, 11)
    torch.testing.assert_close(twice.data, before.data)
    torch.testing.assert_close(twice.modulation, before.modulation)


def test_reestimated_noise_has_unit_variance(images: WhitenedImages) -> None:
    """Noise twice as strong as believed is white again after one correction."""
    louder = WhitenedImages(2 * images.cache, images.rows, images.ctf, images.plane, images.noise, images.correction)
    rows = torch.arange(12)
    measured = louder.plane.shell_mean(louder.batch(rows, 11).data.abs().square()).mean(0)
    assert float(measured[4:].mean()) == pytest.approx(4.0, rel=0.1)
    corrected = louder.with_noise(measured).batch(rows, 11).data.abs().square()
    torch.testing.assert_close(louder.plane.shell_mean(corrected).mean(0)[1:], torch.ones(11))


def test_batches_cover_all_rows_once_in_order() -> None:
    rows = torch.tensor([4, 9, 1, 7, 3])
    pieces = batches(rows, 2)
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat(pieces), rows)
