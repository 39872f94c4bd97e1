"""The stages that open the latent space on the poses of the consensus, and refine poses and latents together."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from cryofire.inference.consensus import Refinement, outline_mask
from cryofire.inference.linear_model import WIDEST_CONTRAST
from cryofire.inference.prepare import chosen_subset
from cryofire.inference.subspace import PosedImages, SubspaceStep, open_subspace
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, model_from, model_tensors, save_checkpoint
from cryofire.training.progress import measured_stage
from cryofire.training.stages import Prepared, Run, refined_in_passes

LITTLE_EXPLAINED = 1.0
"""Nats per image below which a latent space is looked for once more, by all images."""
BY_ALL, AT_ONE_CONTRAST = " by all images", " with all images at one contrast"
"""How the second search for a latent space looks."""


def open_latent_space(run: Run, prepared: Prepared, consensus: Refinement) -> Refinement:
    """Find the components that both halves support, and refine poses and latents together in halves."""
    path = run.folder.checkpoint("subspace")
    if not path.exists():
        with measured_stage(run.folder, "subspace"):
            save_checkpoint(path, _subspace(run, prepared, consensus))
    checkpoint = load_checkpoint(path)
    model = model_from(checkpoint.tensors)
    components = model.components
    if components == 0:
        return consensus

    def start() -> Refinement:
        before = consensus.states.at_one_contrast() if checkpoint.values["at_one_contrast"] else consensus.states
        states = replace(before, latents=torch.zeros(len(prepared.images), components))
        priors = replace(consensus.model.priors, latent_variance=torch.ones(components))
        shell = run.settings.subspace.limit(consensus.shell, consensus.images.plane.max_shell)
        opened = replace(consensus, states=states, model=replace(model, priors=priors), shell=shell)
        return replace(opened, passes=0, settled=False)

    settings = replace(run.settings.refine, passes=run.settings.subspace.refine_passes, shells_per_pass=6)
    return refined_in_passes(run, prepared, "latents", start, settings, joint=False)


def _subspace(run: Run, prepared: Prepared, consensus: Refinement) -> Checkpoint:
    """The components kept; looked for a second time where the consensus is suspected to hide them.

    They are looked for inside the particle's outline: noise of a large mask hides what noisy images say.
    Kinds of particles that differ in mass are images of different contrast to a single map. For a latent space that is a difference
    of conformation: at a contrast of 0.1 an image would have a hundredth of the weight of others in what tells its kind from them.
    """
    settings = run.settings.subspace
    rows = chosen_subset(len(prepared.images), settings.images, run.settings.seed + 1)
    run.progress.start("subspace", settings.steps + settings.passes)

    def report(step: SubspaceStep) -> None:
        run.folder.append_metrics({"stage": "subspace", **asdict(step)})
        run.progress.advance(1)

    mask = outline_mask(consensus.model, run.settings.refine)
    shell = settings.limit(consensus.shell, consensus.images.plane.max_shell)
    posed = PosedImages(consensus.images, prepared.half, consensus.states, consensus.model, mask, shell, settings)
    found, how = open_subspace(posed.take(rows), run.settings.seed, report, run.progress.advance), ""
    if found.explained < LITTLE_EXPLAINED and len(rows) < len(prepared.images):
        by_all = open_subspace(posed, run.settings.seed, report, run.progress.advance)
        if by_all.explained > found.explained:
            found, how = by_all, BY_ALL
    elif consensus.model.priors.contrast_std >= WIDEST_CONTRAST:
        alike = replace(posed, states=posed.states.at_one_contrast())
        weighed_alike = open_subspace(alike.take(rows), run.settings.seed, report, run.progress.advance)
        if weighed_alike.log_evidence > found.log_evidence:
            found, how = weighed_alike, AT_ONE_CONTRAST
    run.progress.finish()
    evidence = ", ".join(f"{value:.2f}" for value in found.evidence.tolist())
    run.say(
        f"latent space: {found.model.components} components kept{how}; held-out evidence with 0, 1, … components: {evidence}"
    )
    values = {"evidence": found.evidence.tolist(), "error": found.error.tolist()}
    return Checkpoint(model_tensors(found.model), {**values, "at_one_contrast": how == AT_ONE_CONTRAST})
