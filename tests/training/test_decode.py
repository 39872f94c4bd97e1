from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cryofire.analysis.latent_summary import summarise_latents
from cryofire.cli.main import main
from cryofire.errors import InputError, SettingError
from cryofire.formats.mrc import read_map
from cryofire.geometry.grids import fourier_shell_correlation
from cryofire.training.decode import (
    component_series,
    decoded_maps,
    path_series,
    points_series,
    state_series,
    write_series,
)
from cryofire.training.model_file import DeliveredModel, load_model, save_model

from .toy_model import BOX, CENTERS, PIXEL, density, toy_model


def continuous_model() -> DeliveredModel:
    """The toy model with particles all along a bent path in two latent coordinates."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, 3000)
    latents = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.02 * rng.standard_normal((3000, 2))
    labels = np.minimum((angle / np.pi * 3).astype(int), 2)
    centers = np.stack([latents[labels == state].mean(axis=0) for state in range(3)])
    bend = np.linspace(0, np.pi, 50)
    curve = np.stack([np.cos(bend), np.sin(bend)], axis=1)
    summary = summarise_latents(latents, np.full((3000, 2), 0.05), labels, "continuous", centers, curve)
    model = toy_model()
    maps = torch.cat([model.maps, model.maps[1:].flip(1)])
    return replace(model, maps=maps, latents=summary)


def test_maps_are_linear_in_the_coordinates() -> None:
    for state in (0, 1):
        found = decoded_maps(toy_model(), CENTERS[state])
        torch.testing.assert_close(found, density(state), rtol=1e-4, atol=1e-4)
    several = decoded_maps(toy_model(), np.array([[[0.0], [1.0]], [[2.0], [3.0]]]))
    assert several.shape == (2, 2, BOX, BOX, BOX)
    torch.testing.assert_close(several[0, 0] + several[1, 1], several[0, 1] + several[1, 0], rtol=1e-4, atol=1e-4)


def test_places_along_a_path_are_measured_on_its_curve_and_saved_with_it(tmp_path: Path) -> None:
    model = continuous_model()
    angle = np.array([0.0, 0.3, 1.5, 3.0])
    places = np.stack([1.1 * np.cos(angle), 1.1 * np.sin(angle)], axis=1)
    places = np.concatenate([places, [[np.nan, 0.0]]])
    found = model.latents.path_position(places)
    np.testing.assert_allclose(found[:4], angle / np.pi, atol=0.01)
    assert np.isnan(found[4]) and np.isnan(toy_model().latents.path_position(CENTERS)).all()
    save_model(tmp_path, model)
    np.testing.assert_array_equal(load_model(tmp_path).latents.path_position(places), found)


@pytest.mark.parametrize("box", [24, 25, 31])
def test_smaller_boxes_hold_the_same_density(box: int) -> None:
    whole, small = decoded_maps(toy_model(), CENTERS[0]), decoded_maps(toy_model(), CENTERS[0], box)
    assert small.shape == (box,) * 3
    assert float(small.mean()) == pytest.approx(float(whole.mean()), rel=1e-3)
    again = torch.nn.functional.interpolate(small[None, None], size=(BOX,) * 3, mode="trilinear")[0, 0]
    if box % 2 == 0:
        assert float(fourier_shell_correlation(again, whole)[2:5].min()) > 0.9


def test_the_script_opens_every_map_in_order_at_one_level(tmp_path: Path) -> None:
    model = continuous_model()
    written = write_series(tmp_path, model, path_series(model, model.latents.centers[0], model.latents.centers[2], 12))
    *maps, script = written
    lines = script.read_text().splitlines()
    opened = [match.group(1) for line in lines if (match := re.fullmatch(r'open "(.*)"', line))]
    assert opened == [path.name for path in maps]
    assert opened == sorted(opened)
    assert len(opened) == 12
    levels = {match.group(1) for line in lines if (match := re.search(r"level (\S+)", line))}
    assert len(levels) == 1
    volume, pixel_size = read_map(maps[0])
    assert pixel_size == pytest.approx(PIXEL)
    assert 0 < float(levels.pop()) < volume.max()
    assert any(line.startswith("volume morph #1-12 ") for line in lines)
    points = np.loadtxt(tmp_path / "path.txt")
    assert points.shape == (12, 2)


def test_a_path_follows_the_particles_and_not_the_chord() -> None:
    model = continuous_model()
    ends = np.array([1.0, 0.0]), np.array([-1.0, 0.0])
    series = path_series(model, *ends, 9)
    radius = np.linalg.norm(series.points, axis=1)
    assert series.notes == ()
    np.testing.assert_allclose(series.points[[0, -1]], ends, atol=1e-6)
    assert np.all(radius > 0.85)
    steps = np.linalg.norm(np.diff(series.points, axis=0), axis=1)
    assert steps.max() < 1.2 * steps.min()


def test_a_component_runs_through_the_particles() -> None:
    model = continuous_model()
    points = component_series(model, 1, 7).points
    assert abs(points[-1, 0] - points[0, 0]) > 1.5
    assert np.all(np.abs(np.linalg.norm(points, axis=1) - 1) < 0.35)


def test_a_path_through_nothing_is_said_to_be_one() -> None:
    series = path_series(toy_model(), CENTERS[0], CENTERS[1], 3)
    np.testing.assert_allclose(series.points, [CENTERS[0], CENTERS.mean(axis=0), CENTERS[1]])
    assert "no particles lie between" in series.notes[0]


def test_points_outside_the_learnt_region_are_answered_with_how_far() -> None:
    inside = points_series(toy_model(), CENTERS)
    assert inside.notes == ()
    (note,) = points_series(toy_model(), np.array([[CENTERS[1, 0] + 4.0]])).notes
    said = float(re.search(r"lies (\S+) posterior deviations", note).group(1))  # type: ignore[union-attr]
    assert said == pytest.approx(4.0 / 0.15, rel=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: points_series(model, np.zeros((1, 2))), "1 coordinates, the point 2"),
        (lambda model: points_series(model, np.array([[np.nan]])), "not a finite number"),
        (lambda model: state_series(model, 3), "no state 3"),
        (lambda model: state_series(model, 0), "states 1 to 2"),
        (lambda model: component_series(model, 2, 5), "no principal component 2"),
        (lambda model: component_series(model, 1, 1), "make no series"),
        (lambda model: path_series(model, CENTERS[0], CENTERS[1], 5000), "make no series"),
        (lambda model: decoded_maps(model, CENTERS[0], BOX + 2), f"larger than that of the model, {BOX} px"),
        (lambda model: decoded_maps(model, CENTERS[0], 4), "shows nothing"),
    ],
)
def test_impossible_wishes_are_refused(call: object, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        call(toy_model())  # type: ignore[operator]


def test_a_model_of_one_conformation_has_its_state_and_no_path(tmp_path: Path) -> None:
    nothing = np.zeros((100, 0))
    summary = summarise_latents(nothing, nothing, np.zeros(100, dtype=np.int64), "homogeneous", np.zeros((1, 0)))
    model = toy_model()
    single = replace(model, maps=model.maps[:1], latents=summary)
    maps = write_series(tmp_path, single, state_series(single, 1))
    np.testing.assert_allclose(read_map(maps[0])[0], model.maps[0].numpy(), rtol=1e-5, atol=1e-5)
    with pytest.raises(SettingError, match="one conformation"):
        component_series(single, 1, 5)
    with pytest.raises(SettingError, match="only state 1"):
        state_series(single, 2)


def test_the_command_writes_maps_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "saved", toy_model())
    run, out = str(tmp_path / "saved"), str(tmp_path / "maps")
    assert main(["decode", run, "--state", "2", "-o", out, "--box", "24"]) == 0
    volume, pixel_size = read_map(tmp_path / "maps" / "state2.mrc")
    assert volume.shape == (24, 24, 24)
    assert pixel_size == pytest.approx(PIXEL * BOX / 24)
    assert main(["decode", run, "--path", "1", "1.9", "--frames", "3", "-o", out]) == 0
    assert main(["decode", run, "--latent", "-0.7", "--latent", "40", "-o", out]) == 0
    assert "its map is extrapolated" in capsys.readouterr().err
    assert {"path_003.mrc", "path.cxc", "path.txt", "latent_002.mrc", "latent.cxc"} <= {
        path.name for path in (tmp_path / "maps").iterdir()
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--state", "7"], "there is no state 7"),
        (["--path", "one", "2"], "neither a state nor a point"),
        (["--state", "1", "--frames", "4"], "goes with --path or --pc"),
        (["--latent", "1", "--latent", "1", "2"], "different numbers of coordinates"),
        (["--pc", "1", "--box", "99"], "larger than that of the model"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "saved", toy_model())
    assert main(["decode", str(tmp_path / "saved"), *words, "-o", str(tmp_path / "maps")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "out.txt"], "is no particle table"),
        (["-o", "out.star", "--patience", "5"], "goes with --follow"),
        (["-o", "out.cs", "--follow"], "reads and writes STAR files"),
        (["-o", "out.star"], "no encoder"),
    ],
)
def test_encode_says_what_is_wrong(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "saved", toy_model())
    assert main(["encode", str(tmp_path / "saved"), "new.star", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_in_the_way_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        write_series(tmp_path / "file" / "maps", toy_model(), state_series(toy_model(), 1))


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_help_is_short_and_light(verb: str) -> None:
    code = (
        f"import sys; from cryofire.cli.main import build_parser; parser = build_parser(['{verb}']);"
        f"\ntry: parser.parse_args(['{verb}', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert len(done.stdout.splitlines()) < 36
