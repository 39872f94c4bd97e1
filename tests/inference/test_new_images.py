from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from cryofire.geometry.fourier import image_of, image_spectrum, spectrum_at
from cryofire.geometry.grids import half_plane
from cryofire.inference.encode import read_ahead
from cryofire.inference.new_images import Piece, sampling_of
from cryofire.inference.prepare import WorkingGrid, resampled_coefficients
from cryofire.inference.whitening import particle_radius, spectral_power


@pytest.mark.parametrize("box", [16, 17])
def test_the_real_transform_gives_the_centred_spectrum(box: int) -> None:
    image = torch.randn(3, box, box, generator=torch.Generator().manual_seed(box))
    plane = half_plane(box)
    torch.testing.assert_close(
        spectrum_at(image, plane.frequencies), plane.gather(image_spectrum(image)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("box", [16, 17])
def test_images_of_a_half_plane_are_those_of_its_full_spectrum(box: int) -> None:
    plane = half_plane(box, 5)
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2, len(plane), dtype=torch.complex64, generator=generator)
    torch.testing.assert_close(image_of(values, plane.frequencies, box), plane.images(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("box", "pixel_size"), [(32, 6.0), (48, 4.0), (33, 5.9), (28, 6.5)])
def test_any_sampling_gives_the_coefficients_of_the_exact_transform(box: int, pixel_size: float) -> None:
    grid, plane = WorkingGrid(32, 6.0), half_plane(32)
    images = torch.randn(2, box, box, generator=torch.Generator().manual_seed(0))
    sampling = sampling_of(box, pixel_size, grid, plane, 60.0)
    found = sampling.coefficients(sampling.cropped(images))
    held = plane.count(sampling.reach)
    wanted = resampled_coefficients(sampling.cropped(images), pixel_size, grid)
    torch.testing.assert_close(found[:, :held], wanted[:, :held], rtol=1e-3, atol=2e-2)
    assert float(found[:, held:].abs().sum()) == 0


def test_a_larger_field_of_view_is_cropped_and_large_pixels_end_early() -> None:
    grid, plane = WorkingGrid(32, 6.0), half_plane(32)
    assert sampling_of(64, 6.0, grid, plane, 60.0).box == 32
    assert sampling_of(32, 6.0, grid, plane, 60.0).reach == 15
    coarse = sampling_of(24, 8.0, grid, plane, 60.0)
    assert coarse.is_aligned
    assert coarse.reach == 11


def test_spectral_power_is_the_mean_over_views() -> None:
    from cryofire.geometry.rotations import random_rotations
    from cryofire.physics.projection import central_sections, spectrum_grid

    axis = (torch.arange(32) - 16).float()
    blob = torch.exp(-((axis[:, None, None] - 2) ** 2 + (axis[:, None] + 1) ** 2 / 1.2 + axis**2 / 1.5) / 3)
    maps = torch.stack([blob, 0.3 * blob.flip(0)])
    plane = half_plane(32, 8)
    views = random_rotations(2000, torch.Generator().manual_seed(0))
    sections = central_sections(spectrum_grid(maps, 8), views, plane).abs().square()
    wanted = plane.shell_mean((sections[:, 0] + 2 * sections[:, 1]).mean(0))
    found = spectral_power(maps, torch.tensor([2.0]))
    torch.testing.assert_close(found[1:6], wanted[1:6], rtol=0.15, atol=0)


def test_the_radius_of_a_ball_is_found() -> None:
    axis = (torch.arange(40) - 20).float()
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    assert particle_radius((radius < 9).float()) == pytest.approx(9 * 0.95 ** (1 / 3), abs=0.4)
    assert particle_radius(torch.zeros(20, 20, 20)) == pytest.approx(0.36 * 20)


def pieces(count: int, made: list[int]) -> Iterator[Piece]:
    for index in range(count):
        made.append(index)
        yield index  # type: ignore[misc]


def test_reading_ahead_keeps_order_and_waits() -> None:
    made: list[int] = []
    ahead = read_ahead(pieces(20, made))
    assert next(ahead) == 0  # type: ignore[comparison-overlap]
    time.sleep(0.1)
    assert len(made) <= 5
    assert list(ahead) == list(range(1, 20))


def test_an_error_of_the_reader_reaches_the_caller_and_the_thread_ends() -> None:
    def broken() -> Iterator[Piece]:
        yield from pieces(2, [])
        raise ValueError("no more")

    before = threading.active_count()
    with pytest.raises(ValueError, match="no more"):
        list(read_ahead(broken()))
    ahead = read_ahead(pieces(100, []))
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
