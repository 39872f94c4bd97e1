"""The amortise stage: the encoder learns the decoder's images, and every image that was not searched gets its pose from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryofire.analysis.latent_summary import LatentSummary, summarise_latents
from cryofire.arrays import Shifts
from cryofire.data.estimates import ParticleEstimates
from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference.consensus import Refinement
from cryofire.inference.encoder import PoseEncoder
from cryofire.inference.polish import ImageStates, expand, polish
from cryofire.inference.rendering import Renderer, make_renderer
from cryofire.inference.teaching import RealImages, TeachingStep, teach, usual_power
from cryofire.physics.devices import CPU, device_with
from cryofire.physics.imaging import WhitenedImages, batches
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.encoder_file import ENCODER_MEMORY, encoder_from, encoder_parts
from cryofire.training.field import Represented, save_field
from cryofire.training.given_poses import given_states
from cryofire.training.model_file import MODEL, model_of_run, save_model
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run, held

ENCODED, ENCODED_ELSEWHERE = 256, 2048
"""Images encoded at once: on the CPU what they need stays in its cache, and another device has its memory filled."""
GAP_SAMPLE, GLIMPSED_SAMPLE = 1000, 4000
LEAST_SHIFT_STD = 0.2
LEAST_CONTRAST_STD = 0.02


@dataclass(frozen=True)
class AmortisationGap:
    """How far one pass of the encoder is from the polished posterior, on images of the run.

    Attributes
    ----------
    nats : float
        Log-posterior lost per image up to the encoder's resolution limit, median.
    rotation : float
        Median angle between encoded and polished rotation, radians.
    shift_px : float
        Median distance of the shifts.
    """

    nats: float
    rotation: float
    shift_px: float


def amortise(run: Run, prepared: Prepared, refined: Refinement) -> PoseEncoder:
    """Teach the encoder with rendered and with real images; the encoder, looking at the refined maps."""
    path = run.folder.checkpoint("amortise")
    if not path.exists():
        with measured_stage(run.folder, "amortise"):
            encoder = new_encoder(run, prepared, refined)
            _taught(run, prepared, refined, encoder)
            tensors, values = encoder_parts(encoder)
            save_checkpoint(path, Checkpoint(tensors, values))
    checkpoint = load_checkpoint(path)
    return encoder_from(checkpoint.tensors, checkpoint.values, refined.model.maps.joint, path)


def new_encoder(run: Run, prepared: Prepared, refined: Refinement) -> PoseEncoder:
    """An encoder that has not learnt anything yet but looks at the refined maps."""
    with torch.random.fork_rng():
        torch.manual_seed(run.settings.seed)
        components = refined.states.latents.shape[1]
        shift_std = max(prepared.centres.residual_px, LEAST_SHIFT_STD)
        encoder = PoseEncoder(run.settings.encoder, prepared.grid.box, components, shift_std)
    encoder.look_at(refined.model.maps.joint)
    return encoder.on(device_with(ENCODER_MEMORY))


def renderer_of(encoder: PoseEncoder, refined: Refinement) -> Renderer:
    """Renderer of the refined model, with what the refinement found of shifts, contrasts and latents."""
    components = encoder.components
    deviations = refined.deviations[:, refined.deviations.shape[1] - components :]
    renderer = make_renderer(
        refined.model.maps.joint, refined.images, refined.states.latents, deviations, encoder.shift_std_px,
        max(refined.model.priors.contrast_std, LEAST_CONTRAST_STD), encoder.max_shell,
    )  # fmt: skip
    return renderer.on(encoder.device)


def _taught(run: Run, prepared: Prepared, refined: Refinement, encoder: PoseEncoder) -> None:
    settings = run.settings.amortise
    renderer = renderer_of(encoder, refined)
    encoder.usual_power.copy_(usual_power(renderer, run.settings.seed))
    real = RealImages(refined.images, prepared.centres.shifts_px, renderer.grid, refined.model.priors)
    run.progress.start("amortise", settings.steps)
    for step in teach(encoder, renderer, real, settings, run.settings.seed + 2):
        _report(run, step)
        run.progress.advance(1)
    run.progress.finish()
    gap = amortisation_gap(encoder, real, refined.states)
    run.folder.append_metrics({"stage": "amortise", "gap": asdict(gap)})
    run.say(
        f"amortise: one pass of the encoder is {torch.tensor(gap.rotation).rad2deg():.2f}° and {gap.shift_px:.2f} px "
        f"from the polished pose, and loses {gap.nats:.1f} nats an image"
    )


def _report(run: Run, step: TeachingStep) -> None:
    run.folder.append_metrics({"stage": "amortise", **asdict(step)})


def encode_images(
    encoder: PoseEncoder, images: WhitenedImages, centres_px: Shifts, advance: Callable[[int], None]
) -> ImageStates:
    """Best mode of every image, at unit contrast."""
    found = []
    for rows in batches(torch.arange(len(images)), ENCODED if encoder.device == CPU else ENCODED_ELSEWHERE):
        batch = images.batch(rows, encoder.max_shell, encoder.device)
        found.append(encoder.posterior(batch, centres_px[rows]).states())
        advance(len(rows))
    return ImageStates.joined(found)


def amortisation_gap(encoder: PoseEncoder, real: RealImages, polished: ImageStates) -> AmortisationGap:
    """Distance of the encoder from the polished states on evenly chosen images."""
    rows = torch.linspace(0, len(real.images) - 1, min(GAP_SAMPLE, len(real.images))).long()
    encoded = encode_images(encoder, real.images.take(rows), real.centres_px[rows], lambda _: None)
    best = polished.take(rows)
    lost = _log_posterior(real, rows, best) - _log_posterior(real, rows, encoded)
    return AmortisationGap(
        float(lost.median()),
        float(geodesic_angle(encoded.rotations, best.rotations).median()),
        float((encoded.shifts_px - best.shifts_px).norm(dim=1).median()),
    )


def _log_posterior(real: RealImages, rows: Int[Tensor, " row"], states: ImageStates) -> Float[Tensor, " row"]:
    """Log-posterior at some states, the contrast at its best."""
    values = []
    for piece in batches(torch.arange(len(rows))):
        batch = real.images.batch(rows[piece], real.grid.max_shell, real.grid.values.device)
        fitted = polish(batch, real.grid, states.take(piece), real.priors, 1, slice(0, 5))
        values.append(-expand(batch, real.grid, fitted.states, real.priors).value)
    return torch.cat(values)


def spread_to_all(
    run: Run, prepared: Prepared, part: Prepared, refined: Refinement, encoder: PoseEncoder
) -> Refinement:
    """The refinement of a part carried over to all images: those that were not in it get their states from the encoder."""
    count = len(prepared.images)
    images = replace(prepared.images, correction=refined.images.correction)
    path = run.folder.checkpoint("encode")
    if not path.exists():
        with measured_stage(run.folder, "encode"):
            run.progress.start("encode", count)
            states = encode_images(encoder, images, prepared.centres.shifts_px, run.progress.advance)
            run.progress.finish()
            save_checkpoint(path, Checkpoint(vars(states), {}))
    states = ImageStates(**load_checkpoint(path).tensors)
    if held(run.settings) is not None:
        known = given_states(run, prepared)
        states = replace(states, rotations=known.rotations, shifts_px=known.shifts_px)
    states.put(torch.from_numpy(np.searchsorted(prepared.rows, part.rows)), refined.states)
    deviations = refined.deviations.new_zeros(count, refined.deviations.shape[1])
    return replace(
        refined, images=images, states=states, deviations=deviations, misfit=torch.ones(count), passes=0, settled=False
    )


def deliver(run: Run, prepared: Prepared, encoder: PoseEncoder, represented: Represented) -> None:
    """Write the model: the field, its maps, and the encoder looking at them."""
    folder = run.folder.path / "model"
    if (folder / MODEL).exists():
        return
    maps = represented.refinement.model.maps.joint
    encoder.look_at(maps)
    folder.mkdir(exist_ok=True)
    save_field(folder, represented.field)
    model = replace(model_of_run(run.folder.path), maps=maps, encoder=encoder, noise=represented.noise)
    labels = ParticleEstimates.load(run.folder.path / "estimates.npz").state[prepared.rows]
    save_model(
        folder, replace(model, glimpsed=_glimpsed(model.latents, prepared, represented.refinement, encoder, labels))
    )


def _glimpsed(
    latents: LatentSummary, prepared: Prepared, refined: Refinement, encoder: PoseEncoder, labels: np.ndarray
) -> LatentSummary | None:
    """Where one pass of the encoder puts particles whose state is known; nothing where there are no states to tell apart.

    The encoder's latents are posterior means: the less an image says, the nearer they are to the mean of all, and those of a
    rare state more than others. Told apart by the Gaussians of polished latents, a rare state would lose its particles.
    """
    if latents.kind != "discrete":
        return None
    rows = torch.linspace(0, len(refined.images) - 1, min(GLIMPSED_SAMPLE, len(refined.images))).long()
    seen = encode_images(encoder, refined.images.take(rows), prepared.centres.shifts_px[rows], lambda _: None)
    points, known = seen.latents.numpy(), labels[rows.numpy()]
    present = [known == state for state in range(len(latents.centers))]
    centers = [
        np.median(points[mine], axis=0) if mine.any() else centre
        for mine, centre in zip(present, latents.centers, strict=True)
    ]
    typical = np.mean([points[mine].var(axis=0) for mine in present if mine.any()], axis=0) ** 0.5
    return summarise_latents(points, np.broadcast_to(typical, points.shape), known, latents.kind, np.stack(centers))
