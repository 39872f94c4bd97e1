"""Ways to write the neural field that lost against the delivered one, for `neural_field.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cryofire.geometry.grids import interpolated
from cryofire.physics.projection import OVERSAMPLING, volumes_from_grid
from cryofire.volumes.neural_field import NeuralField
from cryofire.volumes.quadratic import MapQuadratic


class ConditionedField(nn.Module):
    """g(r, z) from one network that is given z; basis fields are g(r, 0) and g(r, e_j) - g(r, 0).

    z enters by concatenation to the features, or modulates the hidden layer: (1 + a(z)) · hidden + b(z).
    """

    def __init__(self, frame: NeuralField, modulated: bool) -> None:
        super().__init__()
        self.frame_index, self.box, self.modulated = frame.index, frame.box, modulated
        self.lattices = nn.ParameterList(nn.Parameter(one.detach().clone()) for one in frame.lattices)
        hidden, components = frame.settings.hidden, frame.count - 1
        self.coordinates = nn.Linear(frame.coordinates.in_features, hidden)
        self.conformation = nn.Linear(components, 2 * hidden if modulated else hidden, bias=False)
        self.residual = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, 1)

    def forward(self) -> Tensor:
        """Answers (voxel, coordinate)."""
        levels = [interpolated(one, self.box).flatten(1).index_select(1, self.frame_index) for one in self.lattices]
        first = self.coordinates(torch.cat(levels).T)
        components = self.conformation.in_features
        points = torch.cat([torch.zeros(1, components), torch.eye(components)])
        basis = torch.cat([self.answer(first, self.conformation(point)) for point in points], dim=1)
        return torch.cat([basis[:, :1], basis[:, 1:] - basis[:, :1]], dim=1)

    def answer(self, first: Tensor, conformation: Tensor) -> Tensor:
        """The answer g at one z."""
        if self.modulated:
            scale, offset = conformation.chunk(2)
            hidden = nn.functional.silu(first) * (1 + scale) + offset
        else:
            hidden = nn.functional.silu(first + conformation)
        return self.output(hidden + nn.functional.silu(self.residual(hidden)))


class LinearPyramid(nn.Module):
    """g as a sum of interpolated lattices with one value for each coordinate."""

    def __init__(self, frame: NeuralField) -> None:
        super().__init__()
        self.frame_index, self.box = frame.index, frame.box
        sizes = [one.shape[-1] for one in frame.lattices]
        self.lattices = nn.ParameterList(nn.Parameter(torch.zeros(frame.count, size, size, size)) for size in sizes)

    def forward(self) -> Tensor:
        """Answers (voxel, coordinate)."""
        levels = [interpolated(one, self.box).flatten(1) for one in self.lattices]
        return torch.stack(levels).sum(0).index_select(1, self.frame_index).T


class WaveField(nn.Module):
    """g = MLP(sin 2πf·r, cos 2πf·r), f random Gaussian frequencies reaching the largest shell."""

    def __init__(self, frame: NeuralField, features: int = 128, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        z, y, x = torch.unravel_index(frame.index, (frame.box,) * 3)
        points = (torch.stack([x, y, z], dim=1) - frame.box // 2) / frame.box
        frequencies = torch.randn(features, 3, generator=torch.Generator().manual_seed(0)) * frame.max_shell / 2
        phase = 2 * math.pi * points @ frequencies.T
        self.features = torch.cat([phase.sin(), phase.cos()], dim=1)
        self.coordinates = nn.Linear(2 * features, hidden)
        self.residual = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.output = nn.Linear(hidden, frame.count)

    def forward(self) -> Tensor:
        """Answers (voxel, coordinate)."""
        hidden = nn.functional.silu(self.coordinates(self.features))
        for layer in self.residual:
            hidden = hidden + nn.functional.silu(layer(hidden))
        return self.output(hidden)


class SpectrumField(nn.Module):
    """F_j(k) / A_j(|k|) = MLP(sin 2πk·r_f / n, cos 2πk·r_f / n), r_f random points of the support.

    Asked on the half k_x ≥ 0 of the oversampled grid of sums; the likelihood of a random point is weighted so that, on average,
    all shells count alike.
    """

    def __init__(
        self, frame: NeuralField, quadratic: MapQuadratic, features: int = 256, hidden: int = 256, layers: int = 3
    ) -> None:
        super().__init__()
        self.box, self.inside = frame.box, quadratic.weights > 0
        reach, count = quadratic.weights.shape[-1] - 1, frame.count
        z, y, x = self.inside.nonzero().unbind(1)
        self.points = torch.stack([x, y - reach, z - reach], dim=1).float() / OVERSAMPLING
        shells = quadratic.shells[self.inside]
        self.amplitude = frame.amplitude[:, shells].T.contiguous()
        densities = torch.zeros(len(self.points), count, count)
        pairs = [(a, b) for a in range(count) for b in range(a, count)]
        for density, (a, b) in zip(quadratic.densities, pairs, strict=True):
            densities[:, a, b] = densities[:, b, a] = density[self.inside]
        scale = self.amplitude[:, :, None] * self.amplitude[:, None]
        level = torch.zeros(int(shells.max()) + 1).index_add_(0, shells, (densities * scale)[:, 0, 0])
        weight = (quadratic.weights[self.inside] * (torch.bincount(shells) / level)[shells])[:, None]
        self.densities = densities * scale * weight[..., None]
        self.numerators = quadratic.numerators[:, self.inside].T * self.amplitude * weight
        generator = torch.Generator().manual_seed(0)
        direction = torch.nn.functional.normalize(torch.randn(features, 3, generator=generator), dim=1)
        distance = torch.rand(features, 1, generator=generator) ** (1 / 3)
        self.positions = 0.42 * frame.box * direction * distance
        self.coordinates = nn.Linear(2 * features, hidden)
        self.residual = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.output = nn.Linear(hidden, 2 * count)

    def forward(self, points: Tensor) -> Tensor:
        """Answers (point, coordinate), complex."""
        phase = (2 * math.pi / self.box) * points @ self.positions.T
        hidden = nn.functional.silu(self.coordinates(torch.cat([phase.sin(), phase.cos()], dim=1)))
        for layer in self.residual:
            hidden = hidden + nn.functional.silu(layer(hidden))
        return torch.view_as_complex(self.output(hidden).unflatten(1, (-1, 2)))

    def sampled_loss(self, count: int) -> Tensor:
        """Mean of the likelihood's terms over random points."""
        rows = torch.randint(len(self.points), (count,))
        answers = self(self.points[rows])
        applied = (self.densities[rows].to(answers.dtype) @ answers[..., None])[..., 0]
        return (answers.conj() * (applied - 2 * self.numerators[rows])).real.sum(1).mean()

    def maps(self) -> Tensor:
        """Densities, the plane k_x = 0 made Hermitian."""
        answers = torch.cat([self(piece) for piece in self.points.split(1 << 15)]) * self.amplitude
        grid = torch.zeros(answers.shape[1], *self.inside.shape, dtype=answers.dtype)
        grid[:, self.inside] = answers.T
        plane = grid[..., 0].clone()
        grid[..., 0] = 0.5 * (plane + plane.flip(1, 2).conj())
        return volumes_from_grid(grid, self.box)
