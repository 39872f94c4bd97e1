"""A coordinate network evaluated on the slice of every image: the decoder of the published recipe.

The spectrum of the density of conformation z at frequency k (cycles per box, n the box in pixels) is

    V(k, z) = a · MLP(γ(k), z),      γ(k) = (sin 2πk·r_f / n, cos 2πk·r_f / n),      r_f ~ N(0, (s n)²),

with fixed random positions r_f (random Gaussian Fourier features; Tancik et al. 2020), z concatenated to γ, residual layers and a
scalar amplitude a. Densities are real, so that the network is asked only on one half of space and conjugated on the other:
V(-k, z) = V(k, z)* holds exactly. Cost per image: one pass through the network for every coefficient, without any grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from cryofire.arrays import Volume
from cryofire.geometry.fourier import volume_from_spectrum
from cryofire.geometry.grids import HalfPlane, shell_map

CHUNK = 1 << 15
"""Frequencies evaluated at once when a whole volume is decoded."""


@dataclass(frozen=True)
class FieldShape:
    """Size of a slice field.

    Attributes
    ----------
    box : int
        Box n of the density in pixels.
    components : int
        Coordinates of z.
    hidden, layers : int
        Width of the network and number of its residual layers.
    features : int
        Number of random positions r_f.
    spread : float
        Their standard deviation s per axis, as a fraction of the box: about that of the density.
    """

    box: int
    components: int
    hidden: int = 256
    layers: int = 3
    features: int = 96
    spread: float = 0.2


class SliceField(nn.Module):
    """Spectrum of a density over (k, z) as a residual coordinate network.

    Parameters
    ----------
    shape : FieldShape
        Its size.
    amplitude : float
        The scalar a: typical modulus of the spectrum, so that the network's own output is of order 1.
    generator : torch.Generator
        Of the random positions and weights.
    """

    positions: Tensor
    amplitude: Tensor

    def __init__(self, shape: FieldShape, amplitude: float, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        positions = shape.spread * shape.box * torch.randn(shape.features, 3, generator=generator)
        self.register_buffer("positions", positions)
        self.register_buffer("amplitude", torch.tensor(float(amplitude)))
        self.coordinates = nn.Linear(2 * shape.features, shape.hidden)
        self.conformation = nn.Linear(shape.components, shape.hidden, bias=False)
        self.residual = nn.ModuleList(nn.Linear(shape.hidden, shape.hidden) for _ in range(shape.layers))
        self.output = nn.Linear(shape.hidden, 2)
        start_weights(self, generator)
        with torch.no_grad():
            self.output.weight.mul_(0.01)  # nothing is predicted before something is learnt

    def forward(
        self,
        rotations: Float[Tensor, "particle 3 3"],
        latents: Float[Tensor, "particle component"],
        plane: HalfPlane,
    ) -> Complex[Tensor, "particle coefficient"]:
        """Central sections S_i(k) = V(R_iᵀ (k_x, k_y, 0), z_i) on the half plane.

        Parameters
        ----------
        rotations : Float[Tensor, "particle 3 3"]
            R_i in r_image = R r_volume.
        latents : Float[Tensor, "particle component"]
            z_i.
        plane : HalfPlane
            Which coefficients; of the box of the field.
        """
        return self.spectrum(plane.frequencies.to(rotations) @ rotations[:, :2, :], latents)

    def spectrum(
        self, points: Float[Tensor, "particle point 3"], latents: Float[Tensor, "particle component"]
    ) -> Complex[Tensor, "particle point"]:
        """V(k, z_i) at frequencies k of each particle, (x, y, z) in cycles per box."""
        sign = canonical_sign(points)
        phase = (2 * math.pi / self.shape.box) * ((points * sign[..., None]) @ self.positions.T)
        features = torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1)
        with mixed_precision(points.device):
            hidden = torch.relu(self.coordinates(features) + self.conformation(latents)[:, None])
            for layer in self.residual:
                hidden = torch.relu(hidden + layer(hidden))
            output = self.output(hidden)
        real, imaginary = (self.amplitude * output.to(phase.dtype)).unbind(-1)
        return torch.complex(real, imaginary * sign)

    def volume(self, latent: Float[Tensor, " component"]) -> Volume:
        """Real zero-mean density of one conformation on the field's box, (z, y, x), from shells 1 … (n - 1) // 2."""
        box = self.shape.box
        shells = shell_map(box, 3)
        z, y, x = torch.nonzero((shells > 0) & (shells <= (box - 1) // 2)).to(self.positions.device).unbind(-1)
        points = torch.stack([x, y, z], dim=-1).to(self.positions) - box // 2
        spectrum = torch.zeros(box, box, box, dtype=torch.complex64, device=points.device)
        with torch.no_grad():
            pieces = [self.spectrum(piece[None], latent[None])[0] for piece in points.split(CHUNK)]
        spectrum[z, y, x] = torch.cat(pieces)
        return volume_from_spectrum(spectrum)


def canonical_sign(points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    """+1 on one half of space and -1 on the other: sign(-k) = -sign(k) for every k but 0, ties at x = 0 told by y, then z."""
    x, y, z = points.detach().unbind(-1)
    first = torch.where(x != 0, x, torch.where(y != 0, y, z))
    return torch.where(first < 0, -1.0, 1.0).to(points)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Context in which a network computes in bfloat16 on a GPU, and in the precision of its weights on a processor."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def start_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all linear and convolutional layers anew (He et al. 2015) and set their biases to zero, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
