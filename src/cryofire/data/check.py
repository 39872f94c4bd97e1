"""Looking at a particle set before a reconstruction: what is there, what is wrong, what it will cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from cryofire.data.cost import estimated_cost
from cryofire.data.findings import CheckReport, Contrast, Finding
from cryofire.data.measure import ImageMeasurements, contrast_of, measure_images, signal_to_noise
from cryofire.data.particles import ParticleTable
from cryofire.data.read import read_particles
from cryofire.data.stack import ImageStacks
from cryofire.data.table_checks import table_findings
from cryofire.errors import InputError
from cryofire.formats.mrc import read_header

DEFAULT_SAMPLE = 2000
_BYTES_AT_ONCE = 1 << 22  # small enough for the caches of a processor
_NO_CONTRAST = Contrast(score=math.nan, images=0)


def check_file(
    path: Path,
    datadir: Path | None = None,
    sample: int | None = DEFAULT_SAMPLE,
    *,
    passthrough: Sequence[Path] = (),
) -> CheckReport:
    """Read and check a particle table; whatever keeps it from being read becomes a finding, not an error.

    Parameters
    ----------
    path, datadir, passthrough :
        As for `read_particles`.
    sample : int or None
        As for `check_particles`.
    """
    try:
        return check_particles(read_particles(path, datadir, passthrough=passthrough), sample)
    except InputError as error:
        problem = Finding("bad", "reading", str(error))
    try:
        table = read_particles(path, passthrough=passthrough, stacks=False)
    except InputError:
        return CheckReport(path, 0, 0, (problem,), _NO_CONTRAST, (), math.nan, np.empty(0, dtype=np.int64), None)
    return _report(table, [problem, *table_findings(table)], np.empty(0, dtype=np.int64), None)


def check_particles(table: ParticleTable, sample: int | None = DEFAULT_SAMPLE, seed: int = 0) -> CheckReport:
    """Return what is right and wrong with a particle set, its contrast, noise and expected cost.

    Every row of the table is checked; images are read in small groups, never all at once.

    Parameters
    ----------
    table : ParticleTable
        Read with its stacks.
    sample : int or None
        How many images to look at, drawn at random; None looks at all of them.
    seed : int
        Of the draw.
    """
    readable, findings = _stack_findings(table)
    rows = np.flatnonzero(readable)
    if sample is not None and len(rows) > sample:
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    measured = _measured(table, rows)
    return _report(table, [*findings, *table_findings(table)], rows, measured, ~readable)


def _report(
    table: ParticleTable,
    findings: list[Finding],
    rows: Int64[np.ndarray, " row"],
    measured: ImageMeasurements | None,
    unreadable: Bool[np.ndarray, " particle"] | None = None,
) -> CheckReport:
    unusable = np.zeros(len(table), dtype=bool) if unreadable is None else unreadable.copy()
    whole, stacks, snr = _NO_CONTRAST, tuple(_NO_CONTRAST for _ in table.stack_paths), math.nan
    if measured is not None:
        unusable[rows[~measured.is_usable]] = True
        whole, stacks = contrast_of(measured.contrast), _contrast_per_stack(table, rows, measured)
        snr = signal_to_noise(measured)
        findings = [*findings, *_image_findings(rows, measured), *_contrast_findings(table, whole, stacks)]
        findings.append(_noise_finding(snr))
    return CheckReport(
        path=table.path,
        particles=len(table),
        images_read=len(rows),
        findings=tuple(findings),
        contrast=whole,
        stack_contrast=stacks,
        signal_to_noise=snr,
        unusable=np.flatnonzero(unusable),
        cost=estimated_cost(len(table), int(table.box.max())) if np.all(table.box > 0) else None,
    )


def _stack_findings(table: ParticleTable) -> tuple[Bool[np.ndarray, " particle"], list[Finding]]:
    """Which particles have an image to read, and what is wrong with the stacks."""
    findings = []
    lengths = np.zeros(len(table.stack_paths), dtype=np.int64)
    for number, path in enumerate(table.stack_paths):
        try:
            lengths[number] = read_header(path).shape[0]
        except InputError as error:
            findings.append(Finding("bad", "stacks", str(error)))
    available = lengths[table.stack]
    outside = (table.frame >= available) & (available > 0)
    if np.any(outside):
        row = int(np.argmax(outside))
        stack = table.stack_paths[table.stack[row]]
        text = f"{np.count_nonzero(outside)} particles name an image past the end of their stack"
        place = f"first in row {row + 1}: image {table.frame[row] + 1}, but {stack} has {available[row]}"
        findings.append(Finding("bad", "stacks", f"{text}; {place}"))
    if not findings:
        findings.append(Finding("good", "stacks", f"{len(lengths)} found, {lengths.sum()} images in them"))
    return table.frame < available, findings


def _measured(table: ParticleTable, rows: Int64[np.ndarray, " row"]) -> ImageMeasurements | None:
    """Measurements of the given particles in their order; None if there are none."""
    if not len(rows):
        return None
    stacks = ImageStacks(table)
    parts: list[ImageMeasurements] = []
    places: list[Int64[np.ndarray, " row"]] = []
    for group in _groups(table, rows):
        chosen = rows[group]
        images = stacks.images(chosen)
        parts.append(measure_images(images, table.optics.take(chosen), table.pixel_size[chosen]))
        places.append(group)
    order = np.argsort(np.concatenate(places))
    joined = ImageMeasurements.joined(parts)
    return ImageMeasurements(*(getattr(joined, name)[order] for name in ImageMeasurements.__dataclass_fields__))


def _groups(table: ParticleTable, rows: Int64[np.ndarray, " row"]) -> Iterator[Int64[np.ndarray, " group"]]:
    """Places in `rows` of images of one box, a bounded number of bytes at once, neighbours on disk together."""
    order = np.lexsort((table.frame[rows], table.stack[rows], table.box[rows]))
    boxes = table.box[rows][order]
    for members in np.split(order, np.flatnonzero(np.diff(boxes)) + 1):
        size = max(1, _BYTES_AT_ONCE // (4 * int(table.box[rows[members[0]]]) ** 2))
        yield from (members[begin : begin + size] for begin in range(0, len(members), size))


def _image_findings(rows: Int64[np.ndarray, " row"], measured: ImageMeasurements) -> Iterator[Finding]:
    for wrong, what in ((~measured.is_finite, "not finite (NaN or infinite)"), (measured.is_constant, "constant")):
        if np.any(wrong):
            count, first = int(np.count_nonzero(wrong)), int(rows[np.argmax(wrong)]) + 1
            text = f"{count} of {len(rows)} looked at are {what}, first in row {first}; they will be left out"
            yield Finding("bad" if count == len(rows) else "caution", "images", text)
    deviation = measured.deviation[measured.is_usable]
    if len(deviation):
        far = np.abs(np.log(deviation / np.median(deviation))) > math.log(5)
        if np.any(far):
            text = f"the standard deviation of {np.count_nonzero(far)} of {len(rows)} is five times off the median"
            yield Finding("caution", "images", f"{text}: artefacts, or images that were not normalised alike")
    if np.all(measured.is_usable):
        yield Finding("good", "images", f"all {len(rows)} looked at are finite and not constant")


def _contrast_per_stack(
    table: ParticleTable, rows: Int64[np.ndarray, " row"], measured: ImageMeasurements
) -> tuple[Contrast, ...]:
    stack = table.stack[rows]
    order = np.argsort(stack, kind="stable")
    borders = np.searchsorted(stack[order], np.arange(len(table.stack_paths) + 1))
    values = measured.contrast[order]
    return tuple(contrast_of(values[begin:end]) for begin, end in pairwise(borders))


def _contrast_findings(table: ParticleTable, whole: Contrast, stacks: Sequence[Contrast]) -> Iterator[Finding]:
    verdicts = [contrast.verdict for contrast in stacks]
    if "dark" in verdicts and "white" in verdicts:
        white = verdicts.count("white")
        example = table.stack_paths[verdicts.index("white" if white <= verdicts.count("dark") else "dark")]
        text = f"{verdicts.count('dark')} stacks hold dark particles and {white} white ones (for example {example})"
        yield Finding("bad", "contrast", f"{text}: invert one kind, for mixed signs cancel each other")
    elif whole.verdict == "unclear":
        yield Finding(
            "caution",
            "contrast",
            f"cannot tell dark from white particles: score {whole.score:.1f} on {whole.images} images, ±6 is clear",
        )
    else:
        kind = "dark, as in unprocessed images" if whole.verdict == "dark" else "white: the images were inverted"
        yield Finding("good", "contrast", f"particles are {kind} (score {whole.score:+.0f} on {whole.images} images)")


def _noise_finding(snr: float) -> Finding:
    if not snr > 0:
        return Finding(
            "caution", "noise", "no signal is seen above the noise of the corners: does the particle fill the box?"
        )
    text = f"the signal-to-noise ratio is about {snr:.2g} ({10 * math.log10(snr):+.0f} dB, over whole images)"
    if snr < 0.003:
        return Finding("caution", "noise", f"{text}: very low, many particles will be needed")
    return Finding("good", "noise", text)
