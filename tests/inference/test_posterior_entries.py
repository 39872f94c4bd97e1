"""Entries of peaked posteriors against sums over all of them."""

from __future__ import annotations

import numpy as np
import torch

from cryofire.inference.posterior_entries import add_entries, entries_above


def test_entries_of_a_posterior_are_added_to_their_sections() -> None:
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(6, 5, 600, generator=generator)  # more rotations than one block
    images, power = torch.randn(6, 5, 16, generator=generator), torch.rand(6, 8, generator=generator)
    least = torch.tensor([0.5, 0.99, 0.0, 2.0, 0.9, 1.0])  # the fourth has no weight above
    kept = weights * (weights > least[:, None, None])
    assert entries_above(weights.numpy(), least.numpy()).tolist() == (kept > 0).sum((1, 2)).tolist()
    numerators = np.ones((600, 16), np.float32)  # added to, not overwritten
    denominators = np.zeros((600, 8), np.float32)
    add_entries(weights.numpy(), least.numpy(), images.numpy(), power.numpy(), numerators, denominators)
    np.testing.assert_allclose(numerators - 1, torch.einsum("itq,itp->qp", kept, images).numpy(), atol=1e-4)
    np.testing.assert_allclose(denominators, torch.einsum("itq,ip->qp", kept, power).numpy(), atol=1e-4)
