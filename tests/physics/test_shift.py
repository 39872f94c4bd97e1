"""Phase ramps move images."""

from __future__ import annotations

import pytest
import torch

from cryofire.geometry.grids import half_plane
from cryofire.physics.shift import phase_ramp


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 0), (0, -2), (-4, 5)])
@pytest.mark.parametrize("box", [16, 17])
def test_whole_pixels_roll_the_image_towards_positive_x_and_y(box: int, x: int, y: int) -> None:
    plane = half_plane(box)
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(2, len(plane), generator=generator, dtype=torch.complex128)
    ramp = phase_ramp(torch.tensor([x, y], dtype=torch.float64), plane.frequencies, box)
    moved = plane.images(coefficients * ramp)
    torch.testing.assert_close(moved, plane.images(coefficients).roll((y, x), (-2, -1)))


@pytest.mark.parametrize("box", [32, 33])
def test_fractions_of_a_pixel_move_a_gaussian_exactly(box: int) -> None:
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    x, y = 2.3, -1.7

    def gaussian(x: float, y: float) -> torch.Tensor:
        return torch.exp(-((axis - y)[:, None] ** 2 + (axis - x) ** 2) / (2 * 2.5**2))

    plane = half_plane(box)
    ramp = phase_ramp(torch.tensor([x, y], dtype=torch.float64), plane.frequencies, box)
    moved = plane.images(plane.coefficients(gaussian(0, 0)) * ramp)
    expected = gaussian(x, y) - gaussian(x, y).mean()
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


def test_shifts_compose_and_undo_each_other() -> None:
    plane = half_plane(20)
    first, second = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, two = phase_ramp(first, plane.frequencies, 20), phase_ramp(second, plane.frequencies, 20)
    assert one.shape == (5, len(plane))
    torch.testing.assert_close(one * two, phase_ramp(first + second, plane.frequencies, 20))
    torch.testing.assert_close(one * phase_ramp(-first, plane.frequencies, 20), torch.ones_like(one))
    torch.testing.assert_close(one.abs(), torch.ones_like(one.abs()))
    torch.testing.assert_close(phase_ramp(first[3], plane.frequencies, 20), one[3])
    assert phase_ramp(first.float(), plane.frequencies, 20).dtype == torch.complex64
