"""The encoder: from an image and its CTF to a posterior over pose and conformation, in one pass without a search.

An equivariant network in two parts. The coarse part correlates the polar image with the decoder's sections
(`section_bank`), for all in-plane angles at once, and a small residual network turns the correlations of a cell's
angle into logits of cells: turning the image only shifts them. The fine part looks at one cell: from the linearised
image model of the cell it takes the Gauss–Newton steps over a few resolution bands with their uncertainties as
features, and a network fuses them into mean and precision of (rotation, shift, latent).

An image passes through in three looks: a glance, whose shift centres the particle; a look at the best cells of the
centred image; and a last one about each pose that was found.

Weights are learnt (`inference.teaching`); the banks follow the decoder, so that the encoder sees whatever the decoder
has learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cryofire.arrays import Coefficients, Rotations, Shifts
from cryofire.config import EncoderSettings
from cryofire.geometry.rotations import geodesic_angle, rotation_from_vector, vector_from_rotation
from cryofire.geometry.so3_grid import shift_disc
from cryofire.inference.polar import PolarGrid, filtered, polar_grid
from cryofire.inference.polish import CONTRAST, LATENT, POSE
from cryofire.inference.posterior import Posterior
from cryofire.inference.section_bank import (
    CoarseBank,
    FineBank,
    bank_grid,
    coarse_bank,
    fine_bank,
    in_plane_rotations,
    residual_descent,
    turned_shifts,
)
from cryofire.physics.devices import CPU
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.shift import phase_ramp

SEPARATION = 0.35
"""Modes are at least this far apart, radians."""
SAME = 0.15
"""Modes that end within this of each other are one, radians."""
CELL_STD = 0.12
"""Prior deviation of the rotation from the centre of a cell, radians."""
CONTRAST_STD = 0.1
EMBEDDING = 16
LOOKS = 3
GLANCED_STDS, GLANCED_PHASE = 2.0, 1.6
"""Glances reach this many deviations of the shifts, in steps that turn the phase at their resolution by so many radians."""
GLANCE_WEIGHT = 0.5
"""Temperature of a glance: cells are wider than the peak of the likelihood."""
RANKED = 32
"""Best cells among which modes are looked for."""


@dataclass(frozen=True)
class Sight:
    """What the encoder sees of some images.

    Attributes
    ----------
    coefficients : Complex[Tensor, "particle coefficient"]
        Filtered by the CTF, particle at the first guess of its centre.
    power : Float[Tensor, "particle radius"]
        Squared whitened CTF averaged over each shell.
    """

    coefficients: Coefficients
    power: Float[Tensor, "particle radius"]

    def take(self, rows: Tensor) -> Sight:
        """Some of the images."""
        return Sight(self.coefficients[rows], self.power[rows])


@dataclass(frozen=True)
class LocalPosterior:
    """Gaussian over (rotation tangent, shift, latent) in the frame of a cell, in the encoder's units.

    Attributes
    ----------
    direction, turn : Int[Tensor, "particle"]
        The cell.
    mean : Float[Tensor, "particle parameter"]
    factor : Float[Tensor, "particle parameter parameter"]
        Lower Cholesky factor of the precision.
    score : Float[Tensor, "particle"]
        Logit of this being the right mode.
    """

    direction: Int[Tensor, " particle"]
    turn: Int[Tensor, " particle"]
    mean: Float[Tensor, "particle parameter"]
    factor: Float[Tensor, "particle parameter parameter"]
    score: Float[Tensor, " particle"]


@dataclass(frozen=True)
class Banks:
    """What the encoder knows of the decoder: a bank for each look."""

    glance: CoarseBank
    coarse: CoarseBank
    fine: FineBank

    def on(self, device: torch.device) -> Banks:
        """The same on a device."""
        return Banks(self.glance.on(device), self.coarse.on(device), self.fine.on(device))


class PositionBlock(nn.Module):
    """Residual block of two linear layers applied at every position, starting as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Values plus what the block adds."""
        return values + self.down(nn.functional.gelu(self.up(self.norm(values))))


class PoseEncoder(nn.Module):
    """Encoder of images of one box for one decoder.

    Parameters
    ----------
    settings : EncoderSettings
    box : int
        Working box.
    components : int
        Latent components.
    shift_std_px : float
        Expected deviation of the true shifts from the first guesses of the centres.
    """

    units: Tensor
    precision: Tensor
    usual_power: Tensor

    def __init__(self, settings: EncoderSettings, box: int, components: int, shift_std_px: float) -> None:
        super().__init__()
        self.settings, self.box, self.components = settings, box, components
        self.shift_std_px = shift_std_px
        self.max_shell = min(settings.max_shell, (box - 1) // 2)
        self.polar: PolarGrid = polar_grid(box, self.max_shell, settings.angles)
        self.bands = tuple(sorted({max(round(part * self.max_shell), 2) for part in (0.375, 0.625, 1.0)}))
        self.coarse_bands = self.bands[-2:]
        low = self.coarse_bands[0]
        self.low_polar = polar_grid(box, low, 2 * settings.glance_turns)
        reach = GLANCED_STDS * shift_std_px
        self.glanced_shifts = shift_disc(reach, min(GLANCED_PHASE * box / (2 * math.pi * low), reach))
        self.banks: Banks | None = None
        size, outputs = LATENT + components, POSE + components
        units = [0.05] * 3 + [0.5] * 2 + [0.2] + [1.0] * components
        priors = [CELL_STD] * 3 + [shift_std_px] * 2 + [CONTRAST_STD] + [1.0] * components
        self.register_buffer("units", torch.tensor(units))
        self.register_buffer("precision", torch.tensor(priors) ** -2)
        self.register_buffer("usual_power", torch.ones(self.max_shell))
        self._build_coarse(settings)
        features = len(self.bands) * (2 * size + 1) + self.max_shell + EMBEDDING + LOOKS
        self.embedding = nn.Embedding(settings.fine_directions, EMBEDDING)
        hidden = settings.hidden
        last = nn.Linear(hidden, (len(self.bands) + 1) * outputs + outputs * (outputs + 1) // 2 + 1)
        nn.init.normal_(last.weight, std=0.05 / math.sqrt(hidden))
        self.head = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.LayerNorm(hidden),
            nn.Linear(hidden, hidden), nn.GELU(), nn.LayerNorm(hidden), last,
        )  # fmt: skip

    def _build_coarse(self, settings: EncoderSettings) -> None:
        width, seen = settings.width, settings.directions * len(self.coarse_bands)
        self.band_weights = nn.Parameter(torch.tensor([0.5, 0.1])[: len(self.coarse_bands)].clone())
        self.coarse_norm = nn.LayerNorm(seen)
        self.coarse_in = nn.Linear(seen, width)
        self.optics_in = nn.Linear(self.max_shell, width)
        self.blocks = nn.ModuleList([PositionBlock(width) for _ in range(settings.blocks)])
        last = nn.Linear(width, settings.directions)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.coarse_out = nn.Sequential(nn.LayerNorm(width), last)

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self.units.device

    def on(self, device: torch.device) -> PoseEncoder:
        """The encoder itself, at work on a device from now on."""
        self.to(device)
        self.polar, self.low_polar = self.polar.on(device), self.low_polar.on(device)
        self.glanced_shifts = self.glanced_shifts.to(device)
        self.banks = None if self.banks is None else self.banks.on(device)
        return self

    def look_at(self, maps: Float[Tensor, "coordinate z y x"]) -> None:
        """Cut the banks from the decoder's maps (the mean, then the components), on the working box."""
        grid = bank_grid(maps, self.polar)
        wanted = self.settings
        polar, low_polar = self.polar.on(CPU), self.low_polar.on(CPU)
        banks = Banks(
            coarse_bank(grid, low_polar, wanted.glance_directions, wanted.glance_turns, self.coarse_bands[:1]),
            coarse_bank(grid, polar, wanted.directions, wanted.turns, self.coarse_bands),
            fine_bank(grid, polar, wanted.fine_directions),
        )
        self.banks = banks.on(self.device)

    def _bank(self) -> Banks:
        if self.banks is None:
            raise RuntimeError("the encoder has not looked at a decoder yet: call look_at")
        return self.banks

    def see(self, batch: ImageBatch, centres_px: Shifts) -> Sight:
        """What the encoder sees of whitened images, where it works."""
        low = (batch if batch.plane.max_shell == self.max_shell else batch.truncated(self.max_shell)).on(self.device)
        return Sight(filtered(low, centres_px.to(self.device)), low.plane.shell_mean(low.modulation.square())[:, 1:])

    def polar_images(self, sight: Sight, shifts_px: Shifts) -> Float[Tensor, "particle radius angle"]:
        """Polar images with the particle moved back by a shift."""
        ramp = phase_ramp(shifts_px, self.polar.plane.frequencies, self.box).conj()
        return self.polar.transform(sight.coefficients * ramp)

    def cell_logits(self, images: Tensor, power: Tensor) -> Float[Tensor, "particle cell"]:
        """Logits of the cells of the coarse grid, cell = turn · directions + direction."""
        table = self._bank().coarse.log_likelihoods(images, power)
        direct = torch.einsum("b,tnbd->tnd", self.band_weights, table.unflatten(2, (len(self.coarse_bands), -1)))
        values = self.coarse_in(self.coarse_norm(table)) + self.optics_in((power / self.usual_power).sqrt())
        for block in self.blocks:
            values = block(values)
        return (direct + self.coarse_out(values)).transpose(0, 1).flatten(1)

    def coarse_cell(self, rotations: Rotations) -> Int[Tensor, " particle"]:
        """Cell of the coarse grid that rotations belong to."""
        direction, turn = self._bank().coarse.views.nearest(rotations, self.settings.turns)
        return turn * self.settings.directions + direction

    def modes(self, logits: Float[Tensor, "particle cell"], count: int) -> Float[Tensor, "particle mode 3 3"]:
        """Rotations of the best cells that are far from each other, best first."""
        value, cell = logits.topk(min(RANKED, logits.shape[1]))
        directions = self.settings.directions
        views = self._bank().coarse.views
        turn, direction = (cell // directions).flatten(), (cell % directions).flatten()
        rotations = views.rotations(direction, turn, self.settings.turns).unflatten(0, cell.shape)
        image = torch.arange(len(cell), device=cell.device)
        chosen = []
        for _ in range(count):
            best = rotations[image, value.argmax(1)]
            chosen.append(best)
            near = geodesic_angle(rotations, best[:, None]) < SEPARATION
            value = value.masked_fill(near, -math.inf)
        return torch.stack(chosen, dim=1)

    def local(
        self, images: Float[Tensor, "particle radius angle"], power: Tensor, rotations: Rotations, look: int
    ) -> LocalPosterior:
        """Posterior about the cells nearest to some rotations; `look` says which of the three looks this is."""
        bank = self._bank().fine
        direction, turn = bank.views.nearest(rotations, self.settings.angles)
        data, products = bank.normal_equations(images, power, direction, turn, self.bands)
        descent = residual_descent(data, products)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(data + torch.diag(self.precision)))
        step = (covariance @ descent[..., None])[..., 0]
        deviation = covariance.diagonal(dim1=2, dim2=3).sqrt()
        gain = (descent * step).sum(-1)
        seen = [
            (step / self.units).clamp(-5, 5).flatten(1), (deviation / self.units).log().flatten(1),
            0.3 * gain.clamp_min(1e-3).log(), (power / self.usual_power).sqrt(), self.embedding(direction),
            torch.eye(LOOKS, device=self.device)[look].expand(len(images), -1),
        ]  # fmt: skip
        likelihood = products[:, -1, CONTRAST] - 0.5 * data[:, -1, CONTRAST, CONTRAST] + 0.5 * gain[:, -1]
        return self._fused(self.head(torch.cat(seen, dim=1)), step, likelihood, direction, turn)

    def _fused(self, out: Tensor, step: Tensor, likelihood: Tensor, direction: Tensor, turn: Tensor) -> LocalPosterior:
        kept = [*range(POSE), *range(LATENT, LATENT + self.components)]
        size, bands = len(kept), len(self.bands)
        gate, offset, factor, score = out.split([bands * size, size, size * (size + 1) // 2, 1], dim=1)
        steps = (step[..., kept] / self.units[kept]).clamp(-6, 6)
        mean = (gate.unflatten(1, (bands, size)).softmax(1) * steps).sum(1) + offset
        return LocalPosterior(direction, turn, mean, precision_factor(factor, size), likelihood + score[:, 0])

    def pose(self, found: LocalPosterior) -> tuple[Rotations, Shifts, Tensor]:
        """Mean rotation, shift (relative to where the image was looked at) and latent."""
        values = found.mean * self._kept_units()
        bank = self._bank().fine
        angles = found.turn * (2 * math.pi / self.settings.angles)
        cells = bank.views.frames[found.direction]
        rotations = in_plane_rotations(angles) @ rotation_from_vector(values[:, :3]) @ cells
        return rotations, turned_shifts(values[:, 3:POSE], angles), values[:, POSE:]

    def negative_log_density(
        self, found: LocalPosterior, rotations: Rotations, shifts_px: Shifts, latents: Tensor
    ) -> Float[Tensor, " particle"]:
        """-log density of poses (shifts relative to where the images were looked at) and latents, up to a constant."""
        bank = self._bank().fine
        angles = found.turn * (2 * math.pi / self.settings.angles)
        back = in_plane_rotations(-angles)
        tangent = vector_from_rotation(back @ rotations @ bank.views.frames[found.direction].transpose(1, 2))
        values = torch.cat([tangent, turned_shifts(shifts_px, -angles), latents], dim=1) / self._kept_units()
        whitened = (found.factor.transpose(1, 2) @ (values - found.mean)[..., None])[..., 0]
        return 0.5 * whitened.square().sum(1) - found.factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def covariance(self, found: LocalPosterior) -> Float[Tensor, "particle parameter parameter"]:
        """Covariance of (rotation tangent, shift, latent) in the frame of the image, radians and pixels."""
        units = self._kept_units()
        local = torch.cholesky_inverse(found.factor) * units[:, None] * units
        turn = torch.eye(len(units), device=units.device).repeat(len(local), 1, 1)
        turn[:, :3, :3] = in_plane_rotations(found.turn * (2 * math.pi / self.settings.angles))
        turn[:, 3:POSE, 3:POSE] = turn[:, :2, :2]
        return turn @ local @ turn.transpose(1, 2)

    def _kept_units(self) -> Tensor:
        return torch.cat([self.units[:POSE], self.units[LATENT:]])

    def glance(self, sight: Sight) -> tuple[LocalPosterior, Shifts]:
        """Posterior about the best cell and shift of a low-resolution view, and the shift at which the image was looked at."""
        cell, moved = self.best_at_low_resolution(sight)
        views = self._bank().glance.views
        turn, direction = cell // len(views), cell % len(views)
        rotations = views.rotations(direction, turn, self.settings.glance_turns)
        return self.local(self.polar_images(sight, moved), sight.power, rotations, 0), moved

    @torch.no_grad()
    def best_at_low_resolution(self, sight: Sight) -> tuple[Int[Tensor, " particle"], Shifts]:
        """Cell and shift with the highest posterior at low resolution."""
        plane = self.low_polar.plane
        low, power = sight.coefficients[:, : len(plane)], sight.power[:, : plane.max_shell]
        best = power.new_full((len(low),), -math.inf)
        cell, moved = best.new_zeros(len(low), dtype=torch.long), best.new_zeros(len(low), 2)
        for shift in self.glanced_shifts:
            ramp = phase_ramp(shift[None], plane.frequencies, self.box).conj()
            table = self._bank().glance.log_likelihoods(self.low_polar.transform(low * ramp), power)
            value, here = table.transpose(0, 1).flatten(1).max(1)
            value = GLANCE_WEIGHT * value - 0.5 * shift.square().sum() / self.shift_std_px**2
            better = value > best
            best, cell = torch.where(better, value, best), torch.where(better, here, cell)
            moved = torch.where(better[:, None], shift, moved)
        return cell, moved

    def centred(self, sight: Sight) -> Shifts:
        """Shift that a glance gives each particle."""
        found, moved = self.glance(sight)
        return moved + self.pose(found)[1]

    @torch.no_grad()
    def posterior(self, batch: ImageBatch, centres_px: Shifts) -> Posterior:
        """Posterior of whitened images, modes in order of falling weight; shifts include the first guesses of the centres.

        Images may lie on any device; the posterior is on the CPU.
        """
        sight = self.see(batch, centres_px)
        moved = self.centred(sight)
        images = self.polar_images(sight, moved)
        count, modes = len(moved), self.settings.modes
        every = torch.arange(count, device=moved.device).repeat_interleave(modes)
        proposed = self.modes(self.cell_logits(images, sight.power), modes).flatten(0, 1)
        rotations, shifts, _ = self.pose(self.local(images[every], sight.power[every], proposed, 1))
        shifts = shifts + moved[every]
        found = self.local(self.polar_images(sight.take(every), shifts), sight.power[every], rotations, 2)
        return self._sorted(found, shifts + centres_px.to(self.device)[every], modes).on(CPU)

    def _sorted(self, found: LocalPosterior, looked_at: Shifts, modes: int) -> Posterior:
        """Modes of each image in order of falling weight, each counted once."""
        score, order = found.score.unflatten(0, (-1, modes)).sort(dim=1, descending=True)
        picked = order + modes * torch.arange(len(order), device=order.device)[:, None]
        rotations, moved, latents = self.pose(found)
        rotations, shifts, latents, covariance = (
            values[picked] for values in (rotations, looked_at + moved, latents, self.covariance(found))
        )
        weights = score.masked_fill(repeated(rotations), -math.inf).softmax(1)
        return Posterior(weights, rotations, shifts, latents, covariance)


def repeated(rotations: Float[Tensor, "particle mode 3 3"]) -> Bool[Tensor, "particle mode"]:
    """Which modes ended where an earlier one did."""
    near = geodesic_angle(rotations[:, :, None], rotations[:, None]) < SAME
    return near.tril(-1).any(2)


def precision_factor(values: Float[Tensor, "particle entry"], size: int) -> Float[Tensor, "particle row column"]:
    """Lower triangular matrices with a positive diagonal."""
    matrix = values.new_zeros(len(values), size, size)
    row, column = torch.tril_indices(size, size)
    matrix[:, row, column] = values
    diagonal = nn.functional.softplus(matrix.diagonal(dim1=1, dim2=2) + 1.0) + 0.02
    return torch.tril(matrix, -1) + torch.diag_embed(diagonal)
