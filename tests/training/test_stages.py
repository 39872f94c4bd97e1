from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryofire.config import RefineSettings, SearchSettings, Settings
from cryofire.data.read import read_particles
from cryofire.geometry.rotations import geodesic_angle
from cryofire.inference.consensus import Refinement, refinement_mask, start_refinement
from cryofire.inference.polish import ImageStates
from cryofire.inference.subspace import PosedImages, Subspace
from cryofire.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cryofire.training.latent_space import open_latent_space
from cryofire.training.progress import SilentProgress
from cryofire.training.run_folder import open_run_folder, start_log
from cryofire.training.stages import Prepared, Run, assign_all, finer_search, prepare
from cryofire.volumes.halves import HalfMaps

from .toy_model import density, write_toy

SEARCH = SearchSettings(rotations=1500, last_shell=6, shift_radius=0.06)


def toy_run(folder: Path, effective_poses: float, particles: int = 250) -> tuple[Run, Prepared, torch.Tensor]:
    """A prepared run whose search says how many poses share the posterior of an image, and the true rotations."""
    truth = write_toy(folder / "set", particles, noise=3.0)
    table, settings = read_particles(truth.path), replace(Settings(), search=SEARCH)
    opened = open_run_folder(folder / "run", table, settings)
    run = Run(opened, table, settings, SilentProgress(), start_log(opened))
    prepared = prepare(run)
    save_checkpoint(opened.checkpoint("search"), Checkpoint({}, {"effective_poses": effective_poses}))
    return run, prepared, truth.rotations


def share_found(run: Run, prepared: Prepared, rotations: torch.Tensor) -> float:
    """Images within 10° of the truth."""
    states = assign_all(run, prepared, density(0)).states
    return float((geodesic_angle(states.rotations, rotations.float()) < math.radians(10.0)).float().mean())


def test_images_in_doubt_are_assigned_again_to_finer_maps(tmp_path: Path) -> None:
    sure, unsure = (
        share_found(*toy_run(tmp_path / name, poses, 600)) for name, poses in (("sure", 1.2), ("unsure", 9.0))
    )
    assert unsure > sure + 0.05


@pytest.mark.parametrize(("box_shell", "shell"), [(31, 10), (8, 8)])
def test_a_finer_search_ends_with_the_images(box_shell: int, shell: int) -> None:
    finer = finer_search(SEARCH, box_shell)
    assert (finer.last_shell, finer.rotations) == (shell, 6000)


def opened_twice(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: float,
    second: float,
    contrast_std: float,
    most_images: int = 10000,
) -> tuple[list[PosedImages], list[Refinement], float]:
    """Images that latent spaces were looked for in, where refinements began, and what the space that was kept explains.

    The first look explains `first` nats with one component, the second one `second` nats with two.
    """
    run, prepared, rotations = toy_run(folder, 1.2)
    run = replace(run, settings=replace(run.settings, subspace=replace(run.settings.subspace, images=most_images)))
    count = len(prepared.images)
    contrast = torch.linspace(0.5, 1.5, count)
    states = ImageStates(rotations.float(), torch.zeros(count, 2), contrast, torch.zeros(count, 0))
    found = start_refinement(prepared.images, prepared.half, states, 6, run.settings.refine)
    priors = replace(found.model.priors, contrast_std=contrast_std)
    consensus = replace(found, model=replace(found.model, priors=priors))
    seen: list[PosedImages] = []
    starts: list[Refinement] = []

    def opened(posed: PosedImages, *_: object) -> Subspace:
        seen.append(posed)
        components, explained = (1, first) if len(seen) == 1 else (2, second)
        maps = consensus.model.maps
        several = HalfMaps(
            maps.halves[:, :1].repeat(1, components + 1, 1, 1, 1),
            maps.joint[:1].repeat(components + 1, 1, 1, 1),
            maps.fsc,
        )
        evidence = torch.linspace(0, explained, components + 1)
        return Subspace(replace(consensus.model, maps=several), evidence, torch.zeros(components + 1), 0.0)

    def refined(
        run: Run, prepared: Prepared, stage: str, start: Callable[[], Refinement], *_: object, **__: object
    ) -> None:
        starts.append(start())

    monkeypatch.setattr("cryofire.training.latent_space.open_subspace", opened)
    monkeypatch.setattr("cryofire.training.latent_space.refined_in_passes", refined)
    open_latent_space(run, prepared, consensus)
    return seen, starts, load_checkpoint(run.folder.checkpoint("subspace")).values["evidence"][-1]


@pytest.mark.parametrize(("first", "by_all", "kept"), [(0.0, 0.3, 2), (0.5, 0.2, 1), (5.0, 9.0, 1)])
def test_a_latent_space_that_explains_little_is_looked_for_by_all_images(
    first: float, by_all: float, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, _, explained = opened_twice(tmp_path, monkeypatch, first, by_all, contrast_std=0.1, most_images=20)
    assert explained == pytest.approx(by_all if kept == 2 else first)
    assert len(seen) == (1 if first > 1 else 2)
    assert len(seen[0].images) == 20
    assert all(len(one.images) > 20 for one in seen[1:])


def test_a_latent_space_is_looked_for_inside_the_outline_and_where_the_mean_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seen,), _, _ = opened_twice(tmp_path, monkeypatch, 0.0, 0.0, contrast_std=0.1)
    sphere = refinement_mask(seen.images.plane.box, RefineSettings())
    assert float(seen.mask.mean()) < 0.8 * float(sphere.mean())
    assert seen.shell == 6  # of the consensus


@pytest.mark.parametrize(
    ("second", "contrast_std", "is_alike"), [(9.0, 0.5, True), (4.0, 0.5, False), (9.0, 0.4, False)]
)
def test_contrasts_too_different_for_one_kind_of_particle_may_be_conformations(
    second: float, contrast_std: float, is_alike: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, (start,), explained = opened_twice(tmp_path, monkeypatch, 5.0, second, contrast_std)
    assert explained == pytest.approx(second if is_alike else 5.0)
    assert len(seen) == (2 if contrast_std == 0.5 else 1)
    assert all(bool((one.states.contrast == 1).all()) for one in seen[1:])
    assert bool((start.states.contrast == 1).all()) == is_alike
