"""Contrast transfer function.

With γ(k) = π λ Δf(θ) k² - ½ π C_s λ³ k⁴ + phase shift and amplitude contrast w,

    CTF(k) = -scale · [√(1 - w²) sin γ + w cos γ] · exp(-B k² / 4) = -scale · sin(γ + asin w) · exp(-B k² / 4).

Underfocus is positive and matter has positive density, so that protein is dark in unprocessed images. Defocus is
Δf(θ) = ½(dfU + dfV) + ½(dfU - dfV) cos 2(θ - angle), θ measured from the x axis (CTFFIND and RELION convention).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Modulation
from cryofire.data.particles import Optics


def electron_wavelength(voltage_kv: np.ndarray) -> np.ndarray:
    """Relativistic electron wavelength in Å, λ = h / √(2 m e V (1 + e V / 2 m c²))."""
    voltage = np.asarray(voltage_kv, dtype=np.float64) * 1e3
    return np.asarray(12.2642597 / np.sqrt(voltage * (1.0 + 0.978475598e-6 * voltage)))


@dataclass(frozen=True)
class ContrastTransfer:
    """The CTF of each particle as a polynomial phase in integer frequencies (cycles per box).

    Attributes
    ----------
    quadratic : Float[Tensor, "particle 3"]
        Phase in radians per k_x², k_x k_y, k_y²: defocus and astigmatism.
    quartic, offset : Float[Tensor, "particle"]
        Phase in radians per |k|⁴ (spherical aberration), and constant phase.
    decay : Float[Tensor, "particle"]
        B / 4 in units of the box squared.
    scale : Float[Tensor, "particle"]
        Amplitude; its sign is the contrast (negative for stacks with white particles).
    """

    quadratic: Float[Tensor, "particle 3"]
    quartic: Float[Tensor, " particle"]
    offset: Float[Tensor, " particle"]
    decay: Float[Tensor, " particle"]
    scale: Float[Tensor, " particle"]

    def take(self, rows: Tensor | slice) -> ContrastTransfer:
        """The same for a subset of the particles."""
        return ContrastTransfer(
            self.quadratic[rows], self.quartic[rows], self.offset[rows], self.decay[rows], self.scale[rows]
        )

    def on(self, device: torch.device) -> ContrastTransfer:
        """The same on a device."""
        return ContrastTransfer(*(value.to(device) for value in vars(self).values()))

    def inverted(self) -> ContrastTransfer:
        """The transfer of images whose contrast was inverted."""
        return replace(self, scale=-self.scale)

    def evaluate(self, frequencies: Tensor) -> Modulation:
        """CTF of every particle at integer frequencies (coefficient, 2), shape (particle, coefficient)."""
        kx, ky = frequencies.to(self.quadratic).unbind(-1)
        square = kx * kx + ky * ky
        basis = torch.stack([kx * kx, kx * ky, ky * ky, square * square])
        phase = torch.cat([self.quadratic, self.quartic[:, None]], dim=1) @ basis
        value = torch.sin(phase.add_(self.offset[:, None])).mul_(-self.scale[:, None])
        if bool((self.decay != 0).any()):
            value *= torch.exp(-self.decay[:, None] * square)
        return value


def contrast_transfer(
    optics: Optics, field_of_view: np.ndarray, dtype: torch.dtype = torch.float32
) -> ContrastTransfer:
    """CTF of particles whose images span `field_of_view` Å (box times pixel size, one per particle).

    The phase is assembled in float64; at box 128 it stays below 10³ radians, so float32 evaluation errs by < 1e-4.
    """
    extent = np.asarray(field_of_view, dtype=np.float64)
    wavelength = electron_wavelength(optics.voltage_kv)
    mean = 0.5 * (optics.defocus_u + optics.defocus_v)
    half_difference = 0.5 * (optics.defocus_u - optics.defocus_v)
    cosine, sine = np.cos(2 * optics.defocus_angle), np.sin(2 * optics.defocus_angle)
    strength = math.pi * wavelength / extent**2
    quadratic = strength[:, None] * np.stack(
        [mean + half_difference * cosine, 2 * half_difference * sine, mean - half_difference * cosine], axis=-1
    )
    quartic = -0.5 * math.pi * optics.cs_mm * 1e7 * wavelength**3 / extent**4
    offset = optics.phase_shift + np.arcsin(optics.amplitude_contrast)
    return ContrastTransfer(
        *(
            torch.as_tensor(value, dtype=dtype)
            for value in (quadratic, quartic, offset, optics.b_factor / (4 * extent**2), optics.scale)
        )
    )
