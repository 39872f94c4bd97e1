"""Runs of particles of several species: told apart, reconstructed one by one, and joined again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.conftest import QUICK, quick_arguments

from cryofire import Reconstruction
from cryofire.analysis.run_files import read_estimates
from cryofire.analysis.run_record import MIXTURE, read_run, state_groups
from cryofire.analysis.truth import read_truth
from cryofire.analysis.verdicts import HAND, judge_run
from cryofire.cli.main import main
from cryofire.config import Settings
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.export import write_subset
from cryofire.data.read import read_particles
from cryofire.errors import ReconstructionFailure, RunFolderError
from cryofire.formats.mrc import write_map
from cryofire.inference.polish import ImageStates
from cryofire.settings_by_name import changed
from cryofire.training import pipeline, species, species_split
from cryofire.training.checkpoint import load_checkpoint, save_checkpoint
from cryofire.training.progress import SilentProgress
from cryofire.training.run_folder import RunFolder, open_run_folder, start_log
from cryofire.training.species import Species, find_species
from cryofire.training.species_results import joined_estimates
from cryofire.training.stages import Prepared, Run, assign_all, find_consensus, prepare


def _estimates(count: int, components: int, seed: int) -> ParticleEstimates:
    rng = np.random.default_rng(seed)
    return ParticleEstimates(
        rotations=rng.normal(size=(count, 3, 3)), shifts=rng.normal(size=(count, 2)), rotation_std=rng.random(count),
        shift_std=rng.random(count), latents=rng.normal(size=(count, components)), latent_std=rng.random((count, components)),
        state=rng.integers(0, 2, count), state_probability=rng.random(count), path_position=np.full(count, np.nan),
        contrast=rng.random(count), log_likelihood=rng.normal(size=count), used=np.ones(count, dtype=bool),
    )  # fmt: skip


def test_joined_estimates_hold_every_part_in_the_order_of_the_table() -> None:
    first, second = _estimates(4, 3, 0), _estimates(2, 1, 1)
    rows = [np.array([6, 0, 2, 5]), np.array([3, 1])]
    joined = joined_estimates(8, [first, second], rows, [0, 2])
    for part, mine, offset in zip((first, second), rows, (0, 2), strict=True):
        np.testing.assert_array_equal(joined.rotations[mine], part.rotations)
        np.testing.assert_array_equal(joined.shifts[mine], part.shifts)
        np.testing.assert_array_equal(joined.latents[mine, : part.latents.shape[1]], part.latents)
        np.testing.assert_array_equal(joined.state[mine], part.state + offset)
    assert np.isnan(joined.latents[3, 1:]).all() and np.isnan(joined.rotations[4]).all()
    np.testing.assert_array_equal(np.flatnonzero(~joined.used), [4, 7])
    assert joined.state[4] == joined.state[7] == 0


def test_a_subset_can_be_read_from_any_folder(small_set: Path, tmp_path: Path) -> None:
    table = read_particles(small_set / "particles.star")
    rows = np.array([5, 3, 800])
    write_subset(table, rows, tmp_path / "part.star")
    part = read_particles(tmp_path / "part.star")
    np.testing.assert_array_equal(part.frame, table.frame[rows])
    np.testing.assert_allclose(part.optics.defocus_u, table.optics.defocus_u[rows])
    assert part.stack_paths[0].samefile(table.stack_paths[0])


@pytest.fixture(scope="module")
def mixed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two molecules that share nothing: a clump, and a rod with a knob."""
    folder = tmp_path_factory.mktemp("mixed")
    axis = (np.arange(48) - 24) * 8.0
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")[::-1], axis=-1)
    heights = np.arange(-130.0, 140.0, 20.0)
    rod = np.stack([0 * heights, 0 * heights, heights], axis=1)
    centres = {
        "clump": 45 * np.random.default_rng(4).normal(size=(16, 3)),
        "rod": np.concatenate([rod, [[30.0, 0.0, 110.0], [40.0, 20.0, 90.0]]]),
    }
    for name, places in centres.items():
        density = sum(np.exp(-np.square(points - place).sum(-1) / (2 * 16.0**2)) for place in places)
        write_map(folder / f"{name}.mrc", np.asarray(density, dtype=np.float32), 8.0)
    maps = [str(folder / f"{name}.mrc") for name in centres]
    words = [
        "simulate",
        "--maps",
        *maps,
        "--weights",
        "0.6",
        "0.4",
        "--particles",
        "800",
        "--box",
        "32",
        "--pixel-size",
        "12",
    ]
    assert main([*words, "--snr", "1", "--snr-pixel-size", "12", "-o", str(folder / "set")]) == 0
    return folder / "set"


SPECIES_QUICK = [
    "search.steps=24", "search.rotations=1200", "search.first_shell=4", "search.last_shell=8", "search.most_starts=2",
    "search.least_images=150", "species.maps=3", "species.least=100", "species.unexplained=0.2",
]  # fmt: skip


def _started(particles: Path, folder: Path, quick: Sequence[str]) -> tuple[Run, Prepared]:
    settings, table = changed(Settings(), quick), read_particles(particles)
    opened = open_run_folder(folder, table, settings)
    run = Run(opened, table, settings, SilentProgress(), start_log(opened))
    return run, prepare(run)


def _found(run: Run, prepared: Prepared) -> tuple[Species, ...]:
    return find_species(run, prepared, prepared, assign_all(run, prepared, find_consensus(run, prepared)).states)


def _parted(labels: torch.Tensor) -> Callable[..., torch.Tensor]:
    """In the place of `split`: all particles are told apart as given, and none of their groups any further."""

    def split(run: Run, prepared: Prepared, *_: object) -> torch.Tensor:
        return torch.zeros(len(prepared.images), dtype=torch.long) if run.folder.group else labels

    return split


def test_species_are_told_apart(mixed_set: Path, tmp_path: Path) -> None:
    run, prepared = _started(mixed_set / "particles.star", tmp_path / "run", SPECIES_QUICK)
    found, truth = _found(run, prepared), read_truth(mixed_set / "truth.star").labels
    assert truth is not None and len(found) == 2
    for one in found:
        assert np.bincount(truth[one.rows]).max() > 0.97 * len(one.rows)
        np.testing.assert_array_equal(read_particles(one.table).frame, run.table.frame[one.rows])
        assert load_checkpoint(one.search).values["locked"]


def test_a_search_in_which_one_map_took_all_images_is_made_again(mixed_set: Path, tmp_path: Path, monkeypatch) -> None:
    run, prepared = _started(mixed_set / "particles.star", tmp_path / "run", SPECIES_QUICK)
    everything = find_consensus(run, prepared)
    whole, calls = species_split.run_start, []

    def collapsing(*arguments: object, **options: object) -> list[torch.Tensor]:
        calls.append(arguments)
        empty = torch.zeros_like(everything)
        return [empty, everything, empty] if len(calls) == 1 else whole(*arguments, **options)

    monkeypatch.setattr(species_split, "run_start", collapsing)
    states = assign_all(run, prepared, everything).states
    assert set(species_split.split(run, prepared, prepared, states).tolist()) == {0, 1}
    assert len(calls) == 2
    assert "one of the maps took all images" in (tmp_path / "run" / "run.log").read_text()


def test_groups_of_a_mixture_are_looked_at_more_closely(mixed_set: Path, tmp_path: Path, monkeypatch) -> None:
    run, prepared = _started(mixed_set / "particles.star", tmp_path / "run", QUICK)
    states = assign_all(run, prepared, find_consensus(run, prepared)).states
    monkeypatch.setattr(species_split, "are_sure", lambda _: True)
    monkeypatch.setattr(species_split, "_unexplained", lambda *_: 0.3)
    run = replace(run, settings=changed(run.settings, ["species.least=100"]))
    assert not species_split.split(run, prepared, prepared, states).any()

    def tried(*_: object) -> None:
        raise ReconstructionFailure("several maps are tried")

    monkeypatch.setattr(species_split, "_several_maps", tried)
    with pytest.raises(ReconstructionFailure, match="several maps are tried"):
        species_split.split(replace(run, folder=run.folder.within(1)), prepared, prepared, states)


def test_a_kind_that_was_parted_is_joined(mixed_set: Path, tmp_path: Path, monkeypatch) -> None:
    truth = read_truth(mixed_set / "truth.star").labels
    assert truth is not None
    rng = np.random.default_rng(0)
    labels = np.where(truth == 1, rng.integers(0, 2, len(truth)), 2)  # the clumps in two groups at random
    wrong = rng.random(len(truth)) < 0.12
    labels[wrong] = rng.integers(0, 3, int(wrong.sum()))
    monkeypatch.setattr(species, "split", _parted(torch.from_numpy(labels)))
    run, prepared = _started(mixed_set / "particles.star", tmp_path / "run", SPECIES_QUICK)
    found = _found(run, prepared)
    assert [one.name for one in found] == ["species1", "species2"]
    for one, kind in zip(found, (1, 2), strict=True):
        assert len(one.rows) == pytest.approx((truth == kind).sum(), rel=0.05)
        assert (truth[one.rows] == kind).mean() > 0.95  # most of those in the wrong group are put right
    monkeypatch.setattr(species, "split", lambda *_: pytest.fail("what was found is not looked for again"))
    again = find_species(run, prepared, prepared, ImageStates(*(torch.empty(0),) * 4))
    assert [one.search for one in again] == [one.search for one in found]


def test_images_without_a_particle_are_of_no_species(small_set: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(species, "split", _parted(torch.arange(900) % 3 - 1))
    run, prepared = _started(small_set / "particles.star", tmp_path / "run", QUICK)
    found = _found(run, prepared)  # both groups are of one molecule
    assert [one.name for one in found] == ["species1"]
    np.testing.assert_array_equal(found[0].rows, np.flatnonzero(np.arange(900) % 3))


def test_a_group_that_shows_no_structure_is_left_out(small_set: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(species, "split", _parted(torch.arange(900) % 2))
    run, prepared = _started(small_set / "particles.star", tmp_path / "run", QUICK)
    consensus = find_consensus(run, prepared)
    states = assign_all(run, prepared, consensus).states

    def failing(*groups: tuple[int, ...]) -> None:
        def searched(inner: Run, within: Prepared) -> torch.Tensor:
            if inner.folder.group in groups:
                raise ReconstructionFailure("its images do not tell their poses")
            return find_consensus(inner, within)

        monkeypatch.setattr(species, "find_consensus", searched)

    failing((1,), (2,))
    with pytest.raises(ReconstructionFailure, match="none of the kinds"):
        find_species(run, prepared, prepared, states)
    failing((2,))
    (found,) = find_species(run, prepared, prepared, states)
    np.testing.assert_array_equal(found.rows, np.arange(0, 900, 2))
    assert "group 2 is left out: its images do not tell their poses" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize(
    ("shows", "numbers"),
    [((True, False, True), (0, -1, 1)), ((False, True, False), (-1, 0, -1)), ((False,) * 3, (0, 1, 2))],
)
def test_species_are_numbered_without_those_that_show_nothing(
    shows: tuple[bool, ...], numbers: tuple[int, ...]
) -> None:
    found = species_split.numbered(torch.tensor([2, 0, 1, 2]), np.array(shows))
    assert found.tolist() == [numbers[2], numbers[0], numbers[1], numbers[2]]


def test_conformations_are_one_species(finished_run: Path) -> None:
    labels = load_checkpoint(finished_run / "checkpoints" / "species.safetensors").tensors["species"]
    assert not labels.any()
    record = read_run(finished_run)
    assert not record.species
    assert state_groups(record) == (range(len(record.states)),)


@pytest.fixture(scope="module")
def mixed_run(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two alleged species, which are halves of the small set."""
    folder = tmp_path_factory.mktemp("mixed-run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "find_species", _halves)
        assert main(["reconstruct", str(small_set / "particles.star"), "-o", str(folder), *quick_arguments()]) == 0
    return folder


def _halves(run: Run, prepared: Prepared, *_: object) -> tuple[Species, ...]:
    rows, folder = prepared.rows, run.folder.path
    halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    found = [
        Species(
            f"species{n}", one, folder / f"species{n}.star", folder / f"species{n}", run.folder.checkpoint("search")
        )
        for n, one in enumerate(halves, 1)
    ]
    for one in found:
        write_subset(run.table, one.rows, one.table)
    return tuple(found)


def test_each_species_is_scored_in_its_own_frame(mixed_run: Path, small_set: Path) -> None:
    record = read_run(mixed_run)
    assert record.heterogeneity == MIXTURE and [one.particles for one in record.species] == [450, 450]
    assert state_groups(record) == tuple(one.states for one in record.species)
    assert main(["evaluate", str(mixed_run), "--truth", str(small_set / "truth.star")]) == 0
    scores = json.loads((mixed_run / "evaluation.json").read_text())
    assert scores["poses"]["direction_median_deg"] < 3.0
    assert {one["name"] for one in scores["maps"]} == {state.name for state in record.states}
    report = (mixed_run / "report.html").read_text()
    assert "species1/report.html" in report and "species that share no structure" in report
    assert "differs from" not in report  # frames of different species have nothing to do with each other


def test_each_species_is_a_whole_reconstruction(
    mixed_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Reconstruction.load(mixed_run)
    assert [one.folder.name for one in made.species] == ["species1", "species2"]
    assert made.species[0].decode(np.zeros(made.species[0].model.components)).shape == (40, 40, 40)
    np.testing.assert_array_equal(made.estimates.rotations[450:], made.species[1].estimates.rotations)
    with pytest.raises(RunFolderError, match="several species"):
        made.decode([0.0])
    assert main(["decode", str(mixed_run), "--state", "1", "-o", str(tmp_path / "maps")]) == 2
    assert "species1" in capsys.readouterr().err
    made.export_relion(tmp_path / "poses.star")
    assert len(read_particles(tmp_path / "poses.star", stacks=False)) == len(made.estimates)


def test_a_species_that_fails_is_left_out(mixed_run: Path, small_set: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(mixed_run, folder)
    for name in ("results.json", "estimates.npz", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "species2")
    whole = pipeline.run_default

    def failing(run: Run, prepared: Prepared) -> None:
        if run.folder.path.name == "species2":
            raise ReconstructionFailure("nothing was found")
        whole(run, prepared)

    monkeypatch.setattr(pipeline, "find_species", _halves)
    monkeypatch.setattr(pipeline, "run_default", failing)
    pipeline.reconstruct(small_set / "particles.star", folder, changed(Settings(), QUICK))
    assert [one.name for one in read_run(folder).species] == ["species1"]
    assert ParticleEstimates.load(folder / "estimates.npz").used.sum() == 450
    assert "species2 is left out" in (folder / "run.log").read_text()
    images, species = (one for one in judge_run(read_run(folder), read_estimates(read_run(folder))) if one != HAND)
    assert (images.level, species.level) == ("good", "caution")
    assert read_run(folder).particles_used == 450
    report = (folder / "report.html").read_text()
    assert "particles used, 450 left out" in report and "kind of particles" in report
    assert "share no structure" not in report and "Some images show no structure" in report
    assert "of one kind" in species.text and "450 images are unlike all others" in species.text


@pytest.mark.parametrize(("is_species", "locked"), [(True, False), (True, True), (False, False)])
def test_a_species_whose_images_tell_no_poses_is_no_species(
    finished_run: Path, tmp_path: Path, is_species: bool, locked: bool
) -> None:
    """The whole of a run that is in doubt goes on, and says so."""
    shutil.copytree(finished_run, tmp_path / "run")
    table = read_particles(Path(json.loads((finished_run / "inputs.json").read_text())["table"]))
    folder = RunFolder(tmp_path / "run")
    run = Run(folder, table, changed(Settings(), QUICK), SilentProgress(), start_log(folder), is_species)
    path = folder.checkpoint("search")
    found = load_checkpoint(path)
    save_checkpoint(path, replace(found, values={**found.values, "locked": locked}))
    prepared = prepare(run)
    if is_species and not locked:
        with pytest.raises(ReconstructionFailure, match="do not tell their poses"):
            find_consensus(run, prepared)
    else:
        torch.testing.assert_close(find_consensus(run, prepared), found.tensors["volume"])
