from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cryofire.data.read import read_particles
from cryofire.errors import InputError, MissingFileError
from cryofire.formats.star import StarBlock, read_star, text_column, write_star
from cryofire.training.append_star import appended
from cryofire.training.encode import check_output, encode_particles, write_encoded
from cryofire.training.follow import FollowSettings, follow
from cryofire.training.model_file import DeliveredModel
from cryofire.training.progress import SilentProgress

from .toy_model import ToyTruth, TruthEncoder, toy_model, write_toy

COUNT = 60
QUICK = FollowSettings(patience=0.3, poll=0.02)


class Hook(SilentProgress):
    """Does something when a note arrives."""

    def __init__(self, action: Callable[[str], None]) -> None:
        self._action = action

    def note(self, text: str) -> None:
        self._action(text)


@pytest.fixture
def toy(tmp_path: Path) -> ToyTruth:
    return write_toy(tmp_path / "set", COUNT)


def model_for(toy: ToyTruth) -> DeliveredModel:
    return toy_model(TruthEncoder(toy, 0.05))


def head_of(toy: ToyTruth, rows: int, cut: int = 0) -> bytes:
    """The beginning of the table, as a program leaves it that has written so many rows, the last cut short."""
    lines = toy.path.read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith(b"000001@"))
    whole = b"".join(lines[: first + rows])
    return whole[:-cut] if cut else whole


def particles_of(path: Path) -> StarBlock:
    return next(block for block in read_star(path) if "rlnImageName" in block)


def test_a_growing_file_gives_what_the_finished_one_gives(toy: ToyTruth, tmp_path: Path) -> None:
    growing, output = toy.path.with_name("growing.star"), tmp_path / "out.star"
    growing.write_bytes(head_of(toy, 20, cut=3))
    stages = iter([head_of(toy, 33, cut=4), head_of(toy, COUNT)])
    counts = []

    def grow(text: str) -> None:
        if "added" in text:
            counts.append(len(particles_of(output)))
            if (content := next(stages, None)) is not None:
                growing.write_bytes(content)

    assert follow(growing, output, model_for(toy), QUICK, Hook(grow)) == COUNT
    assert counts == [19, 32, COUNT]
    once = tmp_path / "once.star"
    table = read_particles(toy.path)
    write_encoded(table, encode_particles(table, model_for(toy)), once)
    mine, theirs = particles_of(output), particles_of(once)
    assert list(mine.columns) == list(theirs.columns)
    for label in ("rlnImageName", "userColumn", "rlnAngleRot", "rlnClassNumber"):
        assert mine.columns[label].tolist() == theirs.columns[label].tolist()
    assert not list(tmp_path.glob(".*"))


def test_the_same_command_continues_and_encodes_nothing_twice(toy: ToyTruth, tmp_path: Path) -> None:
    growing, output = toy.path.with_name("growing.star"), tmp_path / "out.star"
    growing.write_bytes(head_of(toy, 25))

    def stop(text: str) -> None:
        if "added" in text:
            raise KeyboardInterrupt

    model = model_for(toy)
    with pytest.raises(KeyboardInterrupt):
        follow(growing, output, model, QUICK, Hook(stop))
    assert len(particles_of(output)) == 25
    before = output.read_bytes()
    assert follow(growing, output, model, QUICK, SilentProgress()) == 25
    assert output.read_bytes() == before
    growing.write_bytes(head_of(toy, 40))
    assert follow(growing, output, model, QUICK, SilentProgress()) == 40
    names = particles_of(output).columns["rlnImageName"].tolist()
    assert len(set(names)) == len(names) == 40


def test_a_folder_is_followed_and_its_optics_groups_are_kept_apart(toy: ToyTruth, tmp_path: Path) -> None:
    folder, output = tmp_path / "jobs", tmp_path / "jobs" / "out.star"
    optics, particles = read_star(toy.path)
    other = optics.updated({"rlnVoltage": np.array([b"200.0"])})
    for name, block, rows in (("a", optics, range(10)), ("b", other, range(10, 30)), ("c", optics, range(30, 45))):
        (folder / name).mkdir(parents=True)
        write_star(folder / name / "extract.star", (block, particles.take(np.array(rows))))
    write_star(
        folder / "micrographs.star", (StarBlock(folder, "micrographs", {"rlnMicrographName": text_column("m")}),)
    )
    settings = replace(QUICK, datadir=toy.path.parent)
    assert follow(folder, output, model_for(toy), settings, SilentProgress()) == 45
    table = read_particles(output, toy.path.parent)
    np.testing.assert_array_equal(table.optics.voltage_kv, [300.0] * 10 + [200.0] * 20 + [300.0] * 15)


def test_images_that_are_not_there_yet_are_waited_for(toy: ToyTruth, tmp_path: Path) -> None:
    stack, hidden = toy.path.with_name("particles.mrcs"), tmp_path / "hidden.mrcs"
    stack.rename(hidden)
    heard: list[str] = []

    def bring(text: str) -> None:
        heard.append(text)
        if "not yet usable" in text:
            hidden.rename(stack)

    assert follow(toy.path, tmp_path / "out.star", model_for(toy), QUICK, Hook(bring)) == COUNT
    assert sum("not yet usable" in text for text in heard) == 1


def test_a_row_cut_in_the_middle_is_waited_for(toy: ToyTruth, tmp_path: Path) -> None:
    growing = toy.path.with_name("growing.star")
    growing.write_bytes(head_of(toy, 20, cut=30))

    def grow(text: str) -> None:
        if "not yet usable" in text:
            growing.write_bytes(head_of(toy, 40))

    assert follow(growing, tmp_path / "out.star", model_for(toy), QUICK, Hook(grow)) == 40


def test_what_is_still_wrong_when_patience_runs_out_is_said(toy: ToyTruth, tmp_path: Path) -> None:
    toy.path.with_name("particles.mrcs").unlink()
    with pytest.raises(MissingFileError, match="stacks were not found"):
        follow(toy.path, tmp_path / "out.star", model_for(toy), QUICK, SilentProgress())


def test_outputs_of_others_are_left_alone(toy: ToyTruth, tmp_path: Path) -> None:
    output = tmp_path / "out.star"
    output.write_bytes(toy.path.read_bytes())
    with pytest.raises(InputError, match="not written by --follow"):
        follow(toy.path, output, model_for(toy), QUICK, SilentProgress())
    output.unlink()
    model = model_for(toy)
    follow(toy.path, output, model, QUICK, SilentProgress())
    for other, settings in ((replace(model, maps=2 * model.maps), QUICK), (model, replace(QUICK, polish=1))):
        with pytest.raises(InputError, match="another model or another --polish"):
            follow(toy.path, output, other, settings, SilentProgress())


def test_nothing_to_follow(toy: ToyTruth, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nothing to follow"):
        follow(tmp_path / "nothing.star", tmp_path / "out.star", model_for(toy), QUICK, SilentProgress())


def test_following_without_patience_goes_on(toy: ToyTruth, tmp_path: Path) -> None:
    output, ended = tmp_path / "out.star", threading.Event()

    class Stop(Exception):
        pass

    def note(text: str) -> None:
        if ended.is_set():
            raise Stop

    def run() -> None:
        with pytest.raises(Stop):
            follow(toy.path, output, model_for(toy), FollowSettings(poll=0.02), Hook(note))

    growing = toy.path.read_bytes()
    toy.path.write_bytes(head_of(toy, 30))
    thread = threading.Thread(target=run)
    thread.start()
    while not output.exists():
        time.sleep(0.02)
    time.sleep(0.2)
    assert thread.is_alive()
    ended.set()
    toy.path.write_bytes(growing)
    thread.join(60)
    assert not thread.is_alive()


def test_columns_that_are_missing_are_named(toy: ToyTruth, tmp_path: Path) -> None:
    blocks = read_star(toy.path)
    fewer = replace(blocks[1], columns={k: v for k, v in blocks[1].columns.items() if k != "userColumn"})
    with pytest.raises(InputError, match="userColumn"):
        appended(blocks, (blocks[0], fewer), tmp_path / "later.star")
    with pytest.raises(InputError, match="optics groups"):
        appended(blocks, (blocks[1],), tmp_path / "later.star")
    more = blocks[1].updated({"extra": blocks[1].columns["userColumn"]})
    both = appended(blocks, (blocks[0], more), tmp_path / "later.star")
    assert len(both[1]) == 2 * COUNT
    assert "extra" not in both[1]
    assert len(both[0]) == 1


def test_outputs_that_cannot_be_written_are_refused_before_the_work(toy: ToyTruth, tmp_path: Path) -> None:
    table = read_particles(toy.path)
    with pytest.raises(InputError, match="replace its own input"):
        check_output(table, toy.path)
    with pytest.raises(InputError, match="folder to write to does not exist"):
        check_output(table, tmp_path / "nowhere" / "out.star")
    with pytest.raises(InputError, match="folder to write to does not exist"):
        follow(toy.path, tmp_path / "nowhere" / "out.star", model_for(toy), QUICK, SilentProgress())
    with pytest.raises(InputError, match="cryofireUid"):
        check_output(table, tmp_path / "out.cs")
    check_output(table, tmp_path / "out.star")
