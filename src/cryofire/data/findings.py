"""What a check of a particle set found, as values and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

Level = Literal["good", "caution", "bad"]
_MARKS: dict[Level, str] = {"good": "  ok     ", "caution": "  caution", "bad": "  BAD    "}


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing about a particle set.

    Attributes
    ----------
    level : {"good", "caution", "bad"}
        "bad" must be put right before a reconstruction; "caution" may be intended.
    topic : str
        One or two words.
    text : str
        What was seen, in plain words, and what to do about it.
    """

    level: Level
    topic: str
    text: str


@dataclass(frozen=True)
class Contrast:
    """Whether particles are dark or white, as measured on images.

    Attributes
    ----------
    score : float
        Mean of the contrast statistic over its standard error; positive for particles that are dark in unprocessed
        images, negative for inverted ones. NaN without images.
    images : int
        Images it was measured on.
    """

    score: float
    images: int

    @property
    def verdict(self) -> Literal["dark", "white", "unclear"]:
        """Dark or white, if the score is at least six standard errors from zero on four or more images.

        Real ice alone was seen to reach four: its low frequencies are not even across a window.
        """
        if self.images < 4 or not abs(self.score) >= 6:
            return "unclear"
        return "dark" if self.score > 0 else "white"

    @property
    def is_clear(self) -> bool:
        """Whether the verdict is dark or white."""
        return self.verdict != "unclear"


@dataclass(frozen=True)
class Cost:
    """What a reconstruction is expected to take: wall time (s), peak memory and disk space (bytes)."""

    seconds: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class CheckReport:
    """Everything a check found.

    Attributes
    ----------
    path : Path
        The particle table.
    particles, images_read : int
        Particles in the table; images that were looked at.
    findings : tuple of Finding
        In order of topics.
    contrast : Contrast
        Of all images together.
    stack_contrast : tuple of Contrast
        Of each stack, in the order of `ParticleTable.stack_paths`.
    signal_to_noise : float
        Signal power over noise power, averaged over whole images; NaN where it could not be measured.
    unusable : array
        Rows (from 0) of particles whose image is missing, constant or not finite, among those looked at.
    cost : Cost or None
        Expected cost of a reconstruction; None without a readable table.
    """

    path: Path
    particles: int
    images_read: int
    findings: tuple[Finding, ...]
    contrast: Contrast
    stack_contrast: tuple[Contrast, ...]
    signal_to_noise: float
    unusable: Int64[np.ndarray, " unusable"]
    cost: Cost | None

    @property
    def is_usable(self) -> bool:
        """Whether nothing bad was found."""
        return all(finding.level != "bad" for finding in self.findings)

    def to_text(self) -> str:
        """Return the report for a terminal."""
        head = f"{self.path}: {self.particles} particles, {self.images_read} images looked at"
        lines = [f"{_MARKS[finding.level]}  {finding.topic}: {finding.text}" for finding in self.findings]
        if self.cost is not None:
            lines.append(
                f"  A reconstruction is expected to take about {_duration(self.cost.seconds)}, "
                f"{_size(self.cost.memory_bytes)} of memory and {_size(self.cost.disk_bytes)} of disk."
            )
        bad = sum(finding.level == "bad" for finding in self.findings)
        verdict = (
            "Nothing stands in the way of a reconstruction." if self.is_usable else f"To be put right first: {bad}."
        )
        return "\n".join([head, *lines, f"  {verdict}"])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    if seconds < 5400:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{max(1, round(size / 1e6))} MB"
