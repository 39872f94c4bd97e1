"""Shifts of images as phase ramps on their half-plane coefficients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cryofire.arrays import Coefficients, Shifts


def phase_ramp(shift_px: Shifts, frequencies: Tensor, box: int) -> Coefficients:
    """exp(-2πi k·t / n) for shifts t in pixels (x, y): multiplying a spectrum by it moves the image by +t.

    Shapes: shifts (..., 2), integer frequencies (coefficient, 2), result (..., coefficient).
    """
    angle = (-2 * math.pi / box) * (shift_px @ frequencies.to(shift_px).T)
    return torch.polar(torch.ones_like(angle), angle)


def shifted(coefficients: Coefficients, shift_px: Shifts, frequencies: Tensor, box: int) -> Coefficients:
    """Coefficients of images moved by +t pixels."""
    return coefficients * phase_ramp(shift_px, frequencies, box)
