from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryofire.data.estimates import ParticleEstimates
from cryofire.data.read import read_particles
from cryofire.errors import ImageError, RunFolderError, SettingError
from cryofire.formats.mrc import stack_writer
from cryofire.geometry.rotations import geodesic_angle
from cryofire.training.encode import encode_particles
from cryofire.training.progress import SilentProgress

from .toy_model import BOX, PIXEL, ToyTruth, TruthEncoder, toy_model, write_toy

COUNT = 300


class Heard(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyTruth:
    return write_toy(tmp_path_factory.mktemp("toy"), COUNT)


def encoded(truth: ToyTruth, polish: int, *, turn: float = 0.06, decoy: bool = False) -> ParticleEstimates:
    model = toy_model(TruthEncoder(truth, turn, decoy=decoy))
    return encode_particles(read_particles(truth.path), model, polish)


def rotation_errors(found: ParticleEstimates, truth: ToyTruth) -> np.ndarray:
    return geodesic_angle(torch.from_numpy(found.rotations), truth.rotations.double()).numpy()


def test_without_polish_the_encoder_is_taken_at_its_word(toy: ToyTruth) -> None:
    found = encoded(toy, 0)
    error = rotation_errors(found, toy)
    assert np.sqrt(np.mean(error**2)) == pytest.approx(0.06 * np.sqrt(3), rel=0.1)
    np.testing.assert_allclose(found.rotation_std, 0.06 * np.sqrt(3), rtol=1e-5)
    np.testing.assert_allclose(found.shift_std, 0.15 * PIXEL, rtol=1e-5)
    np.testing.assert_allclose(found.latent_std, 0.15, rtol=1e-5)
    assert (found.state == toy.labels.numpy()).mean() > 0.99
    assert found.used.all()
    assert np.isfinite(found.log_likelihood).all()


def test_states_seen_by_the_encoder_alone_are_told_apart_where_it_puts_them(toy: ToyTruth) -> None:
    """Until they are polished: then the latents are those of the training set again."""
    model = toy_model(TruthEncoder(toy, 0.06, decoy=False))
    turned = replace(model.latents, means=model.latents.means[::-1].copy(), weights=model.latents.weights[::-1].copy())
    model = replace(model, glimpsed=turned)
    truth = toy.labels.numpy()
    alone, polished = (encode_particles(read_particles(toy.path), model, steps) for steps in (0, 2))
    assert (alone.state == truth).mean() < 0.01
    assert (polished.state == truth).mean() > 0.99


def test_polish_reaches_the_limit_that_it_states(toy: ToyTruth) -> None:
    before, after, converged = (encoded(toy, steps) for steps in (0, 2, 6))
    error = rotation_errors(after, toy)
    assert np.median(error) < 0.5 * np.median(rotation_errors(before, toy))
    assert np.median(error) < 1.1 * np.median(rotation_errors(converged, toy))
    assert np.sqrt(np.mean(error**2)) == pytest.approx(np.sqrt(np.mean(after.rotation_std**2)), rel=0.25)
    moved = (after.shifts / PIXEL - toy.shifts_px.numpy()) / (after.shift_std / PIXEL)[:, None]
    assert np.sqrt(np.mean(moved**2)) == pytest.approx(1.0, abs=0.25)
    latent = (after.latents - toy.latents.numpy()) / after.latent_std
    assert np.sqrt(np.mean(latent**2)) == pytest.approx(1.0, abs=0.3)
    assert after.contrast.mean() == pytest.approx(1.0, abs=0.05)
    assert after.log_likelihood.mean() > before.log_likelihood.mean()


def test_ninety_percent_of_the_truths_lie_inside_the_stated_regions(toy: ToyTruth) -> None:
    found = encoded(toy, 3)
    inside = np.abs(found.shifts / PIXEL - toy.shifts_px.numpy()) < 1.645 * (found.shift_std / PIXEL)[:, None]
    assert 0.82 < inside.mean() < 0.96


def test_the_better_of_two_modes_is_kept_and_the_other_widens_the_uncertainty(toy: ToyTruth) -> None:
    unsure, sure = encoded(toy, 0, decoy=True), encoded(toy, 3, decoy=True)
    assert np.median(rotation_errors(unsure, toy)) > 1.0
    assert np.median(unsure.rotation_std) > 0.5
    assert np.median(rotation_errors(sure, toy)) < 0.05
    assert np.median(sure.rotation_std) < 0.1


def test_pieces_give_what_the_whole_gives(toy: ToyTruth) -> None:
    table = read_particles(toy.path)
    model = toy_model(TruthEncoder(toy, 0.05))
    whole = encode_particles(table, model, 2)
    parts = [encode_particles(table, model, 2, rows=rows) for rows in (np.arange(37), np.arange(37, COUNT))]
    for name in ("rotations", "shifts", "latents", "rotation_std", "log_likelihood", "state_probability"):
        together = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(together, getattr(whole, name), rtol=2e-3, atol=2e-3, err_msg=name)


@pytest.mark.parametrize(("box", "pixel_size"), [(48, 4.0), (40, 6.0), (44, 5.0), (30, 6.0)])
def test_images_of_another_box_or_pixel_size_are_resampled(
    box: int, pixel_size: float, toy: ToyTruth, tmp_path: Path
) -> None:
    other = write_toy(tmp_path, COUNT, box=box, pixel_size=pixel_size)
    heard = Heard()
    table = read_particles(other.path)
    found = encode_particles(table, toy_model(TruthEncoder(other, 0.06)), 2, heard)
    assert np.median(rotation_errors(found, other)) < 1.3 * np.median(rotation_errors(encoded(toy, 2), toy))
    away = np.linalg.norm(found.shifts / PIXEL - other.shifts_px.numpy(), axis=1)
    assert np.median(away) < 2 * np.median(found.shift_std) / PIXEL
    assert heard.notes == []


@pytest.mark.parametrize("factor", [7.0, -1.0, -0.2])
def test_stacks_of_another_contrast_or_scale_are_recognised(factor: float, toy: ToyTruth, tmp_path: Path) -> None:
    other = write_toy(tmp_path, COUNT, factor=factor)
    heard = Heard()
    found = encode_particles(read_particles(other.path), toy_model(TruthEncoder(other, 0.06)), 2, heard)
    assert len(heard.notes) == (factor < 0) + (abs(factor) != 1)
    plain = encoded(toy, 2)
    assert np.median(rotation_errors(found, other)) < 1.1 * np.median(rotation_errors(plain, toy))
    assert found.contrast.mean() == pytest.approx(1.0, abs=0.1)


def test_one_image_is_enough(toy: ToyTruth) -> None:
    table = read_particles(toy.path).take(np.arange(1))
    found = encode_particles(table, toy_model(TruthEncoder(toy, 0.03)), 2)
    assert found.used.tolist() == [True]
    assert rotation_errors(found, replace(toy, rotations=toy.rotations[:1]))[0] < 0.2


def test_unusable_images_are_left_out(tmp_path: Path) -> None:
    truth = write_toy(tmp_path, 40)
    images = np.random.default_rng(0).standard_normal((40, BOX, BOX)).astype(np.float32)
    images[3] = 1.0
    path = tmp_path / "particles.mrcs"
    with stack_writer(path, BOX, PIXEL) as writer:
        writer.append(images)
    np.memmap(path, np.float32, "r+", 1024, images.shape)[7, 2, 2] = np.nan
    found = encode_particles(read_particles(truth.path), toy_model(TruthEncoder(truth, 0.05)))
    assert np.flatnonzero(~found.used).tolist() == [3, 7]
    assert np.isnan(found.rotations[[3, 7]]).all()
    assert found.state[[3, 7]].tolist() == [0, 0]


def test_a_stack_of_constant_images_is_refused(tmp_path: Path) -> None:
    truth = write_toy(tmp_path, 12)
    with stack_writer(tmp_path / "particles.mrcs", BOX, PIXEL) as writer:
        writer.append(np.ones((12, BOX, BOX), dtype=np.float32))
    with pytest.raises(ImageError, match="constant"):
        encode_particles(read_particles(truth.path), toy_model(TruthEncoder(truth, 0.05)))


def test_a_field_of_view_smaller_than_the_particle_is_refused(tmp_path: Path) -> None:
    truth = write_toy(tmp_path, 12, box=16)
    with pytest.raises(ImageError, match=r"wide \(file .*row 1\)\n.*at least") as caught:
        encode_particles(read_particles(truth.path), toy_model(TruthEncoder(truth, 0.05)))
    assert "in a box of" in str(caught.value)


def test_pixels_too_large_for_the_model_are_refused(tmp_path: Path) -> None:
    truth = write_toy(tmp_path, 12, box=18, pixel_size=PIXEL * BOX / 18)
    with pytest.raises(ImageError, match="hold detail down to"):
        encode_particles(read_particles(truth.path), toy_model(TruthEncoder(truth, 0.05)))


def test_a_model_without_encoder_says_what_to_do(toy: ToyTruth) -> None:
    with pytest.raises(RunFolderError, match="no encoder"):
        encode_particles(read_particles(toy.path), toy_model())


@pytest.mark.parametrize("steps", [-1, 21])
def test_impossible_numbers_of_steps_are_refused(steps: int, toy: ToyTruth) -> None:
    with pytest.raises(SettingError, match="polish"):
        encode_particles(read_particles(toy.path), toy_model(TruthEncoder(toy, 0.05)), steps)
