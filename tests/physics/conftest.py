"""Contrast transfer parameters with every term in play."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cryofire.data.particles import Optics


@pytest.fixture
def optics() -> Optics:
    """Twelve particles, all different."""
    rng = np.random.default_rng(0)
    count = 12
    defocus = rng.uniform(8000, 30000, count)
    return Optics(
        voltage_kv=rng.choice([100.0, 200.0, 300.0], count),
        cs_mm=rng.choice([0.001, 1.4, 2.7], count),
        amplitude_contrast=rng.uniform(0.0, 0.2, count),
        defocus_u=defocus,
        defocus_v=defocus - rng.uniform(-1500, 1500, count),
        defocus_angle=rng.uniform(-math.pi, math.pi, count),
        phase_shift=rng.uniform(0, math.pi, count),
        b_factor=rng.uniform(0, 150, count),
        scale=rng.uniform(0.5, 1.5, count),
    )
