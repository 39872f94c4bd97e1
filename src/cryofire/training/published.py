"""The published recipe: encoder and decoder learnt together from random weights, by the symmetrised loss alone.

One stage after `prepare`. Images are seen in a new random order in every epoch; first the conformation is drawn from N(0, 1) and
only poses and decoder learn, then the encoder's own conformations enter; the resolution limit grows with the images seen. What
happens in an epoch depends on seed, epoch and images seen only, so that a stopped run continues as if it had not been stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryofire.config import PublishedSettings
from cryofire.geometry.grids import half_plane
from cryofire.inference.prepare import chosen_subset
from cryofire.inference.published_encoder import EncoderShape, PublishedEncoder
from cryofire.inference.symmetrised_loss import symmetrised_fit
from cryofire.physics.devices import device_with
from cryofire.physics.imaging import ImageBatch, WhitenedImages
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run
from cryofire.volumes.slice_field import FieldShape, SliceField

STAGE = "published"
SAMPLE = 512
"""Images that set the scales of the encoder's input and the decoder's output."""


@dataclass(frozen=True)
class PublishedModel:
    """What the recipe learns.

    Attributes
    ----------
    encoder : PublishedEncoder
    field : SliceField
        The decoder.
    """

    encoder: PublishedEncoder
    field: SliceField

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return self.field.positions.device

    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that is learnt, encoder first."""
        return [*self.encoder.parameters(), *self.field.parameters()]

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers by name."""
        parts = {"encoder": self.encoder, "field": self.field}
        return {f"{part}.{name}": value for part, one in parts.items() for name, value in one.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite weights and buffers by those that `tensors` gave, in place."""
        for part, one in (("encoder", self.encoder), ("field", self.field)):
            prefix = f"{part}."
            one.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})


@dataclass(frozen=True)
class Position:
    """How far the learning is.

    Attributes
    ----------
    epoch : int
        Epochs finished.
    seen : int
        Images presented.
    seconds : float
        Time spent.
    loss : float
        Mean loss of the last epoch.
    shell : int
        Resolution limit of the last step.
    """

    epoch: int = 0
    seen: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    shell: int = 0

    def is_over(self, settings: PublishedSettings) -> bool:
        """As many images have been presented, or as much time has passed, as the settings allow."""
        return self.seen >= settings.images or (settings.seconds is not None and self.seconds >= settings.seconds)


def learn_published(run: Run, prepared: Prepared) -> tuple[PublishedModel, Position]:
    """Learn encoder and decoder, saving after every epoch; a finished stage is read back."""
    path, settings = run.folder.checkpoint(STAGE), run.settings.published
    model = start_model(prepared.images, settings, run.settings.seed)
    optimiser = torch.optim.Adam(model.parameters(), settings.learning_rate)
    position = Position()
    if path.exists():
        position = restore(load_checkpoint(path), model, optimiser)
    if position.is_over(settings):
        return model, position
    with measured_stage(run.folder, STAGE):
        run.progress.start(STAGE, settings.images)
        run.progress.advance(position.seen)
        while not position.is_over(settings):
            position = learn_epoch(
                prepared.images, model, optimiser, position, settings, run.settings.seed, run.progress.advance
            )
            save_checkpoint(path, state_checkpoint(model, optimiser, position))
            _report(run, position, len(half_plane(prepared.grid.box, position.shell)))
        run.progress.finish()
    run.say(f"published recipe: {position.seen} images presented, misfit {position.loss:.4f} to shell {position.shell}")
    return model, position


def start_model(images: WhitenedImages, settings: PublishedSettings, seed: int) -> PublishedModel:
    """Random encoder and decoder; only two scales are taken from the images."""
    generator = torch.Generator().manual_seed(seed)
    box = images.plane.box
    sample = images.batch(chosen_subset(len(images), SAMPLE, seed), images.plane.max_shell)
    encoder = PublishedEncoder(EncoderShape(box, settings.components, settings.channels, settings.hidden), generator)
    encoder.fit_scale(sample.data)
    amplitude = section_amplitude(sample.truncated(settings.first_shell))
    shape = FieldShape(box, settings.components, settings.hidden, settings.layers, settings.features)
    field = SliceField(shape, amplitude, generator)
    device = device_with(0)
    return PublishedModel(encoder.to(device), field.to(device))


def section_amplitude(batch: ImageBatch) -> float:
    """Root mean square of the sections behind noisy images, √(Σ(|Y|² - 1) / Σ(C/σ)²); a thousandth of Y's where that is noise."""
    power = batch.data.abs().square()
    transfer = batch.modulation.square().sum().clamp_min(1e-30)
    return float((torch.maximum((power - 1).sum(), 1e-6 * power.sum()) / transfer).sqrt())


def learn_epoch(
    images: WhitenedImages,
    model: PublishedModel,
    optimiser: torch.optim.Adam,
    position: Position,
    settings: PublishedSettings,
    seed: int,
    advance: Callable[[int], None],
) -> Position:
    """One pass over all images in random order, or as much of it as images and time allow; updates the model in place."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + position.epoch)
    start, before, total = time.perf_counter(), position, 0.0
    for rows in torch.randperm(len(images), generator=generator).split(settings.batch):
        shell = shell_at(position.seen, settings, images.plane.max_shell)
        drawn = torch.randn(len(rows), settings.components, generator=generator).to(model.device)
        latents = drawn if position.seen < settings.pose_only_images else None
        batch = images.batch(rows, images.plane.max_shell, model.device)
        loss = symmetrised_fit(model.encoder, model.field, batch, shell, latents).loss
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        total += float(loss.detach().sum())
        position = replace(
            position,
            seen=position.seen + len(rows),
            seconds=before.seconds + time.perf_counter() - start,
            shell=shell,
        )
        advance(len(rows))
        if position.is_over(settings):
            break
    return replace(position, epoch=position.epoch + 1, loss=total / (position.seen - before.seen))


def shell_at(seen: int, settings: PublishedSettings, largest: int) -> int:
    """Resolution limit after so many images: from the first shell to the last, linearly."""
    last = min(settings.last_shell or largest, largest)
    first = min(settings.first_shell, last)
    share = min(seen / settings.marching_images, 1.0) if settings.marching_images else 1.0
    return first + round((last - first) * share)


def state_checkpoint(model: PublishedModel, optimiser: torch.optim.Adam, position: Position) -> Checkpoint:
    """Model, moments of Adam and position as a checkpoint."""
    moments = {
        f"adam.{index}.{name}": value
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }
    return Checkpoint({**model.tensors(), **moments}, vars(position))


def restore(checkpoint: Checkpoint, model: PublishedModel, optimiser: torch.optim.Adam) -> Position:
    """Put model and optimiser where a checkpoint left them, in place; the position there."""
    model.load(checkpoint.tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return Position(**checkpoint.values)


def _report(run: Run, position: Position, coefficients: int) -> None:
    values = {
        "step": position.epoch,
        "shell": position.shell,
        "log_likelihood": -position.loss * coefficients,
        "misfit": position.loss,
        "seconds": position.seconds,
    }
    run.folder.append_metrics({"stage": STAGE, **values})
    run.logger.info("%s %s", STAGE, " ".join(f"{name}={value:.5g}" for name, value in values.items()))
