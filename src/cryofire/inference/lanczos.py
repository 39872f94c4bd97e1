"""Leading eigenvectors of a symmetric operator that is only known by what it does to a few vectors: block Lanczos.

The Krylov space of s steps holds the best polynomial of degree s - 1 in the operator, where a power iteration holds one power: an
eigenvalue that is larger than the others by a fraction g is told apart after about 1/√g steps in place of 1/g (Saad, Numerical
Methods for Large Eigenvalue Problems, 2011).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Block = Float[Tensor, "row vector"]


def leading_eigenvectors(
    operator: Callable[[Block], Block], start: Block, group: Int[Tensor, " row"], steps: int, count: int
) -> Float[Tensor, "row count"]:
    """Eigenvectors of the largest eigenvalues, those of every group of rows on their own.

    Parameters
    ----------
    operator : callable
        Takes vectors to vectors; symmetric, and no row has to do with rows of another group. Applied once a step.
    start : Float[Tensor, "row vector"]
        Random vectors; as many as eigenvalues may coincide.
    group : Int[Tensor, "row"]
        From 0.
    steps, count : int
        Applications of the operator, and eigenvectors wanted; both are fewer where a group has too few rows.

    Returns
    -------
    Float[Tensor, "row count"]
        By falling eigenvalue; of mean 0 and variance 1 in every group.
    """
    members = [(group == one).nonzero()[:, 0] for one in range(int(group.max()) + 1)]
    most = (min(len(rows) for rows in members) - 1) // start.shape[1]
    basis, image = start[:, :0], start[:, :0]
    block = start
    for _ in range(min(steps, most)):
        block = _orthonormal(block, basis, members)
        basis, block = torch.cat([basis, block], dim=1), operator(block)
        image = torch.cat([image, block], dim=1)
    result = torch.empty(len(start), min(count, basis.shape[1]))
    for rows in members:
        inside = basis[rows].double()
        projected = inside.T @ image[rows].double() / len(rows)
        turn = torch.linalg.eigh(0.5 * (projected + projected.T)).eigenvectors.flip(1)[:, : result.shape[1]]
        result[rows] = (inside @ turn).float()
    return result


def _orthonormal(block: Block, basis: Block, members: list[Int[Tensor, " member"]]) -> Block:
    """The block in every group without its mean and what the basis spans, of unit covariance."""
    result = torch.empty_like(block)
    for rows in members:
        inside = basis[rows].double() / len(rows) ** 0.5
        rest = block[rows].double()
        for _ in range(2):
            rest = rest - rest.mean(0)
            rest = rest - inside @ (inside.T @ rest)
        result[rows] = (torch.linalg.qr(rest).Q * len(rows) ** 0.5).float()
    return result
