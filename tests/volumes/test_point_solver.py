"""The small systems of all points against a dense solver."""

from __future__ import annotations

import numpy as np
import torch

from cryofire.volumes.point_solver import solve_points


def test_solve_points_solves_every_point() -> None:
    generator = torch.Generator().manual_seed(2)
    points, components = 50, 3
    factors = torch.randn(points, components, 6, generator=generator, dtype=torch.float64)
    density = factors @ factors.mT
    right = torch.randn(points, components, generator=generator, dtype=torch.complex128)
    precision = torch.rand(points, components, generator=generator, dtype=torch.float64)
    rows, columns = torch.triu_indices(components, components)
    sums = torch.cat([torch.view_as_real(right).flatten(1), density[:, rows, columns]], dim=1).float()
    sums[7, 2 * components] = 0  # a point that no image reached
    out = np.zeros((points, 2 * components), np.float32)
    solve_points(sums.numpy(), precision.float().numpy(), out)
    system = (density + torch.diag_embed(precision)).to(torch.complex128)
    expected = torch.view_as_real(torch.linalg.solve(system, right[..., None])[..., 0]).flatten(1)
    expected[7] = 0
    np.testing.assert_allclose(out, expected.numpy(), rtol=2e-3, atol=1e-4)
