"""Removal of what images cannot tell: global rotation, hand and origin of a reconstruction.

Images stay the same when the volume is rotated, mirrored and moved and the poses follow. A `RigidTransform` is such a
change of frame; `align_poses` finds the one that brings estimated poses closest to true ones.

Where the mirrored pose comes from: with D = diag(1, 1, −1) and V'(r) = V(D r), the image of V' at R' is
∫ V(D R'ᵀ (x, y, z)) dz. The line integral does not care about the sign of z, so it equals the image of V at R when
D R'ᵀ = Rᵀ D, that is R' = D R D. Any other mirror is this one followed by a rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cryofire.analysis.metrics import direction_angle, geodesic_angle

MIRROR = np.diag([1.0, 1.0, -1.0])


@dataclass(frozen=True)
class RigidTransform:
    """A change of frame: V_new(r) = V(Dᵐ G (r + o)), and the poses that give the same images.

    Attributes
    ----------
    rotation : array (3, 3)
        G.
    offset : array (3,)
        o in Å (x, y, z).
    mirrored : bool
        Whether the hand is flipped (m = 1) by D = diag(1, 1, −1).
    """

    rotation: Float[np.ndarray, "3 3"]
    offset: Float[np.ndarray, " xyz"]
    mirrored: bool = False

    @classmethod
    def identity(cls) -> RigidTransform:
        """Return the transform that changes nothing."""
        return cls(np.eye(3), np.zeros(3))

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """Dᵐ G: takes new volume coordinates (after adding the offset) to old ones."""
        return np.asarray(MIRROR @ self.rotation if self.mirrored else self.rotation)

    def rotate_poses(self, rotations: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 3 3"]:
        """Rotations that show V_new as `rotations` show V: (Dᵐ R Dᵐ) G.

        Parameters
        ----------
        rotations : array (..., 3, 3)
            r_image = R r_volume of the old volume.
        """
        return np.asarray(_hand(rotations, self.mirrored) @ self.rotation)

    def shift_poses(
        self, rotations: Float[np.ndarray, "*batch 3 3"], shifts: Float[np.ndarray, "*batch 2"]
    ) -> Float[np.ndarray, "*batch 2"]:
        """Shifts in Å that go with the new rotations: t + (R_new o) in the image plane.

        Parameters
        ----------
        rotations : array (..., 3, 3)
            The *new* rotations, from `rotate_poses`.
        shifts : array (..., 2)
            The old shifts, Å.
        """
        return np.asarray(shifts + rotations[..., :2, :] @ self.offset)

    def then(self, later: RigidTransform) -> RigidTransform:
        """Return the one transform equal to this one followed by another.

        Parameters
        ----------
        later : RigidTransform
            Applied to the result of this one.
        """
        rotation, offset = self.rotation, self.offset
        if later.mirrored:
            rotation, offset = MIRROR @ rotation @ MIRROR, MIRROR @ offset
        return RigidTransform(
            rotation @ later.rotation, later.offset + later.rotation.T @ offset, self.mirrored != later.mirrored
        )

    def inverse(self) -> RigidTransform:
        """Return the transform that undoes this one."""
        flip = MIRROR if self.mirrored else np.eye(3)
        rotation = flip @ self.rotation.T @ flip
        return RigidTransform(rotation, -rotation.T @ flip @ self.offset, self.mirrored)


@dataclass(frozen=True)
class PoseAlignment:
    """Errors of poses after the best change of frame.

    Attributes
    ----------
    transform : RigidTransform
        Takes the estimated frame to the true one; apply it to maps with `map_alignment.transform_map`.
    rotation_error, direction_error : array, per particle
        Full geodesic angle and angle between viewing directions, radians.
    shift_error : array, per particle
        Length of the shift error in Å.
    """

    transform: RigidTransform
    rotation_error: Float[np.ndarray, " particle"]
    direction_error: Float[np.ndarray, " particle"]
    shift_error: Float[np.ndarray, " particle"]


def _hand(rotations: Float[np.ndarray, "*batch 3 3"], mirrored: bool) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotations as they are, or of the mirrored volume: D R D."""
    return np.asarray(MIRROR @ rotations @ MIRROR) if mirrored else rotations


def mean_rotation(rotations: Float[np.ndarray, "member 3 3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation nearest to all members: minimises Σ ‖G − Rᵢ‖² (chordal mean, Hartley et al. 2013).

    Parameters
    ----------
    rotations : array (member, 3, 3)
        At least one rotation.
    """
    left, _, right = np.linalg.svd(rotations.sum(axis=0))
    sign = np.sign(np.linalg.det(left @ right))
    return np.asarray(left @ np.diag([1.0, 1.0, sign]) @ right)


def _evenly(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` indices below `count`, evenly spread and always the same."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def common_rotation(
    relative: Float[np.ndarray, "particle 3 3"], *, candidates: int = 200, judges: int = 2000, rounds: int = 20
) -> tuple[Float[np.ndarray, "3 3"], float]:
    """Rotation most of the relative rotations agree on, and their median angle to it in radians.

    Every candidate, one of the relative rotations, is scored by the median angle to the others; the best is refined by
    averaging those within 2.5 medians of it until nothing changes. Cost: candidates × judges.

    Parameters
    ----------
    relative : array (particle, 3, 3)
        One estimate of the common rotation from each particle; half of them may be arbitrarily wrong.
    candidates, judges, rounds : int
        How many are tried, how many vote, and at most how many averages are taken.
    """
    tried = relative[_evenly(len(relative), candidates)]
    voting = relative[_evenly(len(relative), judges)]
    cosine = (np.einsum("cij,vij->cv", tried, voting) - 1.0) / 2.0
    best: Float[np.ndarray, "3 3"] = tried[int(np.argmax(np.median(cosine, axis=1)))]
    angles = geodesic_angle(relative, np.broadcast_to(best, relative.shape))
    for _ in range(rounds):
        refined = mean_rotation(relative[angles <= 2.5 * np.median(angles) + 1e-12])
        moved = float(geodesic_angle(refined, best))
        best, angles = refined, geodesic_angle(relative, np.broadcast_to(refined, relative.shape))
        if moved < 1e-9:
            break
    return best, float(np.median(angles))


def common_offset(
    rotations: Float[np.ndarray, "particle 3 3"],
    differences: Float[np.ndarray, "particle 2"],
    trusted: Bool[np.ndarray, " particle"],
    rounds: int = 20,
) -> Float[np.ndarray, " xyz"]:
    """3-D offset o whose projections (R o) explain the shift differences best, in their unit.

    Least squares over the trusted particles whose residual is within three medians, repeated until the set is stable.

    Parameters
    ----------
    rotations : array (particle, 3, 3)
        Poses in the frame of the offset.
    differences : array (particle, 2)
        Wanted minus given shift.
    trusted : array (particle,)
        Particles with a believable rotation.
    rounds : int
        Most repetitions.
    """
    rows = rotations[:, :2, :]
    inside = trusted
    offset = np.zeros(3)
    for _ in range(rounds):
        offset = np.linalg.lstsq(rows[inside].reshape(-1, 3), differences[inside].reshape(-1), rcond=None)[0]
        residual = np.linalg.norm(differences - rows @ offset, axis=1)
        kept = trusted & (residual <= 3.0 * np.median(residual[trusted]) + 1e-12)
        if np.array_equal(kept, inside):
            break
        inside = kept
    return offset


def align_poses(
    rotations: Float[np.ndarray, "particle 3 3"],
    shifts: Float[np.ndarray, "particle 2"],
    true_rotations: Float[np.ndarray, "particle 3 3"],
    true_shifts: Float[np.ndarray, "particle 2"],
) -> PoseAlignment:
    """Pose errors after removing one global rotation, the hand, and one global 3-D offset.

    Both hands are tried; the one with the lower median geodesic angle is kept. Shifts follow by least squares over the
    particles whose rotation agrees.

    Parameters
    ----------
    rotations, true_rotations : array (particle, 3, 3)
        Estimated and true rotations of the same particles, r_image = R r_volume.
    shifts, true_shifts : array (particle, 2)
        Shifts in Å.
    """
    found = [
        (mirrored, *common_rotation(np.swapaxes(_hand(rotations, mirrored), 1, 2) @ true_rotations))
        for mirrored in (False, True)
    ]
    mirrored, rotation, _ = min(found, key=lambda one: one[2])
    aligned = _hand(rotations, mirrored) @ rotation
    error = geodesic_angle(aligned, true_rotations)
    offset = common_offset(aligned, true_shifts - shifts, error <= 3.0 * np.median(error) + 1e-12)
    transform = RigidTransform(rotation, offset, mirrored)
    difference = transform.shift_poses(aligned, shifts) - true_shifts
    return PoseAlignment(transform, error, direction_angle(aligned, true_rotations), np.linalg.norm(difference, axis=1))


def joined_alignment(parts: Sequence[PoseAlignment], rows: Sequence[Bool[np.ndarray, " particle"]]) -> PoseAlignment:
    """Errors of particles of several kinds, each kind aligned on its own; the transform is that of the largest.

    Parameters
    ----------
    parts : sequence of PoseAlignment
        Of each kind.
    rows : sequence of array of bool (particle,)
        Which particles they are; every particle is of one kind.
    """
    names = ("rotation_error", "direction_error", "shift_error")
    errors = {name: np.zeros(len(rows[0])) for name in names}
    for part, mine in zip(parts, rows, strict=True):
        for name in names:
            errors[name][mine] = getattr(part, name)
    largest = max(range(len(parts)), key=lambda number: int(rows[number].sum()))
    return PoseAlignment(parts[largest].transform, **errors)
