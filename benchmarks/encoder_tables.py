"""Tables of the encoder: images it has not seen, what taught it, and how poses come about stage by stage."""

from __future__ import annotations

from page import CONFUSION, NOT_RUN, SHIFT, VIEWING, Results, markdown_table


def unseen(results: Results) -> str:
    """Images that a run has not seen."""
    rows = [
        [
            row["name"], str(row["particles"]), "encoder alone" if row["polish"] == 0 else f"`--polish {row['polish']}`",
            f"{row['viewing_median_deg']:.3f}° / {row['viewing_mean_deg']:.3f}°",
            f"{row['shift_squared_median_px']:.4f} px²", f"{row['confusion_unsupervised']:.1e}",
            f"{100 * row['rotation_coverage_own_frame'][1]:.0f} % / {100 * row['shift_coverage'][1]:.0f} %",
            f"{row['images_per_s']:.0f}", f"{row['encoder_images_per_s']:.0f}" if "encoder_images_per_s" in row else "–",
        ]
        for row in results.rows("unseen")
    ]  # fmt: skip
    head = ["learnt → encoded", "images", "", "viewing direction, median / mean", "squared shift", "confusion, unsupervised",
            "rotations / shifts in the 90 % region", "images/s, file to file", "images/s, encoder on whitened images"]  # fmt: skip
    return (
        "## Images that the run has not seen\n\n"
        "A run on one set, then `cryofire encode` on another (`benchmarks/unseen.py`): `ref3` and `ref4` hold 10 000 particles "
        "each at box 64, `box128` 20 000. Must be at box 64: 2.5° and 1e-2 for the encoder alone, 0.45° and 1e-3 after two "
        "steps, 85 to 95 % in the 90 % region, 1 000 images/s. "
        f"Measured on {results.machine('unseen')}. Regions of rotations are counted in each state's own frame.\n\n"
        + (markdown_table(head, rows) if rows else NOT_RUN)
    )


def precision(results: Results) -> str:
    """bfloat16 against single precision."""
    rows = [
        [
            f"box {row['box']}", row["capability"], f"{row['images_per_s']['float32']:.0f}",
            f"{row['images_per_s']['bfloat16']:.0f}", f"{row['viewing_moved_median_deg']:.2f}°",
            f"{100 * row['viewing_moved_far']:.1f} %",
        ]
        for row in results.rows("precision")
    ]  # fmt: skip
    head = ["encoder of", "processor's vectors", "float32, images/s", "bfloat16, images/s", "poses move by (median)",
            "by more than 5°"]  # fmt: skip
    return (
        "## Mixed precision\n\nThe encoder in single precision and with matrix products in bfloat16, on whitened images "
        "(`benchmarks/precision.py`). A processor without bfloat16 instructions emulates them: the default is single "
        "precision.\n\n" + (markdown_table(head, rows) if rows else NOT_RUN)
    )


def ablations(results: Results) -> str:
    """What each part of the teaching is worth."""
    found = results.rows("ablations")
    rows = [
        [
            row["name"], f"{row['seconds']:.0f} s, {row['steps']} steps" if row["steps"] else "–",
            f"{row['encode_s']:.0f}", f"{row['viewing_median_deg']:.2f}° / {row['viewing_mean_deg']:.2f}°",
            f"{row['confusion_unsupervised']:.1e}", f"{100 * row['rotations_inside_90_region']:.0f} %",
            f"{row['gap_deg']:.2f}°, {row['gap_nats']:.1f} nats" if "gap_deg" in row else "–",
        ]
        for row in found
    ]  # fmt: skip
    head = [
        "what sees the images", "learnt here", "10 000 images (s)", "viewing direction, median / mean",
        "confusion, unsupervised", "in the 90 % region", "gap to the polished pose, learnt images",
    ]  # fmt: skip
    shared = " Other work shared the machine." if any(row["machine_shared"] for row in found) else ""
    return (
        "## What teaches the encoder\n\n"
        "Unseen images in one pass, without `--polish`, at equal time to learn (`benchmarks/ablations.py`). The search is "
        "exhaustive over 4 608 rotations and a disc of shifts for the map of every state, and its cost grows with every "
        "image. A run teaches its encoder before the last polish; the banks of the encoder are cut from the final maps."
        f"{shared}\n\n" + (markdown_table(head, rows) if rows else NOT_RUN)
    )


def stages_in_turn(results: Results) -> str:
    """Poses and latents after each stage."""
    parts = ["## Stage by stage", STAGES_TEXT]
    for row in results.rows("stage_by_stage"):
        lines = [
            [
                stage["stage"], f"{stage['wall_s']:.0f}",
                f"{stage['viewing_median_deg']:.3f}° / {stage['viewing_mean_deg']:.3f}°",
                f"{stage['shift_squared_median_px']:.4f}",
                "–" if stage["confusion_unsupervised"] is None else f"{stage['confusion_unsupervised']:.1e}",
            ]
            for stage in row["stages"]
        ]  # fmt: skip
        shared = " (other work shared the machine)" if row["machine_shared"] else ""
        head = ["after", f"wall time so far (s){shared}", VIEWING.title + " / mean", SHIFT.title, CONFUSION.title]
        parts += [f"Set `{row['set']}`:", markdown_table(head, lines)]
    return "\n\n".join(parts if len(parts) > 2 else [*parts, NOT_RUN])


STAGES_TEXT = (
    "`assign` is search alone; up to `frames` nothing is amortised. From `opinion` on the encoder has its say: where it "
    "sees an image elsewhere, the likeliest pose is kept, so that the step from `frames` to `opinion` is what joint "
    "learning is worth to the decoder. `field` polishes against the neural field."
)


def published(results: Results) -> str:
    """The published recipe in the time of the scripts."""
    head = ["set", "box", "images presented", "wall time (s)", "CPU seconds", VIEWING.title, SHIFT.title]
    rows = []
    for row in results.rows("published"):
        if (found := row.get("recipe")) is not None:
            poses = found["scores"]["poses"]
            rows.append([
                row["set"], str(row["box"]), str(found["images"]), f"{found['wall_s']:.0f}", f"{found['cpu_s']:.0f}",
                f"{poses['direction_median_deg']:.1f}°", f"{poses['shift_median_px2']:.3f}",
            ])  # fmt: skip
    return (
        "## The published recipe\n\n"
        "`--recipe cryofire-2022`: encoder and decoder from random weights, without a search, in the time and on the "
        "machine of a default run (`benchmarks/published.py`). It is meant for hours on a GPU: a random pose has an error "
        "of about 90°, and nothing more is reached here.\n\n" + (markdown_table(head, rows) if rows else NOT_RUN)
    )
