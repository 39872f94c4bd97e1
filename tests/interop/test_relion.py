"""Our maps and projections are those of RELION, in the same frame, with the same signs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cryofire.data.estimates import ParticleEstimates
from cryofire.data.export import write_relion
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.data.stack import ImageStacks
from cryofire.formats.mrc import open_stack, read_map, write_map
from cryofire.geometry.fourier import resample
from cryofire.geometry.grids import fourier_shell_correlation, half_plane
from cryofire.physics.ctf import contrast_transfer
from cryofire.physics.imaging import ImageBatch
from cryofire.physics.projection import central_sections, spectrum_grid
from cryofire.physics.shift import phase_ramp
from cryofire.volumes.accumulator import add_images, empty_sums, mean_density, solve_maps
from cryofire.volumes.masks import soft_sphere

pytestmark = pytest.mark.interop

BOX, PIXEL_SIZE = 64, 7.54
Run = Callable[..., None]


def map_of(path: Path) -> Tensor:
    return torch.tensor(read_map(path)[0])


@pytest.fixture(scope="module")
def relion_map(truth_star: Path, relion: Run) -> Tensor:
    """What `relion_reconstruct` makes of the images with their true poses; its particles are bright where ours are dense."""
    relion(truth_star.parent, "relion_reconstruct", "--i", truth_star.name, "--ctf", "--o", "relion.mrc")
    return -map_of(truth_star.parent / "relion.mrc")


def back_projection(table: ParticleTable) -> Tensor:
    plane = half_plane(BOX)
    data = plane.coefficients(torch.from_numpy(ImageStacks(table).images(np.arange(len(table)))))
    transfer = contrast_transfer(table.optics, np.full(len(table), BOX * PIXEL_SIZE)).evaluate(plane.frequencies)
    assert table.poses is not None
    rotations, shifts = torch.from_numpy(table.poses.rotations), torch.from_numpy(table.poses.shifts) / PIXEL_SIZE
    sums, half = empty_sums(plane.max_shell), torch.arange(len(table)) % 2
    add_images(sums, ImageBatch(data, transfer, plane), rotations, shifts, half)
    return solve_maps(sums, BOX, 1e-3 * mean_density(sums))[0]


def test_back_projection_agrees_with_relion_reconstruct(truth_star: Path, relion_map: Tensor) -> None:
    """Two ways of gridding the same noisy data, compared where the particle is: to shell 20 alike, to the end similar."""
    mask = soft_sphere(BOX, 26.0, 4.0)
    ours, theirs = back_projection(read_particles(truth_star)) * mask, relion_map * mask
    correlation = fourier_shell_correlation(ours, theirs)
    assert float(correlation[1:21].min()) > 0.98
    assert float(correlation[1:31].min()) > 0.9
    scale = float((ours * theirs).sum() / theirs.square().sum())
    assert scale == pytest.approx(1.0, abs=0.03)


def test_both_maps_come_as_close_to_the_truth(truth_star: Path, relion_map: Tensor, shared_data: Path) -> None:
    mask = soft_sphere(BOX, 26.0, 4.0)
    truth = resample(map_of(shared_data / "reference_set" / "state0.mrc"), BOX, 3)
    ours = fourier_shell_correlation(back_projection(read_particles(truth_star)) * mask, truth)
    theirs = fourier_shell_correlation(relion_map * mask, truth)
    assert float(ours[1:13].min()) > 0.97
    assert (ours - theirs)[1:25].min() > -0.02


def test_exported_poses_give_relion_the_same_map(truth_star: Path, relion: Run, relion_map: Tensor) -> None:
    table = read_particles(truth_star)
    assert table.poses is not None
    nothing, count = np.zeros(len(table)), len(table)
    estimates = ParticleEstimates(
        table.poses.rotations, table.poses.shifts, nothing, nothing, np.zeros((count, 2)), np.zeros((count, 2)),
        np.zeros(count, dtype=np.int64), nothing + 1, nothing * np.nan, nothing + 1, nothing, np.ones(count, dtype=bool),
    )  # fmt: skip
    folder = truth_star.parent
    write_relion(table, estimates, folder / "exported.star")
    relion(folder, "relion_reconstruct", "--i", "exported.star", "--ctf", "--o", "exported.mrc")
    exported = -map_of(folder / "exported.mrc")
    assert float(fourier_shell_correlation(exported, relion_map).min()) > 0.9999
    assert float((exported - relion_map).norm() / relion_map.norm()) < 1e-3


def test_projections_agree_with_relion_project(truth_star: Path, relion: Run, shared_data: Path) -> None:
    """Views off every axis and shifts of several pixels: one wrong sign or order of angles would show."""
    volume = resample(map_of(shared_data / "reference_set" / "state0.mrc"), BOX, 3)
    folder, table = truth_star.parent, read_particles(truth_star)
    write_map(folder / "state0.mrc", volume.numpy(), PIXEL_SIZE)
    relion(folder, "relion_project", "--i", "state0.mrc", "--ang", truth_star.name, "--o", "views", "--angpix", "7.54")
    theirs = torch.from_numpy(open_stack(folder / "views.mrcs").frames(np.arange(100)))
    theirs = theirs - theirs.mean((-2, -1), keepdim=True)

    plane = half_plane(BOX)
    assert table.poses is not None
    rotations, shifts = (
        torch.from_numpy(table.poses.rotations[:100]),
        torch.from_numpy(table.poses.shifts[:100]) / PIXEL_SIZE,
    )
    assert float(shifts.abs().max()) > 1.0
    sections = central_sections(spectrum_grid(volume[None], plane.max_shell), rotations.float(), plane)[:, 0]
    ours = plane.images(sections * phase_ramp(shifts.float(), plane.frequencies, BOX))
    product = (ours * theirs).sum((-2, -1))
    correlation = product / (ours.square().sum((-2, -1)) * theirs.square().sum((-2, -1))).sqrt()
    assert float(correlation.min()) > 0.999
    torch.testing.assert_close(product / theirs.square().sum((-2, -1)), torch.ones(100), atol=5e-3, rtol=0)
