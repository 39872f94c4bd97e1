"""Shape vocabulary: the axes every array of this package is made of.

Axis names: ``particle`` images of a batch, ``y x`` pixels, ``z y x`` voxels, ``coefficient`` half-plane Fourier coefficients
sorted by radius, ``component`` latent components, ``rotation`` members of a rotation set, ``shift`` members of a shift set.
"""

from __future__ import annotations

from jaxtyping import Complex, Float, Int
from torch import Tensor

Image = Float[Tensor, "*batch y x"]
Volume = Float[Tensor, "*batch z y x"]
ImageSpectrum = Complex[Tensor, "*batch y x"]
VolumeSpectrum = Complex[Tensor, "*batch z y x"]
Coefficients = Complex[Tensor, "*batch coefficient"]
Modulation = Float[Tensor, "*batch coefficient"]
Rotations = Float[Tensor, "*batch 3 3"]
Shifts = Float[Tensor, "*batch 2"]
Latents = Float[Tensor, "*batch component"]
Indices = Int[Tensor, "*batch"]
