"""Small particle sets in RELION's and cryoSPARC's files, to be spoilt by the tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cryofire.formats.cryosparc import write_cs
from cryofire.formats.mrc import stack_writer

OPTICS = {
    "rlnOpticsGroup": ["1", "2"],
    "rlnOpticsGroupName": ["day1", "day2"],
    "rlnVoltage": ["300.0", "200.0"],
    "rlnSphericalAberration": ["2.7", "0.01"],
    "rlnAmplitudeContrast": ["0.1", "0.07"],
    "rlnImagePixelSize": ["2.0", "3.0"],
    "rlnImageSize": ["8", "7"],
    "rlnImageDimensionality": ["2", "2"],
}
PARTICLES = {
    "rlnImageName": ["000002@day1/mic.mrcs", "000001@day2/mic.mrcs", "000001@day1/mic.mrcs", "000003@day1/mic.mrcs"],
    "rlnMicrographName": ["m1.mrc", "m2.mrc", "m1.mrc", "m1.mrc"],
    "rlnCoordinateX": ["10.0", "20.0", "30.0", "40.0"],
    "rlnCoordinateY": ["10.0", "20.0", "30.0", "40.0"],
    "rlnDefocusU": ["10000.0", "11000.0", "12000.0", "13000.0"],
    "rlnDefocusV": ["9000.0", "10000.0", "11000.0", "12000.0"],
    "rlnDefocusAngle": ["45.0", "0.0", "-30.0", "90.0"],
    "rlnPhaseShift": ["0.0", "90.0", "0.0", "0.0"],
    "rlnOpticsGroup": ["1", "2", "1", "1"],
    "rlnAngleRot": ["10.0", "20.0", "30.0", "-40.0"],
    "rlnAngleTilt": ["40.0", "50.0", "60.0", "70.0"],
    "rlnAnglePsi": ["70.0", "-80.0", "90.0", "100.0"],
    "rlnOriginXAngst": ["1.5", "-2.5", "0.0", "4.0"],
    "rlnOriginYAngst": ["-1.0", "0.5", "3.0", "0.0"],
    "rlnClassNumber": ["1", "2", "1", "2"],
}


@dataclass
class Project:
    """Stacks day1/mic.mrcs (3 images of 8 px) and day2/mic.mrcs (1 of 7 px) with a STAR file of four particles."""

    folder: Path
    optics: dict[str, list[str]] = field(default_factory=lambda: {name: list(v) for name, v in OPTICS.items()})
    particles: dict[str, list[str]] = field(default_factory=lambda: {name: list(v) for name, v in PARTICLES.items()})

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        for name, count, box, pixel_size in (("day1", 3, 8, 2.0), ("day2", 1, 7, 3.0)):
            (self.folder / name).mkdir()
            with stack_writer(self.folder / name / "mic.mrcs", box, pixel_size) as writer:
                writer.append(rng.normal(size=(count, box, box)))

    def star(self, name: str = "particles.star", order: tuple[str, ...] = ("optics", "particles")) -> Path:
        """Write the STAR file with its blocks in the given order."""
        blocks = {"optics": self.optics, "particles": self.particles, "": self.particles}
        path = self.folder / name
        path.write_text("\n".join(self._block(block, blocks[block]) for block in order))
        return path

    @staticmethod
    def _block(name: str, columns: dict[str, list[str]]) -> str:
        rows = "".join(" ".join(row) + "\n" for row in zip(*columns.values(), strict=True))
        return f"data_{name}\n\nloop_\n" + "".join(f"_{label}\n" for label in columns) + rows

    def rows(self) -> np.ndarray:
        """The particles of day1 as cryoSPARC rows."""
        rows = np.zeros(3, dtype=CRYOSPARC)
        rows["uid"] = [9_007_199_254_740_993, 5, 2**64 - 1]
        rows["blob/path"], rows["blob/idx"] = b">day1/mic.mrcs", [1, 0, 2]
        rows["blob/shape"], rows["blob/psize_A"], rows["blob/sign"] = 8, 2.0, -1
        rows["ctf/accel_kv"], rows["ctf/cs_mm"], rows["ctf/amp_contrast"] = 300, 2.7, 0.1
        rows["ctf/df1_A"], rows["ctf/df2_A"] = [10000, 11000, 12000], [9000, 10000, 11000]
        rows["ctf/df_angle_rad"], rows["ctf/scale"] = [0.5, -0.5, 4.0], 1
        rows["alignments3D/pose"] = [[0.1, 0.2, 0.3], [0, 0, 0], [1.0, -1.0, 0.5]]
        rows["alignments3D/shift"] = [[1.0, -2.0], [0, 0], [3.0, 0.5]]
        rows["alignments3D/psize_A"], rows["alignments3D/class"] = 4.0, [0, 1, 0]
        return rows

    def cs(self, rows: np.ndarray | None = None, name: str = "particles.cs") -> Path:
        """Write a .cs file."""
        write_cs(self.folder / name, self.rows() if rows is None else rows)
        return self.folder / name


CRYOSPARC = np.dtype(
    [
        ("uid", "<u8"),
        ("blob/path", "S20"),
        ("blob/idx", "<u4"),
        ("blob/shape", "<u4", 2),
        ("blob/psize_A", "<f4"),
        ("blob/sign", "<f4"),
        ("ctf/accel_kv", "<f4"),
        ("ctf/cs_mm", "<f4"),
        ("ctf/amp_contrast", "<f4"),
        ("ctf/df1_A", "<f4"),
        ("ctf/df2_A", "<f4"),
        ("ctf/df_angle_rad", "<f4"),
        ("ctf/phase_shift_rad", "<f4"),
        ("ctf/scale", "<f4"),
        ("ctf/tilt_A", "<f4", 2),
        ("alignments3D/pose", "<f4", 3),
        ("alignments3D/shift", "<f4", 2),
        ("alignments3D/psize_A", "<f4"),
        ("alignments3D/class", "<u4"),
    ]
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A small particle set in an empty folder."""
    return Project(tmp_path)
