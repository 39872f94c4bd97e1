"""The sections of a report on particles: latent space, views and poses, example images, progress."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from cryofire.analysis import plots, progress_plots
from cryofire.analysis import report_html as html
from cryofire.analysis.map_pictures import image_picture
from cryofire.analysis.run_files import read_examples
from cryofire.analysis.run_record import JsonObject, RunRecord
from cryofire.data.estimates import ParticleEstimates
from cryofire.data.read import read_particles
from cryofire.errors import InputError


def data_section(record: RunRecord) -> str:
    """Return what the images are: how many, how taken; nothing where the particle table cannot be read.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    try:
        particles = read_particles(record.folder / "particles.star", stacks=False)
    except InputError:
        return ""
    optics = particles.optics
    defocus = 0.5e-4 * (optics.defocus_u + optics.defocus_v)
    facts = [
        ("particles", html.count(len(particles))),
        ("micrographs", html.count(len(set(particles.micrograph))) if particles.micrograph else "not stated"),
        ("image stacks", html.count(len(particles.stack_paths))),
        ("pixel size of the images", f"{_range(particles.pixel_size)} Å"),
        ("voltage", f"{_range(optics.voltage_kv)} kV"),
        ("spherical aberration", f"{_range(optics.cs_mm)} mm"),
        ("amplitude contrast", _range(optics.amplitude_contrast)),
        ("defocus", f"{_range(defocus)} µm"),
    ]
    if record.contrast:
        facts.append(("contrast", f"{record.contrast} particles"))
    if record.snr:
        facts.append(("signal to noise ratio", f"{record.snr:.2g} (estimated)"))
    plot = html.plot(
        plots.histogram(defocus, "defocus (µm)", (float(np.median(defocus)), f"median {np.median(defocus):.2f} µm")),
        "histogram of defocus",
        "",
    )
    facts_table = html.table(("", ""), [[escape(name), escape(value)] for name, value in facts])
    return html.section("data", "Data", html.grid([facts_table, plot]))


def _range(values: np.ndarray) -> str:
    """Return one number where all are alike, else the least and the greatest."""
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if high - low <= 1e-4 * abs(high) else f"{low:.3g} – {high:.3g}"


def latent_section(record: RunRecord, estimates: ParticleEstimates | None) -> str:
    """Return the section on the latent space; nothing for a run without one.

    Parameters
    ----------
    record : RunRecord
        For the names of the states.
    estimates : ParticleEstimates, optional
        For the coordinates.
    """
    if estimates is None or estimates.latents.shape[1] == 0:
        return ""
    used = estimates.used & np.isfinite(estimates.latents).all(axis=1)
    latents, states = estimates.latents[used], estimates.state[used]
    if len(latents) == 0 or np.ptp(latents[:, 0]) == 0:
        return ""
    names = [one.title for one in record.states] or ["all particles"]
    pairs = [(0, second) for second in range(1, min(3, latents.shape[1]))]
    line = "; the line is the path of the motion, its numbers the frames" if record.frames else ""
    many = ", drawn as a density on a logarithmic scale" if len(latents) > plots.DENSITY_ABOVE else ""
    path = np.stack([*(one.latent for one in record.frames)]) if record.frames else None
    scatter = [
        html.plot(
            plots.latent_plot(latents, states, pair, names, path),
            f"latent coordinates {pair[0] + 1} and {pair[1] + 1} of all particles",
            f"Each particle's conformation{many}{line}." if pair[1] == 1 else "",
        )
        for pair in pairs
    ]
    widths = np.nanmedian(estimates.latent_std[used], axis=0)
    histograms = [
        html.plot(
            plots.coordinate_histogram(latents[:, component], states, float(widths[component]), component),
            f"histogram of latent coordinate {component + 1}",
            "Peaks further apart than the uncertainty are separate states." if component == 0 else "",
        )
        for component in range(min(2, latents.shape[1]))
    ]
    kinds = {
        "homogeneous": "The latent space holds one conformation.",
        "unresolved": "The latent space holds one cloud, about as wide as the uncertainty of a single image.",
        "discrete": "The latent space falls into separate clouds: distinct states.",
        "continuous": "The latent space is one extended cloud: the molecule moves continuously.",
    }
    text = kinds.get(record.heterogeneity or "", "") + " Near points are particles of similar shape."
    return html.section(
        "conformations", "Conformations", html.paragraph(text.strip(), "soft"), html.grid([*scatter, *histograms])
    )


def pose_section(estimates: ParticleEstimates | None) -> str:
    """Return the section on views, rotations, shifts and contrast.

    Parameters
    ----------
    estimates : ParticleEstimates, optional
        Nothing is returned without them.
    """
    if estimates is None:
        return ""
    used = estimates.used & np.isfinite(estimates.rotations).all(axis=(1, 2))
    shifts = estimates.shifts[used]
    parts = [
        html.plot(
            plots.direction_plot(estimates.rotations[used]),
            "map of viewing directions on the sphere",
            "From where the molecule is seen, in the frame of the maps (z axis at the top). Even colour: even views.",
        )
    ]
    deviations = np.rad2deg(estimates.rotation_std[used])
    deviations = deviations[np.isfinite(deviations)]
    if deviations.size:
        middle = float(np.median(deviations))
        parts.append(
            html.plot(
                plots.histogram(deviations, "uncertainty of a rotation (°)", (middle, f"median {middle:.2g}°")),
                "histogram of the uncertainty of rotations",
                "How sure the rotation of each image is. A second hump at large angles means images without a pose.",
            )
        )
    parts.append(
        html.plot(plots.shift_plot(shifts), "density of shifts", f"Shifts, {_spread(shifts):.1f} Å on each axis (rms).")
    )
    contrast = estimates.contrast[used]
    contrast = contrast[np.isfinite(contrast)]
    if contrast.size and np.ptp(contrast) > 1e-6:
        parts.append(
            html.plot(
                plots.histogram(contrast, "contrast relative to the mean", None),
                "histogram of contrast",
                "Near 0: images that hold no particle. Above 1: thin ice or large particles.",
            )
        )
    return html.section("poses", "Views and poses", html.grid(parts))


def _spread(shifts: np.ndarray) -> float:
    return float(np.sqrt(np.mean(shifts**2))) if shifts.size else 0.0


def example_section(record: RunRecord) -> str:
    """Return particle images above what the model predicts for them; nothing where the run left none.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    examples = read_examples(record)
    if examples is None:
        return ""
    pairs = []
    for observed, predicted, row in zip(examples.observed, examples.predicted, examples.particle, strict=True):
        if not (np.isfinite(observed).all() and np.isfinite(predicted).all()):
            continue
        images = [
            html.picture(image_picture(one, _grey_limits(one)), f"{kind} image of particle {int(row) + 1}")
            for one, kind in ((observed, "observed"), (predicted, "predicted"))
        ]
        agreement = float(np.corrcoef(observed.ravel(), predicted.ravel())[0, 1]) if np.ptp(predicted) > 0 else 0.0
        pairs.append(html.figure("".join(images), f"{html.count(int(row) + 1)} · r = {agreement:.2f}", "pair"))
    text = (
        "Above: particle images, low-passed. Below: what the final maps predict for the same pose, conformation and "
        "CTF. The same features should be seen in both. Below each: row of the particle table, correlation r."
    )
    return html.section("images", "Images and predictions", html.paragraph(text, "soft"), html.grid(pairs, "eight"))


def _grey_limits(image: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(image, [0.005, 0.995])
    return float(low), float(high)


def progress_section(record: RunRecord, lines: Sequence[JsonObject]) -> str:
    """Return how the run went: curves and what each stage cost.

    Parameters
    ----------
    record : RunRecord
        The run.
    lines : sequence of mapping
        From `read_metrics`.
    """
    length = record.box * record.pixel_size if record.box and record.pixel_size else None
    curves = [
        html.plot(progress_plots.search_plot(lines), "log-likelihood of the search",
                  "Search for the first poses, one curve a start; the best by held-out images goes on."),
        html.plot(progress_plots.misfit_plot(lines), "misfit of the refinement",
                  "What the model leaves of each Fourier coefficient, in units of the noise: 1 is noise alone. "
                  "Held-out images falling behind: fitted too closely."),
        html.plot(progress_plots.pose_change_plot(lines), "change of poses in each pass",
                  "How far poses still moved; they have settled where this is below their uncertainty."),
        html.plot(progress_plots.limit_plot(lines, length) if length else None, "resolution limit of each step",
                  "Detail is added as the poses allow it."),
    ]  # fmt: skip
    costs = cost_table(record)
    if not costs and not any(curves):
        return ""
    return html.section("progress", "How the run went", html.grid(curves), costs)


def cost_table(record: RunRecord) -> str:
    """Return time, memory and bytes of each stage; nothing where none was recorded.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    total = sum(stage.wall_s or 0.0 for stage in record.stages)
    rows = []
    for stage in record.stages:
        share = (stage.wall_s or 0.0) / total if total > 0 else 0.0
        rows.append([
            escape(stage.name),
            html.duration(stage.wall_s) if stage.wall_s is not None else "",
            html.duration(stage.cpu_s) if stage.cpu_s is not None else "",
            html.data_size(stage.peak_memory_bytes) if stage.peak_memory_bytes is not None else "",
            html.data_size(stage.bytes_read) if stage.bytes_read is not None else "",
            f'<span class="bar" style="width: {160 * share:.0f}px"></span>',
        ])  # fmt: skip
    head = ("stage", "time", "processor time", "peak memory", "read", "")
    return html.table(head, rows, numbers=(1, 2, 3, 4)) if rows else ""
