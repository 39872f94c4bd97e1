from __future__ import annotations

import pytest
import torch

from cryofire.inference.shift_grid import DEVIATIONS, ShiftGrid


def test_a_disc_has_the_deviation_that_it_is_for() -> None:
    grid = ShiftGrid.disc(6.4, 0.25)
    weight = grid.log_weight.exp()
    assert float(weight.mean()) == pytest.approx(1.0, rel=1e-4)
    variance = (weight[:, None] * grid.shifts_px.square()).mean(0)
    torch.testing.assert_close(variance.sqrt(), torch.full((2,), 6.4 / DEVIATIONS), rtol=0.05, atol=0)
    assert float(grid.shifts_px.norm(dim=1).max()) <= 6.4 + 1e-4


def test_a_disc_below_the_spacing_is_its_centre() -> None:
    grid = ShiftGrid.disc(0.5, 1.0)
    assert len(grid) == 1
    torch.testing.assert_close(grid.log_weight, torch.zeros(1))
    assert len(ShiftGrid(torch.zeros(3, 2), torch.zeros(3))) == 3
