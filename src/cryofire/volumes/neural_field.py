"""The implicit neural representation of the conformational space.

    V(k, z) = Σ_j c_j(z) F_j(k),   c(z) = (1, z),   F_j = transform of V_j(r) = m(r) (A_j * g_j + d_j)(r)

with g = MLP(h(r)) a coordinate network that answers for all coordinates j at once, h(r) learnt features interpolated linearly in a
pyramid of lattices (each twice as fine as the one before, up to the voxels; compare Müller et al. 2022), m a soft spherical support
outside of which g is zero, and A_j * a filter by the amplitude expected in each shell. Amplitudes of maps fall by orders of
magnitude with |k|; divided by A the network's answer has the same size at every resolution, and all shells are learnt alike. V is
real, so F is Hermitian by construction. The voxels d_j are a linear skip past the network: what the images say of a low shell, to
one part in thousands, a network learns in minutes and a linear system gives in seconds (`inference.field_fit`).

The network speaks in real space although the data live in Fourier space: because all images enter through sums on a grid
(`volumes.quadratic`), one transform of the whole field replaces evaluations along the slices, and features are local where the
density is local. At the centres of voxels the interpolation of a lattice is separable: three small matrix products.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cryofire.config import FieldSettings
from cryofire.geometry.fourier import half_volume_spectrum, resample, shells_scaled
from cryofire.geometry.grids import interpolated
from cryofire.volumes.masks import soft_sphere

EDGE = 0.06
"""Width of the support's soft edge as a fraction of the box."""

CHUNK = 1 << 17
"""Voxels that pass through the network at once: about 64 bytes of memory for each and each unit of width."""

START_SIZE = 0.1
"""Standard deviation of features before they have learnt anything."""


class NeuralField(nn.Module):
    """Basis densities of a latent space as a coordinate network.

    Parameters
    ----------
    settings : FieldSettings
        Its size.
    box : int
        Box n in voxels.
    amplitude : Float[Tensor, "coordinate shell"]
        A_j for the shells 0 … max_shell; the field has nothing beyond.
    generator : torch.Generator
        Of the first weights.

    Attributes
    ----------
    amplitude : Float[Tensor, "coordinate shell"]
        A.
    voxels : Float[Tensor, "coordinate z y x"]
        d, zero until `complete`.
    support : Float[Tensor, "z y x"]
        m, the soft sphere that the density is confined to.
    index : Int[Tensor, "voxel"]
        Flat indices of the voxels in it, at which the network is asked.
    """

    amplitude: Tensor
    support: Tensor
    index: Tensor

    def __init__(
        self,
        settings: FieldSettings,
        box: int,
        amplitude: Float[Tensor, "coordinate shell"],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.settings, self.box = settings, box
        self.register_buffer("amplitude", amplitude.clone())
        support = soft_sphere(box, settings.radius * box, EDGE * box)
        self.register_buffer("support", support, persistent=False)
        self.register_buffer("index", (support > 0).flatten().nonzero()[:, 0], persistent=False)
        sizes, features = lattice_sizes(box, settings.coarsest), settings.features * amplitude.shape[0]
        self.lattices = nn.ParameterList(
            START_SIZE * torch.randn(features, size, size, size, generator=generator) for size in sizes
        )
        self.voxels = nn.Parameter(torch.zeros(amplitude.shape[0], box, box, box))
        self.coordinates = nn.Linear(features * len(sizes), settings.hidden)
        self.residual = nn.ModuleList(nn.Linear(settings.hidden, settings.hidden) for _ in range(settings.layers))
        self.output = nn.Linear(settings.hidden, amplitude.shape[0])
        self._start(generator)

    def _start(self, generator: torch.Generator) -> None:
        for layer in [self.coordinates, *self.residual, self.output]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
                nn.init.zeros_(layer.bias)

    @property
    def count(self) -> int:
        """Number of coordinates, latent components plus one."""
        return int(self.amplitude.shape[0])

    @property
    def max_shell(self) -> int:
        """Largest shell of the field."""
        return int(self.amplitude.shape[1]) - 1

    def forward(self) -> Float[Tensor, "voxel coordinate"]:
        """Answers g of the network at the voxels of the support, in the order of `index`."""
        pyramid = [interpolated(lattice, self.box).flatten(1) for lattice in self.lattices]
        features = torch.cat([level.index_select(1, self.index) for level in pyramid]).T
        pieces = features.split(CHUNK)
        if len(pieces) == 1 or not torch.is_grad_enabled():
            return torch.cat([self.answer(piece) for piece in pieces])
        return torch.cat([checkpoint(self.answer, piece, use_reentrant=False) for piece in pieces])

    def answer(self, features: Float[Tensor, "voxel feature"]) -> Float[Tensor, "voxel coordinate"]:
        """MLP(h)."""
        hidden = nn.functional.silu(self.coordinates(features))
        for layer in self.residual:
            hidden = hidden + nn.functional.silu(layer(hidden))
        return self.output(hidden)

    def filtered(self, answers: Float[Tensor, "voxel coordinate"]) -> Float[Tensor, "coordinate z y x"]:
        """A * g for answers of the network."""
        volume = answers.new_zeros(answers.shape[1], self.box**3)
        volume = volume.index_copy(1, self.index, answers.T).unflatten(1, (self.box,) * 3)
        return shells_scaled(volume, self.amplitude)

    def whitened(self, maps: Float[Tensor, "coordinate z y x"]) -> Float[Tensor, "voxel coordinate"]:
        """Answers g whose A * g are these densities, but for what leaks out of the support."""
        white = shells_scaled(maps, 1 / self.amplitude)
        return white.flatten(1).index_select(1, self.index).T.contiguous()

    def complete(self, maps: Float[Tensor, "coordinate z y x"]) -> None:
        """Choose the voxels d such that the field is m times these densities, whatever the network answers."""
        with torch.no_grad():
            self.voxels.copy_((maps - self.filtered(self())) * (self.support > 0))

    def maps(self, box: int | None = None) -> Float[Tensor, "coordinate z y x"]:
        """Basis densities V_j on the field's box, or on a smaller one with the same field of view."""
        volumes = self.support * (self.filtered(self()) + self.voxels)
        if box is None or box == self.box:
            return volumes
        return resample(volumes, box, 3)

    def spectrum(self) -> Complex[Tensor, "coordinate kz ky kx"]:
        """F_j on the half grid |k| ≤ max_shell, k_x ≥ 0, zero frequency at (max_shell, max_shell, 0)."""
        return half_volume_spectrum(self.maps(), self.box, self.max_shell)


def expected_amplitude(
    precision: Float[Tensor, "coordinate shell"], settings: FieldSettings, box: int
) -> Float[Tensor, "coordinate shell"]:
    """A_j(s) = (M P_j(s))^(-½): the prior's amplitude for white answers of variance 1 at the M voxels of the support."""
    support = soft_sphere(box, settings.radius * box, EDGE * box)
    amplitude = (precision * (support > 0).sum()).rsqrt()
    amplitude[:, 0] = amplitude[:, 1]
    return amplitude


def lattice_sizes(box: int, coarsest: int) -> list[int]:
    """Points along an axis of each lattice: `coarsest`, doubling, and the box itself at last."""
    sizes = [min(coarsest, box)]
    while sizes[-1] < box:
        sizes.append(min(2 * sizes[-1], box))
    return sizes
