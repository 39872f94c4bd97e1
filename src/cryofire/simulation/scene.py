"""States as placements of rigid bodies, and their central sections.

A motion of rigid parts needs no new spectrum for each state. With a body V_b placed by r' = M r + d, a state seen
from R has the section

    S(k) = Σ_b V_b(Mᵀ Rᵀ k) exp(-2πi k·(R d)),        k = (k_x, k_y, 0).

Any number of states costs the memory of the bodies alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Float32, Float64, Int64

from cryofire.errors import FileFormatError, SettingError
from cryofire.formats.mrc import read_map
from cryofire.geometry.fourier import image_from_spectrum, resize_centred, volume_from_spectrum
from cryofire.simulation.density import Body, body_of_map, body_of_molecule
from cryofire.simulation.molecules import Conformation, Molecule, in_conformation


@dataclass(frozen=True)
class Scene:
    """Bodies, and where they are in each state.

    Attributes
    ----------
    bodies : tuple of Body
        The rigid parts.
    rotations : array (state, body, 3, 3)
        M of r' = M r + d, from the frame of a body to that of the volume.
    offsets : array (state, body, 3)
        d in Å.
    is_present : array (state, body)
        False where a state lacks the body.
    """

    bodies: tuple[Body, ...]
    rotations: Float64[np.ndarray, "state body 3 3"]
    offsets: Float64[np.ndarray, "state body 3"]
    is_present: Bool[np.ndarray, "state body"]

    def __len__(self) -> int:
        return len(self.is_present)

    def sections(
        self,
        states: Int64[np.ndarray, " image"],
        rotations: Float64[np.ndarray, "image 3 3"],
        shifts: Float64[np.ndarray, "image 3"],
        frequencies: Float64[np.ndarray, "coefficient 3"],
    ) -> Complex64[np.ndarray, "image coefficient"]:
        """Spectra of states turned by R and then moved by t, S(Rᵀ k) exp(-2πi k·t).

        Parameters
        ----------
        states : array (image,)
            0-based.
        rotations, shifts : arrays (image, 3, 3) and (image, 3)
            R, and t in Å.
        frequencies : array (coefficient, 3)
            k in 1/Å; k_z = 0 for images.
        """
        out = np.zeros((len(states), len(frequencies)), dtype=np.complex64)
        for number, body in enumerate(self.bodies):
            rows = np.flatnonzero(self.is_present[states, number])
            turned = rotations[rows] @ self.rotations[states[rows], number]
            moved = np.einsum("iab,ib->ia", rotations[rows], self.offsets[states[rows], number]) + shifts[rows]
            body.add_sections(turned, moved, rows, frequencies, out)
        return out

    def map(self, state: int, box: int, pixel_size: float) -> Float32[np.ndarray, "z y x"]:
        """Density map of a state, its origin at n // 2; the Nyquist planes of an even box are zero.

        Where frequencies lie beyond those the bodies were made for, in the corners, they are zero as well.
        """
        frequencies = half_frequencies(box, 3)
        spectrum = self.sections(
            np.array([state]), np.eye(3)[None], np.zeros((1, 3)), frequencies / (box * pixel_size)
        )  # fmt: skip
        volume = volume_from_spectrum(whole_spectrum(torch.from_numpy(spectrum[0]), box, 3))
        return np.asarray(volume.numpy(), dtype=np.float32)


def half_frequencies(box: int, axes: int) -> Float64[np.ndarray, "coefficient 3"]:
    """One half of the frequencies of a real image (2 axes) or volume (3), the origin first, in cycles per box.

    All integer (k_x, k_y, k_z) of at most (n - 1) // 2 along each axis; k_z is 0 for images.
    """
    line = np.arange(-((box - 1) // 2), (box - 1) // 2 + 1, dtype=np.float64)
    grids = np.meshgrid(*[line] * axes, indexing="ij")
    points = np.stack([grid.ravel() for grid in reversed(grids)], axis=-1)[len(line) ** axes // 2 :]
    return np.pad(points, ((0, 0), (0, 3 - axes)))


def whole_spectrum(coefficients: torch.Tensor, box: int, axes: int) -> torch.Tensor:
    """Centred Hermitian spectra (..., box, …) of coefficients (..., coefficient) at `half_frequencies`."""
    side = 2 * ((box - 1) // 2) + 1
    mirrored = coefficients[..., 1:].flip(-1).conj()
    spectrum = torch.cat([mirrored, coefficients], dim=-1).reshape(*coefficients.shape[:-1], *(side,) * axes)
    return resize_centred(spectrum, box, axes)


def images_of(coefficients: Complex64[np.ndarray, "image coefficient"], box: int) -> Float32[np.ndarray, "image y x"]:
    """Real images of coefficients at the `half_frequencies` of their box."""
    return np.asarray(image_from_spectrum(whole_spectrum(torch.from_numpy(coefficients), box, 2)).numpy())


def scene_of_molecule(molecule: Molecule, conformations: Sequence[Conformation], max_frequency: float) -> Scene:
    """Scene of a molecule in several conformations, its centre of mass at rest in the origin.

    The molecule is cut into the parts that no conformation moves or leaves out otherwise than as a whole.

    Parameters
    ----------
    molecule : Molecule
        At rest.
    conformations : sequence of Conformation
        The states.
    max_frequency : float
        Up to which the sections are exact to 1e-3, 1/Å.

    Raises
    ------
    SettingError
        A selection names nothing, an axis has no length, or a state is empty.
    """
    parts = _rigid_parts(molecule, conformations)
    origin = molecule.centre_of_mass
    bodies = tuple(body_of_molecule(molecule.take(part), max_frequency) for part in parts)
    rotations = np.empty((len(conformations), len(parts), 3, 3))
    offsets = np.empty((len(conformations), len(parts), 3))
    is_present = np.empty((len(conformations), len(parts)), dtype=bool)
    for state, conformation in enumerate(conformations):
        omitted = molecule.selected(conformation.omitted)
        motions = [
            (molecule.selected(motion.selection), *motion.transform(molecule)) for motion in conformation.motions
        ]
        for number, (part, body) in enumerate(zip(parts, bodies, strict=True)):
            member = int(np.argmax(part))
            matrix, place = np.eye(3), body.centre
            for chosen, turn, offset in motions:
                if chosen[member]:
                    matrix, place = turn @ matrix, turn @ place + offset
            rotations[state, number], offsets[state, number] = matrix, place - origin
            is_present[state, number] = not omitted[member]
    if not is_present.any(axis=1).all():
        raise SettingError("a conformation leaves nothing of the molecule", hint="omit fewer chains")
    return Scene(bodies, rotations, offsets, is_present)


def _rigid_parts(molecule: Molecule, conformations: Sequence[Conformation]) -> list[Bool[np.ndarray, " atom"]]:
    """Blobs that are selected alike by all motions and omissions."""
    selections = {motion.selection for conformation in conformations for motion in conformation.motions}
    selections |= {conformation.omitted for conformation in conformations}
    membership = np.stack([molecule.selected(selection) for selection in sorted(selections)], axis=1)
    _, part = np.unique(membership, axis=0, return_inverse=True)
    part = part.ravel()
    return [part == number for number in range(int(part.max()) + 1)]


def largest_radius(molecule: Molecule, conformations: Sequence[Conformation]) -> float:
    """Distance in Å of the farthest blob, with three widths, from the centre of mass at rest, in any conformation."""
    states = [in_conformation(molecule, conformation) for conformation in conformations]
    distances = [np.linalg.norm(state.coordinates - molecule.centre_of_mass, axis=1).max() for state in states]
    return float(max(distances)) + 3 * molecule.width


def scene_of_maps(paths: Sequence[Path], max_frequency: float) -> Scene:
    """Scene in which every state is a density map, its origin at n // 2.

    Boxes and pixel sizes may differ; frequencies beyond the Nyquist frequency of a map are zero.

    Raises
    ------
    FileFormatError
        A map is not a cube, is empty, or does not say its pixel size.
    """
    bodies = []
    for path in paths:
        volume, pixel_size = read_map(path)
        if len(set(volume.shape)) != 1:
            raise FileFormatError(f"the map is {volume.shape[2]} × {volume.shape[1]} × {volume.shape[0]}", file=path,
                                  hint="pad it to a cube")  # fmt: skip
        if not pixel_size > 0:
            raise FileFormatError("the header does not say the voxel size", file=path, hint="set it in the header")
        if not np.isfinite(volume).all() or not volume.any():
            raise FileFormatError("the map is zero everywhere, or not finite", file=path)
        bodies.append(body_of_map(volume, pixel_size, max_frequency))
    count = len(bodies)
    return Scene(
        tuple(bodies), np.broadcast_to(np.eye(3), (count, count, 3, 3)), np.zeros((count, count, 3)),
        np.eye(count, dtype=bool),
    )  # fmt: skip
