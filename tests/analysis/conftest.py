"""Test material of this folder: sums of Gaussians, with exact values in any frame and on any grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryofire.analysis.alignment import RigidTransform
from cryofire.analysis.map_alignment import fourier_resize, transform_map
from cryofire.analysis.masks import low_pass
from cryofire.data.estimates import ParticleEstimates
from cryofire.formats.conventions import origins_from_shifts, relion_from_rotations
from cryofire.formats.mrc import write_map
from cryofire.formats.star import StarBlock, float_column, integer_column, text_column, write_star


@dataclass(frozen=True)
class Blobs:
    """Gaussians exp(−|r − c|² / 2σ²) at centres (x, y, z); lengths in Å."""

    centres: np.ndarray
    weights: np.ndarray
    width: float

    def volume(self, box: int, pixel_size: float) -> np.ndarray:
        axis = (np.arange(box) - box // 2) * pixel_size
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        return sum(
            weight
            * np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2 + (z - c[2]) ** 2) / (2 * self.width**2))
            for c, weight in zip(self.centres, self.weights, strict=True)
        )  # fmt: skip

    def moved(self, matrix: np.ndarray, offset: np.ndarray) -> Blobs:
        """The blobs of V_new(r) = V(M (r + o)): centres M⁻¹ c − o."""
        return Blobs(self.centres @ np.linalg.inv(matrix).T - offset, self.weights, self.width)


def asymmetric_blobs(width: float, extent: float = 8.0, count: int = 9, seed: int = 0) -> Blobs:
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((count, 3))
    centres = extent * directions / np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(0.2, 1, (count, 1))
    return Blobs(centres, rng.uniform(0.5, 1.5, count), width)


def project(volume: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Numerical projection: image(r) = Σ_z V(Rᵀ (x − t_x, y − t_y, z)), lengths in voxels."""
    box = len(volume)
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    points = np.stack([x - shift[0], y - shift[1], z], axis=-1) @ rotation  # Rᵀ applied to each point
    return ndimage.map_coordinates(volume, np.moveaxis(points[..., ::-1] + box // 2, -1, 0), order=3).sum(axis=0)


@pytest.fixture
def make_blobs() -> Callable[..., Blobs]:
    """`make_blobs(width, extent, count, seed)`: a molecule without symmetry."""
    return asymmetric_blobs


@pytest.fixture
def project_volume() -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """`project_volume(volume, rotation, shift)`: a plain numerical projection."""
    return project


@dataclass(frozen=True)
class SyntheticSet:
    """A molecule in two states seen from everywhere: the truth, and what a good run would estimate."""

    maps: tuple[np.ndarray, ...]
    pixel_size: float
    labels: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    hidden: RigidTransform
    rotation_std: float
    shift_std: float

    def estimates(self, seed: int = 1) -> ParticleEstimates:
        rng, count = np.random.default_rng(seed), len(self.labels)
        turned = Rotation.from_rotvec(rng.normal(0, self.rotation_std / np.sqrt(3), (count, 3))).as_matrix()
        rotations = self.hidden.rotate_poses(turned @ self.rotations)
        moved = self.shifts + rng.normal(0, self.shift_std, (count, 2))
        latents = rng.normal(0, 1, (count, 3)) * [0.5, 0.7, 0.4]
        latents[:, 0] += np.where(self.labels == self.labels.min(), -1.0, 4.0)
        return ParticleEstimates(
            rotations=rotations,
            shifts=self.hidden.shift_poses(rotations, moved),
            rotation_std=np.full(count, self.rotation_std),
            shift_std=np.full(count, self.shift_std),
            latents=latents,
            latent_std=np.full((count, 3), 0.4),
            state=(latents[:, 0] > 1.5).astype(np.int64),
            state_probability=np.full(count, 0.99),
            path_position=np.full(count, np.nan),
            contrast=rng.normal(1, 0.1, count),
            log_likelihood=rng.normal(-1000, 20, count),
            used=np.ones(count, dtype=bool),
        )

    def run_maps(self, box: int, noise: float, seed: int) -> list[np.ndarray]:
        """Maps of a run: in its own frame, coarser than the truth, with noise."""
        pixel = self.pixel_size * len(self.maps[0]) / box
        rng = np.random.default_rng(seed)
        moved = [transform_map(fourier_resize(one, box), pixel, self.hidden) for one in self.maps]
        return [one + noise * one.std() * rng.standard_normal(one.shape) for one in moved]


def synthetic_set(maps: tuple[np.ndarray, ...], pixel_size: float, count: int, *, mirrored: bool) -> SyntheticSet:
    rng = np.random.default_rng(5)
    labels = np.where(rng.random(count) < 0.25, 2, 1)
    rotation = Rotation.random(rng=rng).as_matrix()
    hidden = RigidTransform(rotation, rng.normal(0, 1.5, 3), mirrored)
    rotations, shifts = Rotation.random(count, rng=rng).as_matrix(), rng.normal(0, 5.0, (count, 2))
    return SyntheticSet(maps, pixel_size, labels, rotations, shifts, hidden, 0.02, 0.4)


def write_star_of(known: SyntheticSet, path: Path, *, with_truth: bool) -> None:
    count, box = len(known.labels), len(known.maps[0]) // 2
    columns = {
        "rlnImageName": text_column([f"{row + 1:06d}@set/particles.mrcs" for row in range(count)]),
        "rlnVoltage": float_column(np.full(count, 300.0)),
        "rlnSphericalAberration": float_column(np.full(count, 2.7)),
        "rlnAmplitudeContrast": float_column(np.full(count, 0.1)),
        "rlnImagePixelSize": float_column(np.full(count, 2 * known.pixel_size)),
        "rlnImageSize": integer_column(np.full(count, box)),
        "rlnDefocusU": float_column(np.full(count, 15000.0)),
        "rlnDefocusV": float_column(np.full(count, 15000.0)),
        "rlnDefocusAngle": float_column(np.zeros(count)),
    }
    if with_truth:
        angles, origins = relion_from_rotations(known.rotations), origins_from_shifts(known.shifts)
        columns |= {f"rlnAngle{n}": float_column(angles[:, i]) for i, n in enumerate(("Rot", "Tilt", "Psi"))}
        columns |= {f"rlnOrigin{n}Angst": float_column(origins[:, i]) for i, n in enumerate("XY")}
        columns["rlnClassNumber"] = integer_column(known.labels)
        columns["cryofireCoordinate"] = float_column(known.labels + 0.01 * np.arange(count) / count)
    write_star(path, [StarBlock(path, "particles", columns)])


def write_truth(known: SyntheticSet, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for index, volume in enumerate(known.maps):
        write_map(folder / f"state{index}.mrc", volume, known.pixel_size)
    write_star_of(known, folder / "truth.star", with_truth=True)
    return folder / "truth.star"


def write_run(known: SyntheticSet, folder: Path, box: int, *, noise: float = 0.1) -> Path:
    """A complete run folder as `cryofire reconstruct` leaves it."""
    (folder / "states").mkdir(parents=True)
    write_star_of(known, folder / "particles.star", with_truth=False)
    estimates = known.estimates()
    estimates.save(folder / "estimates.npz")
    pixel = known.pixel_size * len(known.maps[0]) / box
    shells = np.arange(box // 2)
    fsc = (1 / (1 + np.exp((shells - 0.35 * box) / 1.5))).tolist()
    halves = [known.run_maps(box, 3 * noise, seed) for seed in (11, 12)]
    states = []
    for index, volume in enumerate(known.run_maps(box, noise, 13)):
        name = f"states/state{index + 1}"
        write_map(folder / f"{name}.mrc", volume, pixel)
        write_map(folder / f"{name}_decoded.mrc", low_pass(volume, 0.3 * box), pixel)
        for half in (0, 1):
            write_map(folder / f"{name}_half{half + 1}.mrc", halves[half][index], pixel)
        members = int(np.sum(estimates.state == index))
        states.append({
            "name": f"state{index + 1}", "map": f"{name}.mrc", "decoded": f"{name}_decoded.mrc",
            "half_maps": [f"{name}_half1.mrc", f"{name}_half2.mrc"], "particles": members,
            "weight": members / len(estimates), "latent_center": [-1.0 + 5.0 * index, 0.0, 0.0], "fsc": fsc,
            "fsc_masked": fsc, "resolution": 2.5 * pixel, "shared_shell": 6,
        })  # fmt: skip
    write_map(folder / "consensus.mrc", known.run_maps(box, noise, 14)[0], pixel)
    for half in (0, 1):
        write_map(folder / f"consensus_half{half + 1}.mrc", halves[half][0], pixel)
    (folder / "results.json").write_text(json.dumps(results_of(known, states, fsc, box, pixel)))
    write_metrics(folder / "metrics.jsonl")
    write_examples(known, folder / "examples.npz", box)
    (folder / "settings.json").write_text('{"seed": 0}')
    (folder / "run.log").write_text("finished\n")
    return folder


def results_of(known: SyntheticSet, states: list[dict[str, object]], fsc: list[float], box: int, pixel: float) -> dict:
    count = len(known.labels)
    stages = [("prepare", 9.0), ("search", 41.0), ("consensus", 96.0), ("subspace", 88.0), ("states", 30.0)]
    return {
        "schema": 1, "version": "0.1.0", "seed": 0, "input": "set/particles.star", "particles": count,
        "particles_used": count, "box": box, "pixel_size": pixel, "contrast": "dark", "snr": 0.1,
        "max_shell": box // 2 - 1, "components": 3,
        "stages": [{"name": name, "wall_s": wall, "cpu_s": 1.9 * wall, "peak_memory_bytes": int(9e8 + 4e6 * wall),
                    "bytes_read": int(4e7 * wall)} for name, wall in stages],
        "consensus": {"map": "consensus.mrc", "fsc": fsc, "resolution": 2.6 * pixel},
        "states": states, "mask": "soft mask around the consensus, low-passed to 20 Å", "heterogeneity": "discrete",
        "verdicts": [
            {"level": "good", "topic": "Poses", "text": "Rotations are certain to 0.7° (median); half-maps agree."},
            {"level": "good", "topic": "States", "text": "Two clusters, separated by five posterior widths."},
            {"level": "caution", "topic": "Minor state", "text": "It has few images; its map is less detailed."},
        ],
    }  # fmt: skip


def write_metrics(path: Path) -> None:
    lines: list[dict[str, object]] = []
    for start in range(3):
        lines += [{"stage": "search", "start": start, "step": step, "shell": 5 + step // 6,
                   "temperature": max(1.0, 10 - step / 3), "effective_poses": 3000 / (1 + step * (1 + start) / 4),
                   "log_likelihood": -1300 + 70 * (1 - np.exp(-step / (9 + 5 * start)))}
                  for step in range(45)]  # fmt: skip
    lines += [{"stage": "consensus", "step": step, "shell": 12 + 2 * step,
               "log_likelihood": -(1.0 + 0.1 * 0.6**step) * np.pi / 2 * (12.5 + 2 * step) ** 2,
               "held_out": -(1.01 + 0.1 * 0.6**step) * np.pi / 2 * (12.5 + 2 * step) ** 2, "rotation_change_deg": 4.0 * 0.6**step,
               "shift_change_px": 0.5 * 0.55**step, "seconds": 12.0} for step in range(9)]  # fmt: skip
    lines += [{"stage": "subspace", "step": step, "shell": 24 + step, "misfit": 1.001 - 0.001 * step,
               "rotation_change_deg": 0.08 * 0.5**step, "shift_change_px": 0.004,
               "seconds": 14.0} for step in range(6)]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_examples(known: SyntheticSet, path: Path, box: int) -> None:
    rng = np.random.default_rng(3)
    coarse = fourier_resize(known.maps[0], box)
    scale = len(known.maps[0]) / box * known.pixel_size
    rows = range(0, 8)
    predicted = np.stack([-project(coarse, known.rotations[row], known.shifts[row] / scale) for row in rows])
    observed = predicted + 0.7 * predicted.std() * rng.standard_normal(predicted.shape)
    np.savez(path, observed=observed.astype(np.float32), predicted=predicted.astype(np.float32), particle=np.arange(8))


@pytest.fixture(scope="session")
def two_states() -> SyntheticSet:
    """300 particles of blobs in two states, in a mirrored, rotated and moved frame."""
    body, arm = asymmetric_blobs(width=9.0, extent=60.0, count=14), asymmetric_blobs(9.0, 10.0, 3, seed=4)
    states = [
        body.volume(48, 4.0) + Blobs(arm.centres + place, arm.weights, arm.width).volume(48, 4.0)
        for place in (np.array([35.0, 20.0, 0.0]), np.array([20.0, -35.0, 5.0]))
    ]
    maps = tuple(one.astype(np.float32) for one in states)
    return synthetic_set(maps, 4.0, 300, mirrored=True)


@pytest.fixture(scope="session")
def finished_run(two_states: SyntheticSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run folder and truth STAR file of `two_states`; read-only, shared by the tests."""
    folder = tmp_path_factory.mktemp("finished")
    return write_run(two_states, folder / "run", 24), write_truth(two_states, folder / "set")


@pytest.fixture
def run_and_truth(two_states: SyntheticSet, tmp_path: Path) -> tuple[Path, Path]:
    """The same as `finished_run`, for tests that damage it."""
    return write_run(two_states, tmp_path / "run", 24), write_truth(two_states, tmp_path / "set")
