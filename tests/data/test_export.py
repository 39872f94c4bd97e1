"""Export: the user's rows come back unchanged around the new poses, in either format and from either."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofire.data.estimates import ParticleEstimates
from cryofire.data.export import write_cryosparc, write_relion
from cryofire.data.particles import ParticleTable, RelionSource
from cryofire.data.read import read_particles
from cryofire.data.stack import ImageStacks
from cryofire.errors import InputError, TableError
from cryofire.formats.cryosparc import read_cs
from cryofire.formats.mrc import read_map, stack_writer
from cryofire.formats.star import read_star, write_star

POSE_LABELS = {
    *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnClassNumber"),
    *("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginX", "rlnOriginY"),
}
POSE_FIELDS = {f"alignments3D/{name}" for name in ("pose", "shift", "psize_A", "class", "class_posterior")}


def estimates_for(table: ParticleTable, components: int = 2, unused: int | None = 1) -> ParticleEstimates:
    """Random estimates, with one particle that was not used."""
    particles = len(table)
    rng = np.random.default_rng(0)
    estimates = ParticleEstimates(
        rotations=Rotation.random(particles, random_state=1).as_matrix(),
        shifts=rng.normal(scale=20, size=(particles, 2)),
        rotation_std=rng.random(particles),
        shift_std=rng.random(particles),
        latents=rng.normal(size=(particles, components)),
        latent_std=rng.random((particles, components)),
        state=rng.integers(0, 3, size=particles),
        state_probability=rng.random(particles),
        path_position=rng.random(particles),
        contrast=rng.random(particles),
        log_likelihood=rng.normal(scale=1000, size=particles),
        used=np.ones(particles, dtype=bool),
    )
    if unused is not None:
        estimates.used[unused] = False
        estimates.rotations[unused] = estimates.shifts[unused] = estimates.latents[unused] = np.nan
    return estimates


def assert_poses(table: ParticleTable, estimates: ParticleEstimates, offset: int, tolerance: float = 3e-8) -> None:
    """The table holds the estimated poses of used particles."""
    used = estimates.used
    assert table.poses is not None and table.labels is not None
    np.testing.assert_allclose(table.poses.rotations[used], estimates.rotations[used], atol=tolerance)
    np.testing.assert_allclose(table.poses.shifts[used], estimates.shifts[used], atol=tolerance * 1000, rtol=1e-6)
    np.testing.assert_array_equal(table.labels[used], estimates.state[used] + offset)


def test_relion_to_relion(project: Any) -> None:
    source, target = project.star(), project.folder / "out.star"
    table = read_particles(source)
    estimates = estimates_for(table)
    write_relion(table, estimates, target)
    again = read_particles(target)
    assert_poses(again, estimates, offset=1)
    assert table.poses is not None and again.poses is not None and again.labels is not None
    np.testing.assert_allclose(again.poses.rotations[1], table.poses.rotations[1], atol=1e-12)
    np.testing.assert_array_equal(again.poses.shifts[1], table.poses.shifts[1])
    assert again.labels[1] == 2
    before, after = read_star(source), read_star(target)
    assert [block.name for block in after] == ["optics", "particles"]
    for old, new in zip(before, after, strict=True):
        assert list(new.columns)[: len(old.columns)] == list(old.columns)
        for label in set(old.columns) - POSE_LABELS:
            np.testing.assert_array_equal(new.columns[label], old.columns[label])


def test_what_is_added_to_a_star_file(project: Any) -> None:
    table = read_particles(project.star())
    estimates = estimates_for(table)
    write_relion(table, estimates, project.folder / "out.star")
    added = read_star(project.folder / "out.star")[1]
    expected = {
        "cryofireLatent1": estimates.latents[:, 0],
        "cryofireLatent2": estimates.latents[:, 1],
        "cryofireLatentStd2": estimates.latent_std[:, 1],
        "cryofirePathPosition": estimates.path_position,
        "cryofireRotationStd": np.rad2deg(estimates.rotation_std),
        "cryofireShiftStd": estimates.shift_std,
        "cryofireStateProbability": estimates.state_probability,
        "cryofireContrast": estimates.contrast,
        "cryofireLogLikelihood": estimates.log_likelihood,
    }
    for label, values in expected.items():
        np.testing.assert_allclose(added.floats(label), values, atol=6e-4 if "Log" in label else 6e-7)
    np.testing.assert_array_equal(added.integers("cryofireUsed"), [1, 0, 1, 1])


def test_columns_of_an_earlier_export_do_not_linger(project: Any) -> None:
    table = read_particles(project.star())
    write_relion(table, estimates_for(table, components=5), project.folder / "one.star")
    table = read_particles(project.folder / "one.star")
    write_relion(table, estimates_for(table, components=2), project.folder / "two.star")
    labels = list(read_star(project.folder / "two.star")[1].columns)
    assert "cryofireLatent2" in labels and "cryofireLatent3" not in labels
    assert len(set(labels)) == len(labels)


def test_rows_without_a_pose_get_zeros(project: Any) -> None:
    for label in POSE_LABELS & set(project.particles):
        del project.particles[label]
    table = read_particles(project.star())
    write_relion(table, estimates_for(table), project.folder / "out.star")
    again = read_particles(project.folder / "out.star")
    assert again.poses is not None and again.labels is not None
    np.testing.assert_array_equal(again.poses.rotations[1], np.eye(3))
    np.testing.assert_array_equal(again.poses.shifts[1], 0)
    assert again.labels[1] == 0


def test_blocks_keep_their_order(project: Any) -> None:
    table = read_particles(project.star(order=("particles", "optics")))
    write_relion(table, estimates_for(table), project.folder / "out.star")
    assert [block.name for block in read_star(project.folder / "out.star")] == ["particles", "optics"]


@pytest.mark.parametrize("name", ["sample_particles_relion30.star", "empiar_10076_7.star"])
def test_old_files_get_origins_in_pixels(shared_data: Path, tmp_path: Path, name: str) -> None:
    table = read_particles(shared_data / "particles" / name)
    estimates = estimates_for(table)
    write_relion(table, estimates, tmp_path / "out.star")
    (block,) = read_star(tmp_path / "out.star")
    assert "rlnOriginXAngst" not in block
    used = estimates.used
    np.testing.assert_allclose(
        block.floats("rlnOriginX")[used], -(estimates.shifts[:, 0] / table.pixel_size)[used], atol=1e-6
    )
    assert_poses(read_particles(tmp_path / "out.star", shared_data / "particles"), estimates, offset=1)


def test_files_with_both_kinds_of_origins_stay_consistent(project: Any) -> None:
    project.particles["rlnOriginX"] = project.particles["rlnOriginY"] = ["9.0"] * 4
    table = read_particles(project.star())
    write_relion(table, estimates_for(table, unused=None), project.folder / "out.star")
    block = read_star(project.folder / "out.star")[1]
    np.testing.assert_allclose(
        block.floats("rlnOriginX") * table.pixel_size, block.floats("rlnOriginXAngst"), atol=1e-5
    )


@pytest.mark.parametrize(
    "name",
    [
        "particles/relion31.star",
        "particles/sample_particles_relion31.star",
        "metadata/betagal_relion_tutorial_images.star",
        "reference_set/truth.star",
    ],
)
def test_real_star_files_keep_every_other_value(shared_data: Path, tmp_path: Path, name: str) -> None:
    table = read_particles(shared_data / name, stacks=False)
    estimates = estimates_for(table)
    write_relion(table, estimates, tmp_path / "out.star")
    for old, new in zip(read_star(shared_data / name), read_star(tmp_path / "out.star"), strict=True):
        for label in set(old.columns) - POSE_LABELS:
            np.testing.assert_array_equal(new.columns[label], old.columns[label])
    assert_poses(read_particles(tmp_path / "out.star", stacks=False), estimates, offset=1)


def test_poses_that_were_read_are_written_back_as_they_were(shared_data: Path, tmp_path: Path) -> None:
    table = read_particles(shared_data / "reference_set" / "truth.star")
    assert table.poses is not None and table.labels is not None
    estimates = replace(
        estimates_for(table, unused=None),
        rotations=table.poses.rotations,
        shifts=table.poses.shifts,
        state=table.labels - 1,
    )
    write_relion(table, estimates, tmp_path / "out.star")
    old, new = (read_star(path)[1] for path in (table.path, tmp_path / "out.star"))
    for label in ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"):
        np.testing.assert_allclose(new.floats(label), old.floats(label), atol=1.1e-6)
    np.testing.assert_array_equal(new.columns["rlnClassNumber"], old.columns["rlnClassNumber"])


def test_cryosparc_to_cryosparc(project: Any) -> None:
    table = read_particles(project.cs())
    estimates = estimates_for(table)
    write_cryosparc(table, estimates, project.folder / "out.cs")
    assert_poses(read_particles(project.folder / "out.cs"), estimates, offset=0, tolerance=1e-6)
    old, new = project.rows(), read_cs(project.folder / "out.cs")
    assert new.dtype.names is not None and new.dtype.names[: len(old.dtype)] == old.dtype.names
    for name in set(old.dtype.names) - POSE_FIELDS:
        np.testing.assert_array_equal(new[name], old[name])
        assert new.dtype[name] == old.dtype[name]
    np.testing.assert_allclose(new["alignments3D/shift"][0], -estimates.shifts[0] / 4.0, rtol=1e-6)
    for name in ("pose", "shift", "class"):
        np.testing.assert_array_equal(new[f"alignments3D/{name}"][1], old[f"alignments3D/{name}"][1])
    np.testing.assert_allclose(new["cryofire/latent"], estimates.latents, rtol=1e-6)
    np.testing.assert_array_equal(new["cryofire/used"], [1, 0, 1])


def test_a_second_cryosparc_export_replaces_the_first(project: Any) -> None:
    table = read_particles(project.cs())
    write_cryosparc(table, estimates_for(table, components=3), project.folder / "one.cs")
    table = read_particles(project.folder / "one.cs")
    write_cryosparc(table, estimates_for(table, components=0), project.folder / "two.cs")
    assert "cryofire/latent" not in (read_cs(project.folder / "two.cs").dtype.names or ())


@pytest.mark.parametrize(
    "name", ["cryosparc_P12_J24_001_particles.cs", "empiar10025_t20s_cryosparc_P9_J209_000_particles.cs"]
)
def test_real_cryosparc_files(shared_data: Path, tmp_path: Path, name: str) -> None:
    table = read_particles(shared_data / "metadata" / name, stacks=False)
    estimates = estimates_for(table)
    write_cryosparc(table, estimates, tmp_path / "out.cs")
    assert_poses(read_particles(tmp_path / "out.cs", stacks=False), estimates, offset=0, tolerance=1e-6)
    old, new = read_cs(table.path), read_cs(tmp_path / "out.cs")
    for field in set(old.dtype.names or ()) - POSE_FIELDS:
        np.testing.assert_array_equal(new[field], old[field])
    write_relion(table, estimates, tmp_path / "out.star")
    star = read_particles(tmp_path / "out.star", stacks=False)
    assert_poses(star, estimates, offset=1)
    np.testing.assert_allclose(star.optics.defocus_u, table.optics.defocus_u, atol=1e-6)
    np.testing.assert_allclose(star.pixel_size, table.pixel_size, atol=1e-6)
    np.testing.assert_array_equal(star.frame, table.frame)


def test_cryosparc_to_relion_and_back(project: Any) -> None:
    (project.folder / "day1" / "mic.mrcs").rename(project.folder / "day1" / "mic.mrc")
    rows = project.rows()
    rows["blob/path"] = b">day1/mic.mrc"
    rows["ctf/accel_kv"][2] = 200
    rows["ctf/phase_shift_rad"] = 0.7
    table = read_particles(project.cs(rows))
    estimates = estimates_for(table)
    write_relion(table, estimates, project.folder / "out.star")
    star = read_particles(project.folder / "out.star")
    assert_poses(star, estimates, offset=1)
    for name in table.optics.__dataclass_fields__:
        np.testing.assert_allclose(getattr(star.optics, name), getattr(table.optics, name), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(ImageStacks(star).images(np.arange(3)), ImageStacks(table).images(np.arange(3)))
    assert star.poses is not None and table.poses is not None
    np.testing.assert_allclose(star.poses.rotations[1], table.poses.rotations[1], atol=1e-12)
    optics, particles = read_star(project.folder / "out.star")
    assert len(optics) == 2 and particles.text("cryofireUid") == [str(uid) for uid in rows["uid"]]
    write_cryosparc(star, estimates, project.folder / "back.cs")
    back = read_cs(project.folder / "back.cs")
    np.testing.assert_array_equal(back["uid"], rows["uid"])
    assert_poses(read_particles(project.folder / "back.cs"), estimates, offset=0, tolerance=1e-6)
    np.testing.assert_allclose(back["ctf/df1_A"], rows["ctf/df1_A"])


def test_poses_are_optional_on_the_way_to_relion(project: Any) -> None:
    rows = project.rows()
    rows = rows[[name for name in rows.dtype.names if not name.startswith("alignments")]].copy()
    table = read_particles(project.cs(rows))
    write_relion(table, estimates_for(table), project.folder / "out.star")
    write_cryosparc(table, estimates_for(table), project.folder / "out.cs")
    for name, offset in (("out.star", 1), ("out.cs", 0)):
        assert_poses(read_particles(project.folder / name), estimates_for(table), offset, tolerance=1e-6)


def test_star_without_uids_cannot_become_cs(project: Any) -> None:
    table = read_particles(project.star())
    with pytest.raises(TableError, match="without cryoSPARC uids") as caught:
        write_cryosparc(table, estimates_for(table), project.folder / "out.cs")
    assert caught.value.hint is not None and not (project.folder / "out.cs").exists()
    for wrong in ("-1", "x", str(2**64), "9" * 30):
        project.particles["cryofireUid"] = ["1", "2", wrong, "4"]
        table = read_particles(project.star())
        with pytest.raises(TableError) as caught:
            write_cryosparc(table, estimates_for(table), project.folder / "out.cs")
        assert caught.value.row == 3


def test_inputs_are_never_replaced(project: Any) -> None:
    path = project.star()
    table = read_particles(path)
    content = path.read_bytes()
    link = project.folder / "link.star"
    link.symlink_to(path)
    for target in (path, link, project.folder / "day1" / "mic.mrcs"):
        with pytest.raises(InputError, match="its own input"):
            write_relion(table, estimates_for(table), target)
    assert path.read_bytes() == content
    with pytest.raises(TableError, match="3 estimates"):
        write_relion(table, estimates_for(table.take(np.arange(3))), project.folder / "out.star")
    with pytest.raises(InputError, match="cannot write"):
        write_relion(table, estimates_for(table), project.folder / "none" / "out.star")


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
def test_relion_reads_the_images_of_an_exported_cryosparc_set(project: Any) -> None:
    (project.folder / "day1" / "mic.mrcs").rename(project.folder / "day1" / "mic.mrc")
    rows = project.rows()
    rows["blob/path"] = b">day1/mic.mrc"
    table = read_particles(project.cs(rows))
    write_relion(table, estimates_for(table), project.folder / "out.star")
    command = ["relion_stack_create", "--i", "out.star", "--o", "stack"]
    subprocess.run(command, cwd=project.folder, check=True, capture_output=True, timeout=60)
    again = read_particles(project.folder / "stack.star")
    np.testing.assert_allclose(
        ImageStacks(again).images(np.arange(3)), ImageStacks(table).images(np.arange(3)), rtol=1e-6
    )


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("relion_stack_create") is None, reason="RELION is not installed")
@pytest.mark.parametrize("name", ["sample_particles_relion30.star", "sample_particles_relion31.star"])
def test_relion_reads_exports_of_old_and_new_files(shared_data: Path, tmp_path: Path, name: str) -> None:
    """RELION turns origins in pixels of old files into Å with the pixel size that we used."""
    table = read_particles(shared_data / "particles" / name)
    estimates = estimates_for(table, unused=None)
    write_relion(table, estimates, tmp_path / "out.star")
    (tmp_path / "sample.mrcs").symlink_to(shared_data / "particles" / "sample.mrcs")
    command = ["relion_stack_create", "--i", "out.star", "--o", "stack"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    again = read_particles(tmp_path / "stack.star")
    assert_poses(again, estimates, offset=1, tolerance=1e-7)
    np.testing.assert_allclose(again.pixel_size, table.pixel_size, rtol=1e-6)


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="RELION is not installed")
def test_relion_makes_the_same_map_of_exported_poses(shared_data: Path, tmp_path: Path) -> None:
    """RELION also accepts our columns. Its version 3.1 reads no float16, so the stack is written anew."""
    table = read_particles(shared_data / "reference_set" / "truth.star").take(np.arange(40))
    np.testing.assert_array_equal(table.frame, np.arange(40))
    with stack_writer(tmp_path / "particles.mrcs", 64, 7.54) as writer:
        writer.append(ImageStacks(table).images(np.arange(40)))
    assert isinstance(table.source, RelionSource) and table.poses is not None
    write_star(tmp_path / "before.star", (*table.source.before, table.source.particles))
    estimates = estimates_for(table, unused=None)
    write_relion(
        table, replace(estimates, rotations=table.poses.rotations, shifts=table.poses.shifts), tmp_path / "after.star"
    )
    for name in ("before", "after"):
        command = ["relion_reconstruct", "--i", f"{name}.star", "--o", f"{name}.mrc", "--ctf", "--pad", "1"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    before, after = (read_map(tmp_path / f"{name}.mrc")[0] for name in ("before", "after"))
    np.testing.assert_allclose(after, before, atol=1e-3 * before.std())
