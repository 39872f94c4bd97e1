"""Pose and conformation of images that a model has never seen: one pass of the encoder, and polish by Gauss–Newton steps.

The encoder's posterior says how certain each pose is. Polish starts at the shell where one standard deviation of the rotation moves
the rim of the particle by about one coefficient, so that the quadratic expansion holds, and ends at the resolution of the model. Of
several modes the one with the highest evidence, -φ - ½ log det H, is kept; the others widen the stated uncertainty.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from cryofire.arrays import Latents, Rotations, Shifts
from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference.linear_model import predicted
from cryofire.inference.map_noise import MapNoise
from cryofire.inference.new_images import Piece
from cryofire.inference.polish import (
    LATENT,
    POSE,
    Expansion,
    ImageStates,
    Priors,
    best_contrast,
    newton_step,
    polish,
    posterior_covariance,
)
from cryofire.inference.posterior import Posterior
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.projection import SpectrumGrid, spectrum_grid

LEAST_WEIGHT = 0.005
"""Modes of the encoder below this weight are not polished."""
FIRST_SHELL = 6
SMALL_STEP = 0.6
"""Last steps that move the edge of the resolution by less, in coefficients, and the image by less, in pixels, are taken unseen."""
AHEAD = 2
"""Pieces that are read and whitened while another is being encoded."""


class Encoder(Protocol):
    """What is asked of an encoder."""

    @property
    def max_shell(self) -> int:
        """Largest shell it looks at."""

    def posterior(self, batch: ImageBatch, centres_px: Shifts) -> Posterior:
        """Posterior of whitened images whose shifts are expected at `centres_px`; shifts in the result are absolute."""


@dataclass(frozen=True)
class Decoder:
    """Linear-in-coordinates decoder V(z) = V_0 + Σ_j z_j V_j with what is believed of an image before it is seen.

    Attributes
    ----------
    maps : Float[Tensor, "coordinate z y x"]
    priors : Priors
        Of shift, contrast and latents.
    max_shell : int
        Resolution limit of the model.
    radius : float
        Radius of the particle as a fraction of half the box.
    noise : MapNoise, optional
        What the noise of the maps adds to every covariance.
    """

    maps: Float[Tensor, "coordinate z y x"]
    priors: Priors
    max_shell: int
    radius: float
    noise: MapNoise | None = None
    _grids: dict[int, SpectrumGrid] = field(default_factory=dict, repr=False, compare=False)

    def noise_variance(self, latents: Latents) -> Float[Tensor, "*image parameter"]:
        """Variance that the noise of the maps adds to (rotation tangent, shift, contrast, latent)."""
        if self.noise is None:
            return torch.zeros(*latents.shape[:-1], LATENT + latents.shape[-1])
        return self.noise.variance(latents)

    def spectrum(self, max_shell: int) -> SpectrumGrid:
        """Spectra of the maps up to a shell, made once."""
        if max_shell not in self._grids:
            self._grids[max_shell] = spectrum_grid(self.maps, max_shell)
        return self._grids[max_shell]


@dataclass(frozen=True)
class Encoded:
    """What was inferred of some images.

    Attributes
    ----------
    states : ImageStates
        Of the best mode.
    rotation_std, shift_std_px : Float[Tensor, "particle"]
        Root mean square over all modes about the best one: of the rotation angle, radians; of a shift coordinate, pixels.
    latent_std : Float[Tensor, "particle component"]
        The same for each latent.
    log_likelihood : Float[Tensor, "particle"]
        Minus the misfit up to the resolution limit of the model.
    """

    states: ImageStates
    rotation_std: Float[Tensor, " particle"]
    shift_std_px: Float[Tensor, " particle"]
    latent_std: Latents
    log_likelihood: Float[Tensor, " particle"]


def encode_piece(piece: Piece, encoder: Encoder, decoder: Decoder, steps: int) -> Encoded:
    """Pose, latent and uncertainties of some images.

    Parameters
    ----------
    piece : Piece
        Whitened images with their expected shifts.
    encoder : PoseEncoder
    decoder : Decoder
    steps : int
        Gauss–Newton steps; 0 returns what the encoder says, with contrast and likelihood of its best mode.
    """
    posterior = encoder.posterior(piece.batch.truncated(encoder.max_shell), piece.centres_px)
    batch = piece.batch.truncated(min(decoder.max_shell, piece.reach))
    if steps > 0:
        return polish_modes(batch, posterior, decoder, steps)
    states, misfit = with_contrast(batch, decoder, posterior.states())
    added = decoder.noise_variance(posterior.latents)[..., _kept(posterior.covariance.shape[-1] + 1)]
    noisy = replace(posterior, covariance=posterior.covariance + torch.diag_embed(added))
    return Encoded(states, *_mixture_deviations(noisy, states), -misfit)


def with_contrast(
    batch: ImageBatch, decoder: Decoder, states: ImageStates
) -> tuple[ImageStates, Float[Tensor, " particle"]]:
    """Best contrast of each image at fixed pose and latent, under its prior, and the misfit there."""
    expected = predicted(batch, decoder.spectrum(batch.plane.max_shell), states)
    overlap, power = (expected.conj() * batch.data).real.sum(1), expected.abs().square().sum(1)
    contrast = best_contrast(overlap, power, decoder.priors.contrast_std)
    misfit = batch.data.abs().square().sum(1) - 2 * contrast * overlap + contrast.square() * power
    return replace(states, contrast=states.contrast * contrast), misfit


def polish_modes(batch: ImageBatch, posterior: Posterior, decoder: Decoder, steps: int) -> Encoded:
    """Every likely mode after some Gauss–Newton steps, summed up about the best.

    Parameters
    ----------
    batch : ImageBatch
        Up to the resolution limit.
    posterior : Posterior
        Where the steps start.
    decoder : Decoder
    steps : int
        At least 1.
    """
    count, modes = posterior.weights.shape
    size = LATENT + posterior.latents.shape[-1]
    evidence = torch.full((count, modes), -torch.inf)
    covariance = torch.zeros(count, modes, size, size)
    misfit = torch.zeros(count, modes)
    states = [posterior.states(mode).take(torch.arange(count)) for mode in range(modes)]  # copies: they are overwritten
    for mode in range(modes):
        mine = posterior.weights[:, mode] > LEAST_WEIGHT if mode else torch.ones(count, dtype=torch.bool)
        for rows, shell in _by_first_shell(posterior, mode, mine, batch.plane.max_shell, decoder.radius):
            found = _polished(batch.take(rows), states[mode].take(rows), decoder, _shells(shell, batch, steps))
            states[mode].put(rows, found.states)
            covariance[rows, mode], misfit[rows, mode] = found.covariance, found.misfit
            evidence[rows, mode] = found.evidence
    order = evidence.argsort(dim=1, descending=True)
    return _summed_up(states, evidence.softmax(1), covariance, misfit, order)


@dataclass(frozen=True)
class _Polished:
    states: ImageStates
    covariance: Float[Tensor, "particle parameter parameter"]
    misfit: Float[Tensor, " particle"]
    evidence: Float[Tensor, " particle"]


def _polished(batch: ImageBatch, states: ImageStates, decoder: Decoder, shells: tuple[int, ...]) -> _Polished:
    for shell in shells:
        found = polish(batch.truncated(shell), decoder.spectrum(shell), states, decoder.priors, steps=1)
        states = found.states
    states, expansion, remaining = _last_step(states, found.expansion, shells[-1])
    covariance = posterior_covariance(expansion)
    evidence = -expansion.value + 0.5 * torch.linalg.slogdet(covariance).logabsdet
    added = torch.diag_embed(decoder.noise_variance(states.latents)) + remaining[:, :, None] * remaining[:, None, :]
    return _Polished(states, covariance + added, expansion.misfit, evidence)


def _last_step(states: ImageStates, expansion: Expansion, shell: int) -> tuple[ImageStates, Expansion, Tensor]:
    """One step more where it is so small that the expansion at hand vouches for it; else what it would have been.

    The value and the misfit are those that the expansion predicts.
    """
    step = newton_step(expansion, torch.zeros(len(states)), shell)
    is_small = (step[:, :3].norm(dim=1) * shell < SMALL_STEP) & (step[:, 3:POSE].norm(dim=1) < SMALL_STEP)
    taken = step * is_small[:, None]
    gain = 0.5 * (taken * expansion.descent).sum(1)
    better = replace(expansion, value=expansion.value - gain, misfit=expansion.misfit - gain)
    return states.moved(taken), better, step - taken


def _shells(first: int, batch: ImageBatch, steps: int) -> tuple[int, ...]:
    """Resolution limit of each step: geometric from the first to that of the batch."""
    last = batch.plane.max_shell
    if steps == 1:
        return (last,)
    return tuple(round(first * (last / first) ** (step / (steps - 1))) for step in range(steps))


def _by_first_shell(
    posterior: Posterior, mode: int, mine: Tensor, last: int, radius: float
) -> Iterator[tuple[Tensor, int]]:
    """Rows of images that start at the same shell: where one deviation of the rotation moves the rim by one coefficient."""
    turn = posterior.deviations(mode)[:, :3].square().sum(1).sqrt()
    wanted = 1 / (turn * radius).clamp_min(1e-6)
    levels = _levels(last)
    level = torch.bucketize(wanted, torch.tensor([float(shell) for shell in levels]), right=True) - 1
    for index, shell in enumerate(levels):
        rows = (mine & (level.clamp_min(0) == index)).nonzero()[:, 0]
        if len(rows):
            yield rows, shell


def _levels(last: int) -> list[int]:
    """First shells that a polish may start at: the last one divided by powers of √2, and not below `FIRST_SHELL`."""
    found = {max(round(last / 2 ** (0.5 * power)), min(FIRST_SHELL, last)) for power in range(6)}
    return sorted(found)


def _summed_up(
    states: list[ImageStates], weights: Tensor, covariance: Tensor, misfit: Tensor, order: Tensor
) -> Encoded:
    """The best mode, and deviations of the whole mixture about it."""
    image = torch.arange(len(order))[:, None]
    keep = _kept(covariance.shape[-1])
    rotations, shifts, latents, contrast = (
        torch.stack([getattr(state, name) for state in states], dim=1)[image, order]
        for name in ("rotations", "shifts_px", "latents", "contrast")
    )
    narrowed = covariance[..., keep, :][..., keep][image, order]
    posterior = Posterior(weights.gather(1, order), rotations, shifts, latents, narrowed)
    best = replace(posterior.states(), contrast=contrast[:, 0])
    return Encoded(best, *_mixture_deviations(posterior, best), -misfit.gather(1, order)[:, 0])


def _kept(size: int) -> Tensor:
    """Indices of all parameters but the contrast."""
    return torch.cat([torch.arange(POSE), torch.arange(LATENT, size)])


def _mixture_deviations(posterior: Posterior, best: ImageStates) -> tuple[Tensor, Tensor, Tensor]:
    """Root mean squares of rotation angle, shift coordinate and latents over the mixture, about the best mode."""
    variance = posterior.covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    turned = _angles(posterior.rotations, best.rotations).square()
    moved = (posterior.shifts_px - best.shifts_px[:, None]).square()
    changed = (posterior.latents - best.latents[:, None]).square()
    weights = posterior.weights
    rotation = (weights * (variance[..., :3].sum(-1) + turned)).sum(1).sqrt()
    shift = (weights * (variance[..., 3:POSE] + moved).mean(-1)).sum(1).sqrt()
    latent = (weights[..., None] * (variance[..., POSE:] + changed)).sum(1).sqrt()
    return rotation, shift, latent


def _angles(rotations: Rotations, best: Rotations) -> Float[Tensor, "particle mode"]:
    angles = geodesic_angle(rotations, best[:, None])
    same = (rotations == best[:, None]).all(-1).all(-1)
    return angles.masked_fill(same, 0.0)


def read_ahead(pieces: Iterable[Piece]) -> Generator[Piece, None, None]:
    """The same pieces, made in a second thread while the caller works on the last one; at most `AHEAD` wait."""
    waiting: queue.Queue[Piece | BaseException | None] = queue.Queue(AHEAD)
    stopped = threading.Event()
    thread = threading.Thread(target=_fill, args=(pieces, waiting, stopped), daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while thread.is_alive():
            _drain(waiting)
            thread.join(0.02)


def _fill(
    pieces: Iterable[Piece], waiting: queue.Queue[Piece | BaseException | None], stopped: threading.Event
) -> None:
    try:
        for piece in pieces:
            waiting.put(piece)
            if stopped.is_set():
                return
    except BaseException as error:  # handed to the caller, who raises it
        waiting.put(error)
        return
    waiting.put(None)


def _drain(waiting: queue.Queue[Piece | BaseException | None]) -> None:
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        return
