"""Scores of a run against the truth, as JSON and as a table for a terminal."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from cryofire.analysis.map_scores import MapScore
from cryofire.analysis.metrics import REGION_LEVELS


@dataclass(frozen=True)
class PoseScore:
    """Pose errors after removing global rotation, hand and offset.

    Attributes
    ----------
    direction_median_deg, direction_mean_deg : float
        Angle between viewing directions.
    rotation_median_deg, rotation_mean_deg : float
        Full geodesic angle.
    shift_median_px2, shift_mean_px2 : float
        Squared shift error, in pixels of the images.
    shift_median, shift_mean : float
        Length of the shift error, Å.
    mirrored : bool
        Whether the reconstruction has the other hand.
    rotation_coverage, rotation_coverage_own_frame, shift_coverage : tuple of float
        Fraction of true poses inside the stated 50, 90 and 99 % regions.
    rotation_overconfidence : float
        Median of error / stated rms, divided by its value for calibrated Gaussians: 1 is calibrated, 2 twice too sure.
    """

    direction_median_deg: float
    direction_mean_deg: float
    rotation_median_deg: float
    rotation_mean_deg: float
    shift_median_px2: float
    shift_mean_px2: float
    shift_median: float
    shift_mean: float
    mirrored: bool
    rotation_coverage: tuple[float, ...]
    rotation_coverage_own_frame: tuple[float, ...]
    shift_coverage: tuple[float, ...]
    rotation_overconfidence: float


@dataclass(frozen=True)
class StateScore:
    """How well the latent space tells states apart; None where the truth or the run has nothing to compare.

    Attributes
    ----------
    confusion_threshold : float or None
        Fraction misclassified by the best threshold on the first principal component (label-aware; two states).
    confusion_mixture : float or None
        By an unsupervised Gaussian mixture with the true number of components.
    confusion_states : float or None
        By the run's own states.
    adjusted_rand : float or None
        Adjusted Rand index of the run's own states.
    coordinate_correlation : float or None
        Absolute rank correlation of the position along the path (of the first latent coordinate where the run has no path)
        with the true continuous conformation.
    """

    confusion_threshold: float | None = None
    confusion_mixture: float | None = None
    confusion_states: float | None = None
    adjusted_rand: float | None = None
    coordinate_correlation: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All scores of a run.

    Attributes
    ----------
    run, truth : str
        What was compared.
    particles, particles_used : int
        In the run, and those scored (the others were unusable, or show no particle).
    empty, empty_used : int
        Images that show no particle by the truth, and those of them that the run gave a pose.
    contaminated, contaminated_used : int
        Images with something else over the particle, and those of them that the run gave a pose; these are scored as all.
    poses : PoseScore
    states : StateScore
    maps : tuple of MapScore
    """

    run: str
    truth: str
    particles: int
    particles_used: int
    empty: int
    empty_used: int
    contaminated: int
    contaminated_used: int
    poses: PoseScore
    states: StateScore
    maps: tuple[MapScore, ...]

    def to_json(self) -> str:
        """Return the scores as JSON; what is not finite or not known is null."""
        return json.dumps(_finite(asdict(self)), indent=1)

    def to_text(self) -> str:
        """Return the scores as an aligned table for a terminal."""
        rows = [*_pose_rows(self.poses), *_state_rows(self.states), *_map_rows(self.maps)]
        if self.empty:
            rows.append(("images without a particle, taken for one", f"{self.empty_used} of {self.empty}"))
        if self.contaminated:
            rows.append(("contaminated images, used", f"{self.contaminated_used} of {self.contaminated}"))
        width = max(len(name) for name, _ in rows)
        head = f"{self.run} against {self.truth}: {self.particles_used} of {self.particles} particles"
        return "\n".join([head, "", *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _finite(value: Any) -> Any:
    """Return the same structure with numbers that JSON cannot hold replaced by None."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _pose_rows(poses: PoseScore) -> list[tuple[str, str]]:
    regions = " / ".join(f"{100 * level:g} %" for level in REGION_LEVELS)
    return [
        ("viewing direction, median / mean", f"{poses.direction_median_deg:.3f}° / {poses.direction_mean_deg:.3f}°"),
        ("rotation (geodesic), median / mean", f"{poses.rotation_median_deg:.3f}° / {poses.rotation_mean_deg:.3f}°"),
        ("squared shift, median / mean", f"{poses.shift_median_px2:.4f} / {poses.shift_mean_px2:.4f} px²"),
        ("shift, median / mean", f"{poses.shift_median:.2f} / {poses.shift_mean:.2f} Å"),
        ("hand", "mirrored" if poses.mirrored else "as in the truth"),
        (f"true rotations inside the stated {regions}", _percentages(poses.rotation_coverage)),
        ("  each state in its own frame", _percentages(poses.rotation_coverage_own_frame)),
        (f"true shifts inside the stated {regions}", _percentages(poses.shift_coverage)),
    ]


def _percentages(fractions: tuple[float, ...]) -> str:
    return " / ".join(f"{100 * value:.1f} %" for value in fractions)


def _state_rows(states: StateScore) -> list[tuple[str, str]]:
    named = [
        ("confusion, threshold on the first component", states.confusion_threshold, ".2g"),
        ("confusion, unsupervised mixture", states.confusion_mixture, ".2g"),
        ("confusion, states of the run", states.confusion_states, ".2g"),
        ("adjusted Rand index, states of the run", states.adjusted_rand, ".4f"),
        ("rank correlation with the true coordinate", states.coordinate_correlation, ".4f"),
    ]
    return [(name, format(value, form)) for name, value, form in named if value is not None]


def _map_rows(maps: tuple[MapScore, ...]) -> list[tuple[str, str]]:
    return [
        (
            f"{score.name} {'decoded' if score.kind == 'decoded' else 'from images'} against {score.truth}",
            f"{score.resolution_half:.1f} Å at 0.5, {score.resolution_seventh:.1f} Å at 0.143"
            f" (unmasked {score.unmasked_half:.1f} Å at 0.5)",
        )
        for score in maps
    ]
