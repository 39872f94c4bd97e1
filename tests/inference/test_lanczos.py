from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cryofire.inference.lanczos import leading_eigenvectors

ROWS = 300


def planted(strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """A symmetric matrix of noise, whose spectrum ends near 2, and of two directions of mean 0 and a given strength."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(ROWS, ROWS, generator=generator)
    directions = torch.randn(ROWS, 2, generator=generator)
    directions = torch.linalg.qr(directions - directions.mean(0)).Q
    return (noise + noise.T) / math.sqrt(2 * ROWS) + strength * directions @ directions.T, directions


def start(rows: int, seed: int = 5) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))


def overlap(found: Tensor, exact: Tensor) -> float:
    """Smallest cosine between two subspaces."""
    return float(torch.linalg.svdvals(torch.linalg.qr(found).Q.T @ torch.linalg.qr(exact).Q).min())


def test_every_group_of_rows_has_its_own_eigenvectors() -> None:
    (first, _), (second, _) = planted(3.0, 1), planted(4.0, 2)
    both = torch.block_diag(first, second)
    order = torch.randperm(2 * ROWS, generator=torch.Generator().manual_seed(3))
    group = (torch.arange(2 * ROWS) >= ROWS).long()[order]
    found = leading_eigenvectors(lambda block: both[order][:, order] @ block, start(2 * ROWS), group, 20, 2)
    centring = torch.eye(ROWS) - 1 / ROWS
    for side, matrix in enumerate((first, second)):
        here = torch.empty(ROWS, 2)
        here[order[group == side] - side * ROWS] = found[group == side]
        exact = torch.linalg.eigh(centring @ matrix @ centring).eigenvectors[:, -2:]
        assert overlap(here, exact) > 0.9999
        torch.testing.assert_close(here.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(here.T @ here / ROWS, torch.eye(2), atol=1e-4, rtol=0)


def test_a_weak_direction_is_found_in_fewer_steps_than_by_powers() -> None:
    matrix, directions = planted(2.0, 4)
    exact = torch.linalg.eigh(matrix).eigenvectors[:, -2:]
    found = leading_eigenvectors(lambda block: matrix @ block, start(ROWS), torch.zeros(ROWS).long(), 10, 2)
    power = start(ROWS)
    for _ in range(10):
        power = torch.linalg.qr(matrix @ power).Q
    assert overlap(found, exact) > 0.98 > overlap(power, exact)
    assert overlap(found, directions) > 0.8


@pytest.mark.parametrize("rows", [7, 40])
def test_few_rows_take_fewer_steps(rows: int) -> None:
    matrix = planted(2.0, 6)[0][:rows, :rows]
    calls: list[int] = []

    def operator(block: Tensor) -> Tensor:
        calls.append(block.shape[1])
        return matrix @ block

    found = leading_eigenvectors(operator, start(rows), torch.zeros(rows).long(), 8, 10)
    assert len(calls) == min(8, (rows - 1) // 2)
    assert found.shape == (rows, min(10, 2 * len(calls)))
    assert bool(found.isfinite().all())
