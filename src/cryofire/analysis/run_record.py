"""What results.json of a run folder says, typed; pieces that a run did not reach are None or empty."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cryofire.errors import FileFormatError, MissingFileError

JsonObject = Mapping[str, Any]

MIXTURE = "mixture"
"""Heterogeneity of a run whose particles are of several species, each reconstructed in a run of its own."""


@dataclass(frozen=True)
class Verdict:
    """One judgement in plain words.

    Attributes
    ----------
    level : str
        "good", "caution" or "bad".
    topic, text : str
        What it is about, and what to think of it.
    """

    level: str
    topic: str
    text: str


@dataclass(frozen=True)
class StageCost:
    """What one stage took; None where it was not recorded."""

    name: str
    wall_s: float | None
    cpu_s: float | None
    peak_memory_bytes: float | None
    bytes_read: float | None


@dataclass(frozen=True)
class MapRecord:
    """A map of the run with its half maps and curves.

    Attributes
    ----------
    name : str
        "consensus", "state1", …
    map, decoded : Path or None
        From the images themselves, and from the latent space at the state's centre.
    half_maps : tuple of Path
        Two maps from independent halves, or none.
    particles, weight : int, float or None
        How many images the state has, and which fraction of all.
    latent_center : array (component,) or None
        Where it lies in latent space.
    fsc, fsc_masked : array (shell,) or None
        Between the half maps.
    resolution : float or None
        Å at FSC 0.143.
    shared_shell : int or None
        The halves started from a common map up to this shell, so they are independent only beyond it.
    """

    name: str
    map: Path | None = None
    decoded: Path | None = None
    half_maps: tuple[Path, ...] = ()
    particles: int | None = None
    weight: float | None = None
    latent_center: Float[np.ndarray, " component"] | None = None
    fsc: Float[np.ndarray, " shell"] | None = None
    fsc_masked: Float[np.ndarray, " shell"] | None = None
    resolution: float | None = None
    shared_shell: int | None = None

    @property
    def title(self) -> str:
        """Name as people write it: "State 1" for "state1"."""
        return re.sub(r"^state(?=\d)", "State ", self.name)


@dataclass(frozen=True)
class FrameRecord:
    """A map along the path of a continuous motion.

    Attributes
    ----------
    map : Path
        Decoded there.
    latent : array (component,)
        Latent coordinates of the place.
    weight : float or None
        Fraction of the particles that are nearest to it.
    """

    map: Path
    latent: Float[np.ndarray, " component"]
    weight: float | None


@dataclass(frozen=True)
class SpeciesRecord:
    """Particles that share no structure with the others, and the run that reconstructed them.

    Attributes
    ----------
    name : str
        "species1", …
    folder : Path
        Its run folder, inside that of the whole.
    particles, weight : int, float
        How many there are, and which fraction of all.
    states : range
        Its states among those of the whole run.
    heterogeneity : str
        As its own run has it.
    """

    name: str
    folder: Path
    particles: int
    weight: float
    states: range
    heterogeneity: str

    @property
    def title(self) -> str:
        """Name as people write it: "Species 1" for "species1"."""
        return re.sub(r"^species(?=\d)", "Species ", self.name)


@dataclass(frozen=True)
class RunRecord:
    """The parts of results.json, with paths resolved and everything optional.

    Attributes
    ----------
    folder : Path
        The run folder.
    finished : bool
        Whether results.json exists.
    version, seed, input, poses, particles, particles_used, box, pixel_size, contrast, snr, max_shell, components, mask,
    heterogeneity :
        As in results.json.
    unexplained : float or None
        Signal left unexplained, as a fraction of what the model explains.
    search_agreed, search_locked : bool or None
        Whether two starts of the search came to the same score, and whether images told poses apart at its end.
    frame_turn_deg, frame_core : float or None
        How far conformations were turned at the most to lie on the largest one, degrees, and the least share of squared density
        that they were laid by.
    stages, consensus, states, verdicts :
        Typed lists.
    frames, is_closed :
        Maps along the path of a continuous motion in their order, and whether it comes back to where it began.
    curve : array (node, component)
        The path finely drawn in latent space; no nodes where there is none.
    species : tuple of SpeciesRecord
        Of a mixture; empty where all particles are of one kind.
    left_out : int
        Images that could be used and were not: they show something else than the particle, or nothing.
    """

    folder: Path
    finished: bool
    version: str | None = None
    seed: int | None = None
    input: str | None = None
    poses: str | None = None
    particles: int | None = None
    particles_used: int | None = None
    box: int | None = None
    pixel_size: float | None = None
    contrast: str | None = None
    snr: float | None = None
    max_shell: int | None = None
    components: int | None = None
    mask: str | None = None
    heterogeneity: str | None = None
    unexplained: float | None = None
    search_agreed: bool | None = None
    search_locked: bool | None = None
    frame_turn_deg: float | None = None
    frame_core: float | None = None
    stages: tuple[StageCost, ...] = ()
    consensus: MapRecord | None = None
    states: tuple[MapRecord, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    frames: tuple[FrameRecord, ...] = ()
    is_closed: bool = False
    curve: Float[np.ndarray, "node component"] = field(default_factory=lambda: np.zeros((0, 0)))
    species: tuple[SpeciesRecord, ...] = ()
    left_out: int = 0


def read_run(folder: Path) -> RunRecord:
    """Read results.json of a run folder; a run that has none yet gives an unfinished, empty record.

    Parameters
    ----------
    folder : Path
        The run folder.

    Raises
    ------
    MissingFileError
        There is no such folder.
    FileFormatError
        results.json is damaged or of a later schema.
    """
    if not folder.is_dir():
        raise MissingFileError("the run folder does not exist", file=folder)
    path = folder / "results.json"
    if not path.is_file():
        return RunRecord(folder, finished=False)
    found = _read_object(path)
    if found.get("schema", 1) != 1:
        raise FileFormatError(
            f"results of schema {found['schema']} cannot be read by this version",
            file=path,
            field="schema",
            hint="use the version of cryofire that made the run, or a later one",
        )
    try:
        return _record(folder, found)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise FileFormatError(
            f"the results are damaged: {error}", file=path, hint="run the last stage again"
        ) from error


def _read_object(path: Path) -> JsonObject:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(
            f"cannot read the results: {error}", file=path, hint="run the last stage again"
        ) from error
    if not isinstance(found, dict):
        raise FileFormatError("the results are not a JSON object", file=path, hint="run the last stage again")
    return found


def _record(folder: Path, found: JsonObject) -> RunRecord:
    simple = (
        "version", "seed", "input", "poses", "particles", "particles_used", "box", "pixel_size", "contrast", "snr",
        "max_shell", "components", "mask", "heterogeneity", "unexplained",
    )  # fmt: skip
    search, frames = found.get("search") or {}, found.get("frames") or {}
    consensus, path = found.get("consensus"), found.get("path") or {}
    return RunRecord(
        folder,
        finished=True,
        **{name: found.get(name) for name in simple},
        search_agreed=search.get("agreed"),
        search_locked=search.get("locked"),
        frame_turn_deg=frames.get("turn_deg"),
        frame_core=frames.get("core"),
        stages=tuple(_stage(one) for one in found.get("stages") or ()),
        consensus=_map_record(folder, consensus, "consensus") if consensus else None,
        states=tuple(_map_record(folder, one, f"state{i + 1}") for i, one in enumerate(found.get("states") or ())),
        verdicts=tuple(
            Verdict(str(one["level"]), str(one["topic"]), str(one["text"])) for one in found.get("verdicts") or ()
        ),
        frames=_frames(folder, path.get("frames") or ()),
        is_closed=bool(path.get("closed")),
        curve=np.array(path.get("curve") or np.zeros((0, found.get("components") or 0)), dtype=np.float64),
        species=tuple(_species(folder, found.get("species") or ())),
        left_out=int(found.get("left_out") or 0),
    )


def state_groups(record: RunRecord) -> tuple[range, ...]:
    """States that share a frame and a latent space, numbered as in the whole run.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    if not record.species:
        return (range(len(record.states)),)
    return tuple(one.states for one in record.species)


def _species(folder: Path, found: Sequence[JsonObject]) -> Iterator[SpeciesRecord]:
    first = 0
    for one in found:
        states = range(first, first + int(one["states"]))
        yield SpeciesRecord(
            str(one["name"]),
            folder / one["name"],
            int(one["particles"]),
            float(one["weight"]),
            states,
            str(one["heterogeneity"]),
        )
        first = states.stop


def _frames(folder: Path, found: Sequence[JsonObject]) -> tuple[FrameRecord, ...]:
    """Return the frames whose maps are there."""
    maps = [(_existing(folder, one["map"]), one) for one in found]
    return tuple(
        FrameRecord(path, np.array(one["latent"], dtype=np.float64), one.get("weight")) for path, one in maps if path
    )


def _stage(found: JsonObject) -> StageCost:
    costs = (found.get(name) for name in ("wall_s", "cpu_s", "peak_memory_bytes", "bytes_read"))
    return StageCost(str(found["name"]), *(None if value is None else float(value) for value in costs))


def _map_record(folder: Path, found: JsonObject, name: str) -> MapRecord:
    halves = found.get("half_maps") or (["consensus_half1.mrc", "consensus_half2.mrc"] if name == "consensus" else [])
    return MapRecord(
        name=str(found.get("name", name)),
        map=_existing(folder, found.get("map")),
        decoded=_existing(folder, found.get("decoded")),
        half_maps=tuple(path for path in (_existing(folder, one) for one in halves) if path),
        particles=found.get("particles"),
        weight=found.get("weight"),
        latent_center=_numbers(found.get("latent_center")),
        fsc=_numbers(found.get("fsc")),
        fsc_masked=_numbers(found.get("fsc_masked")),
        resolution=found.get("resolution"),
        shared_shell=found.get("shared_shell"),
    )


def _existing(folder: Path, name: str | None) -> Path | None:
    path = folder / name if name else None
    return path if path is not None and path.is_file() else None


def _numbers(values: list[float | None] | None) -> Float[np.ndarray, " number"] | None:
    if not values:
        return None
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
