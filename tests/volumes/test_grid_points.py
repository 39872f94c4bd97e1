"""Shell means and the small systems of all points against dense tensor code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cryofire.physics.projection import fold_friedel
from cryofire.volumes.accumulator import GridSums, grid_shells, mean_density
from cryofire.volumes.grid_points import solve_points

REACH, SHELL = 7, 3


def random_sums(components: int) -> Tensor:
    """Two halves with densities that are positive definite at every point, and one point that no image reached."""
    generator = torch.Generator().manual_seed(2)
    points = (2, 2 * REACH + 1, 2 * REACH + 1, REACH + 1)
    factors = torch.randn(*points, components, 6, generator=generator)
    rows, columns = torch.triu_indices(components, components)
    densities = (factors @ factors.mT)[..., rows, columns]
    values = torch.cat([torch.randn(*points, 2 * components, generator=generator), densities], dim=-1)
    values[:, 9, 5, 2] = 0
    return values


@pytest.mark.parametrize("components", [1, 3])
def test_every_point_of_the_shells_is_solved(components: int) -> None:
    values = random_sums(components)
    precision = torch.rand(components, SHELL + 1, generator=torch.Generator().manual_seed(3))
    out = torch.zeros(components, *values.shape[1:4], 2)
    solve_points(values.numpy(), precision.numpy(), SHELL, out.numpy())

    folded = fold_friedel(values.double().sum(0), components)
    right = torch.view_as_complex(folded[..., : 2 * components].unflatten(-1, (-1, 2)).contiguous())
    rows, columns = torch.triu_indices(components, components)
    density = folded.new_zeros(*right.shape[:-1], components, components)
    density[..., rows, columns] = density[..., columns, rows] = folded[..., 2 * components :]
    shells = grid_shells(REACH)
    system = density + torch.diag_embed(precision.double().T[shells.clamp_max(SHELL)])
    expected = torch.linalg.solve(system.to(right.dtype), right[..., None])[..., 0].movedim(-1, 0)
    there = (shells > 0) & (shells <= SHELL)
    there[9, 5, 2] = False
    np.testing.assert_allclose(torch.view_as_complex(out)[:, there], expected[:, there], rtol=2e-3, atol=1e-4)
    assert (out[:, ~there] == 0).all()


@pytest.mark.parametrize("components", [1, 3])
def test_one_half_is_solved_by_itself(components: int) -> None:
    values, precision = random_sums(components), torch.ones(components, SHELL + 1)
    alone, both = torch.zeros(2, components, *values.shape[1:4], 2)
    solve_points(values[1:].numpy(), precision.numpy(), SHELL, alone.numpy())
    values[0] = 0
    solve_points(values.numpy(), precision.numpy(), SHELL, both.numpy())
    torch.testing.assert_close(alone, both)


def test_mean_densities_are_those_of_the_folded_grid() -> None:
    values = random_sums(3)
    folded, shells = fold_friedel(values.double().sum(0), 3), grid_shells(REACH)
    means = mean_density(GridSums(values, 3))
    diagonal = (6, 9, 11)
    for component, channel in enumerate(diagonal):
        for shell in range(SHELL + 1):
            expected = folded[..., channel][shells == shell].mean()
            torch.testing.assert_close(means[component, shell].double(), expected, rtol=1e-5, atol=0)
