"""Foreign pose conventions and ours, and the only place where they are converted.

Ours: ``r_image = R r_volume`` with vectors (x, y, z), and a shift t (Å) that moves the particle in the image.
RELION: ``R = (Rz(rot) Ry(tilt) Rz(psi))ᵀ``, angles in degrees, and an origin -t.
cryoSPARC: ``R = exp([pose]×)ᵀ``, and a shift -t in pixels of ``alignments3D/psize_A``.
"""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float, Float64
from scipy.spatial.transform import Rotation


def rotations_from_relion(angles_deg: Float[np.ndarray, "particle 3"]) -> Float64[np.ndarray, "particle 3 3"]:
    """Rotation matrices of RELION's Euler angles: ``R = (Rz(rot) Ry(tilt) Rz(psi))ᵀ``.

    Parameters
    ----------
    angles_deg : array (particle, 3)
        rlnAngleRot, rlnAngleTilt and rlnAnglePsi, in degrees.
    """
    angles = np.asarray(angles_deg, dtype=np.float64).reshape(-1, 3)
    return np.swapaxes(Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix(), -1, -2)


def relion_from_rotations(rotations: Float[np.ndarray, "particle 3 3"]) -> Float64[np.ndarray, "particle 3"]:
    """RELION's Euler angles (rot, tilt, psi) of rotation matrices, in degrees, tilt within [0, 180].

    Where tilt is 0 or 180 only rot ± psi is defined: psi is then 0.
    """
    matrices = np.swapaxes(np.asarray(rotations, dtype=np.float64).reshape(-1, 3, 3), -1, -2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gimbal lock")
        return np.asarray(Rotation.from_matrix(matrices).as_euler("ZYZ", degrees=True))


def rotations_from_cryosparc(poses: Float[np.ndarray, "particle 3"]) -> Float64[np.ndarray, "particle 3 3"]:
    """Rotation matrices of cryoSPARC's rotation vectors: ``R = exp([pose]×)ᵀ``.

    Parameters
    ----------
    poses : array (particle, 3)
        alignments3D/pose: axis times angle, in radians.
    """
    vectors = np.asarray(poses, dtype=np.float64).reshape(-1, 3)
    return np.swapaxes(Rotation.from_rotvec(vectors).as_matrix(), -1, -2)


def cryosparc_from_rotations(rotations: Float[np.ndarray, "particle 3 3"]) -> Float64[np.ndarray, "particle 3"]:
    """Rotation vectors of rotation matrices in cryoSPARC's sense, in radians, of length at most π."""
    matrices = np.swapaxes(np.asarray(rotations, dtype=np.float64).reshape(-1, 3, 3), -1, -2)
    return np.asarray(Rotation.from_matrix(matrices).as_rotvec())


def shifts_from_origins(
    origins: Float[np.ndarray, "particle 2"], pixel_size: Float[np.ndarray, " particle"] | float = 1.0
) -> Float64[np.ndarray, "particle 2"]:
    """Shifts in Å of RELION origins or cryoSPARC shifts: ``t = -origin · pixel_size``.

    Both programs store the shift that centres an image; ours is the one that moved the particle.

    Parameters
    ----------
    origins : array (particle, 2)
        rlnOriginXAngst/YAngst (Å; leave `pixel_size` at 1), or rlnOriginX/Y or alignments3D/shift (px).
    pixel_size : array (particle,) or float
        Å per unit of `origins`: rlnImagePixelSize for rlnOriginX/Y, alignments3D/psize_A for alignments3D/shift.
    """
    return -np.asarray(origins, dtype=np.float64) * np.asarray(pixel_size, dtype=np.float64)[..., None]


def origins_from_shifts(
    shifts: Float[np.ndarray, "particle 2"], pixel_size: Float[np.ndarray, " particle"] | float = 1.0
) -> Float64[np.ndarray, "particle 2"]:
    """RELION origins or cryoSPARC shifts of our shifts: ``origin = -t / pixel_size``."""
    return -np.asarray(shifts, dtype=np.float64) / np.asarray(pixel_size, dtype=np.float64)[..., None]
