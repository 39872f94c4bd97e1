"""Shell means and the small systems of all points against dense tensor code."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cryofire.physics.projection import fold_friedel
from cryofire.volumes.accumulator import GridSums, grid_shells, mean_density
from cryofire.volumes.grid_points import solve_points

REACH, SHELL, COMPONENTS = 7, 3, 3


def random_sums() -> Tensor:
    """Two halves with densities that are positive definite at every point, and one point that no image reached."""
    generator = torch.Generator().manual_seed(2)
    points = (2, 2 * REACH + 1, 2 * REACH + 1, REACH + 1)
    factors = torch.randn(*points, COMPONENTS, 6, generator=generator)
    rows, columns = torch.triu_indices(COMPONENTS, COMPONENTS)
    densities = (factors @ factors.mT)[..., rows, columns]
    values = torch.cat([torch.randn(*points, 2 * COMPONENTS, generator=generator), densities], dim=-1)
    values[:, 9, 5, 2] = 0
    return values


def test_every_point_of_the_shells_is_solved() -> None:
    values = random_sums()
    precision = torch.rand(COMPONENTS, SHELL + 1, generator=torch.Generator().manual_seed(3))
    out = torch.zeros(COMPONENTS, *values.shape[1:4], 2)
    solve_points(values.numpy(), precision.numpy(), SHELL, out.numpy())

    folded = fold_friedel(values.double().sum(0), COMPONENTS)
    right = torch.view_as_complex(folded[..., : 2 * COMPONENTS].unflatten(-1, (-1, 2)).contiguous())
    rows, columns = torch.triu_indices(COMPONENTS, COMPONENTS)
    density = folded.new_zeros(*right.shape[:-1], COMPONENTS, COMPONENTS)
    density[..., rows, columns] = density[..., columns, rows] = folded[..., 2 * COMPONENTS :]
    shells = grid_shells(REACH)
    system = density + torch.diag_embed(precision.double().T[shells.clamp_max(SHELL)])
    expected = torch.linalg.solve(system.to(right.dtype), right[..., None])[..., 0].movedim(-1, 0)
    there = (shells > 0) & (shells <= SHELL)
    there[9, 5, 2] = False
    np.testing.assert_allclose(torch.view_as_complex(out)[:, there], expected[:, there], rtol=2e-3, atol=1e-4)
    assert (out[:, ~there] == 0).all()


def test_one_half_is_solved_by_itself() -> None:
    values, precision = random_sums(), torch.ones(COMPONENTS, SHELL + 1)
    alone, both = torch.zeros(2, COMPONENTS, *values.shape[1:4], 2)
    solve_points(values[1:].numpy(), precision.numpy(), SHELL, alone.numpy())
    values[0] = 0
    solve_points(values.numpy(), precision.numpy(), SHELL, both.numpy())
    torch.testing.assert_close(alone, both)


def test_mean_densities_are_those_of_the_folded_grid() -> None:
    values = random_sums()
    folded, shells = fold_friedel(values.double().sum(0), COMPONENTS), grid_shells(REACH)
    means = mean_density(GridSums(values, COMPONENTS))
    diagonal = (2 * COMPONENTS, 2 * COMPONENTS + 3, 2 * COMPONENTS + 5)
    for component, channel in enumerate(diagonal):
        for shell in range(SHELL + 1):
            expected = folded[..., channel][shells == shell].mean()
            torch.testing.assert_close(means[component, shell].double(), expected, rtol=1e-5, atol=0)
