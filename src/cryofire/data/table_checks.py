"""Findings that need the particle table alone: implausible CTF values, mixed sizes, duplicates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64

from cryofire.data.findings import Finding, Level
from cryofire.data.particles import CryosparcSource, Optics, ParticleTable

_FEW_PARTICLES = 1000


def table_findings(table: ParticleTable) -> list[Finding]:
    """Return what the table says about itself, without looking at an image."""
    return [
        *_size_findings(table),
        *_ctf_findings(table.optics),
        *_duplicate_findings(table),
        *(Finding("caution", "optics", note) for note in table.notes),
    ]


def _size_findings(table: ParticleTable) -> Iterator[Finding]:
    pairs, counts = np.unique(
        np.stack([table.box.astype(np.float64), np.round(table.pixel_size, 4)]), axis=1, return_counts=True
    )
    text = "; ".join(
        f"{count} particles of {box:.0f} px at {pixel_size:g} Å/px ({box * pixel_size:.0f} Å)"
        if box > 0
        else f"{count} particles at {pixel_size:g} Å/px"
        for (box, pixel_size), count in zip(pairs.T, counts, strict=True)
    )
    mixed = f"{len(counts)} kinds of images are mixed: {text}; their pixel sizes must be right to be compared"
    yield Finding("good", "sizes", text) if len(counts) == 1 else Finding("caution", "sizes", mixed)
    strange = (table.pixel_size < 0.2) | (table.pixel_size > 25)
    yield from _implausible(strange, "pixel size", "is outside 0.2 to 25 Å", table.pixel_size)
    if len(table) < _FEW_PARTICLES:
        yield Finding("caution", "particles", f"{len(table)} are few: expect low resolution and no rare states")


def _ctf_findings(optics: Optics) -> list[Finding]:
    defocus = (optics.defocus_u + optics.defocus_v) / 2
    astigmatism = np.abs(optics.defocus_u - optics.defocus_v)
    hint = ": are the values in µm? Å is expected" if np.median(np.abs(defocus)) < 100 else ""
    w, phase = optics.amplitude_contrast, np.abs(optics.phase_shift)
    findings = [
        *_implausible((defocus < 1e3) | (defocus > 1e5), "defocus", f"is outside 0.1 to 10 µm{hint}", defocus / 1e4),
        *_implausible(astigmatism > 0.3 * np.abs(defocus), "astigmatism", "exceeds 30 % of the defocus", astigmatism),
        *_implausible(
            (optics.voltage_kv < 80) | (optics.voltage_kv > 400),
            "voltage",
            "is outside 80 to 400 kV",
            optics.voltage_kv,
        ),
        *_implausible(optics.cs_mm > 6, "Cs", "is above 6 mm", optics.cs_mm),
        *_implausible((w < 0.01) | (w > 0.4), "amplitude contrast", "is outside 0.01 to 0.4", w, "caution"),
        *_implausible(phase > 2 * np.pi, "phase shift", "exceeds a full turn: degrees in place of radians?", phase),
        *_implausible(optics.scale <= 0, "CTF scale", "is not positive", optics.scale),
        *_implausible(np.abs(optics.b_factor) > 1000, "CTF B factor", "exceeds 1000 Å²", optics.b_factor, "caution"),
    ]
    if not findings:
        low, middle, high = np.percentile(defocus / 1e4, [0, 50, 100])
        spread = f"defocus {low:.2f} to {high:.2f} µm, median {middle:.2f} µm"
        microscope = f"{_distinct(optics.voltage_kv)} kV; Cs {_distinct(optics.cs_mm)} mm"
        findings.append(Finding("good", "CTF", f"{spread}; {microscope}; amplitude contrast {_distinct(w)}"))
    return findings


def _implausible(
    wrong: Bool[np.ndarray, " particle"],
    what: str,
    problem: str,
    values: Float64[np.ndarray, " particle"],
    level: Level = "bad",
) -> Iterator[Finding]:
    """One finding with count and first row; a few odd rows are a caution, many are bad."""
    count = int(np.count_nonzero(wrong))
    if count:
        row = int(np.argmax(wrong))
        rare: Level = "caution" if count < 0.01 * len(wrong) else level
        yield Finding(rare, "CTF", f"{what} {problem} for {count} particles, first in row {row + 1} ({values[row]:g})")


def _distinct(values: Float64[np.ndarray, " particle"]) -> str:
    return ", ".join(f"{value:g}" for value in np.unique(np.round(values, 4))[:4])


def _duplicate_findings(table: ParticleTable) -> Iterator[Finding]:
    images = _repeats(np.stack([table.stack.astype(np.int64), table.frame]))
    if images:
        text = f"{images} rows name an image that an earlier row names: remove them, unless symmetry was expanded"
        yield Finding("caution", "duplicates", f"{text}, for they make halves of the data depend on each other")
    places = _coordinates(table)
    if places is not None and (count := _repeats(places)) > images:
        text = f"{count} rows repeat the coordinates of an earlier row of the same micrograph: remove duplicates"
        yield Finding("caution", "duplicates", text)
    if isinstance(table.source, CryosparcSource) and (count := _repeats(table.source.rows["uid"][None])):
        yield Finding("caution", "duplicates", f"{count} uids occur more than once")


def _repeats(keys: np.ndarray) -> int:
    """Columns of `keys` (key, particle) that equal an earlier column."""
    return int(keys.shape[1] - np.unique(keys, axis=1).shape[1])


def _coordinates(table: ParticleTable) -> np.ndarray | None:
    """Micrograph number and position of each particle (3, particle); None where the file has none."""
    if table.micrograph is None:
        return None
    if isinstance(table.source, CryosparcSource):
        names = ("location/center_x_frac", "location/center_y_frac")
        if not all(name in (table.source.rows.dtype.names or ()) for name in names):
            return None
        positions = [np.asarray(table.source.rows[name], dtype=np.float64) for name in names]
    else:
        particles = table.source.particles
        if not ("rlnCoordinateX" in particles and "rlnCoordinateY" in particles):
            return None
        positions = [particles.floats("rlnCoordinateX"), particles.floats("rlnCoordinateY")]
    numbers = np.unique(np.array(table.micrograph), return_inverse=True)[1].reshape(-1)
    return np.stack([numbers.astype(np.float64), *positions])
