"""Checks: every fault put into a particle set is found, and a sound set has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryofire.data.check import check_file, check_particles
from cryofire.data.cost import CostModel, estimated_cost
from cryofire.data.findings import CheckReport, Contrast, Cost, Finding
from cryofire.data.read import read_particles
from cryofire.formats.mrc import open_stack, stack_writer


def levels(report: CheckReport, topic: str) -> set[str]:
    return {finding.level for finding in report.findings if finding.topic == topic}


def text(report: CheckReport, topic: str) -> str:
    return " | ".join(finding.text for finding in report.findings if finding.topic == topic)


def one_box(project: Any) -> None:
    """Leave only the three particles of day1 in the project."""
    for values in project.particles.values():
        del values[1]


def blobs(path: Path, sign: float, images: int = 60, box: int = 32) -> None:
    """Particles, dark for sign 1, at a signal-to-noise ratio near one."""
    rng = np.random.default_rng(0)
    axis = np.arange(box) - box // 2
    blob = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (0.12 * box) ** 2))
    with stack_writer(path, box, 4.0) as writer:
        writer.append(-sign * 2 * blob + rng.normal(size=(images, box, box)))


@pytest.fixture
def two_stacks(tmp_path: Path) -> Path:
    """A table of 120 blobs in the stacks dark.mrcs and other.mrcs, both dark."""
    blobs(tmp_path / "dark.mrcs", 1)
    blobs(tmp_path / "other.mrcs", 1)
    labels = "ImageName DefocusU DefocusV DefocusAngle Voltage SphericalAberration AmplitudeContrast ImagePixelSize"
    rows = [f"{i + 1}@{name}.mrcs 15000 14900 10 300 2.7 0.1 4.0\n" for name in ("dark", "other") for i in range(60)]
    header = "data_particles\nloop_\n" + "".join(f"_rln{label}\n" for label in labels.split())
    (tmp_path / "set.star").write_text(header + "".join(rows))
    return tmp_path / "set.star"


def test_a_sound_set_is_usable(two_stacks: Path) -> None:
    report = check_particles(read_particles(two_stacks))
    assert report.is_usable and report.particles == report.images_read == 120
    assert {finding.topic for finding in report.findings if finding.level != "good"} == {"particles"}
    assert report.contrast.verdict == "dark"
    assert [contrast.verdict for contrast in report.stack_contrast] == ["dark", "dark"]
    assert len(report.unusable) == 0 and report.signal_to_noise > 0.1 and report.cost is not None
    shown = report.to_text()
    assert str(two_stacks) in shown and "Nothing stands in the way" in shown


def test_stacks_of_opposite_contrast_are_found(two_stacks: Path) -> None:
    blobs(two_stacks.parent / "other.mrcs", -1)
    report = check_particles(read_particles(two_stacks))
    assert [contrast.verdict for contrast in report.stack_contrast] == ["dark", "white"]
    assert levels(report, "contrast") == {"bad"} and "other.mrcs" in text(report, "contrast")
    assert not report.is_usable and "To be put right first: 1" in report.to_text()


def test_white_particles_are_no_fault(two_stacks: Path) -> None:
    for name in ("dark", "other"):
        blobs(two_stacks.parent / f"{name}.mrcs", -1)
    report = check_particles(read_particles(two_stacks))
    assert report.is_usable and "inverted" in text(report, "contrast")


def test_bad_images_are_counted_and_named(two_stacks: Path) -> None:
    frames = open_stack(two_stacks.parent / "dark.mrcs").frames(np.arange(60))
    frames[3] = 7.0
    frames[8] *= 100
    with stack_writer(two_stacks.parent / "dark.mrcs", 32, 4.0) as writer:
        writer.append(frames)
    content = bytearray((two_stacks.parent / "dark.mrcs").read_bytes())
    content[1024 + 5 * 4096 : 1024 + 5 * 4096 + 4] = np.float32(np.nan).tobytes()
    (two_stacks.parent / "dark.mrcs").write_bytes(content)
    report = check_particles(read_particles(two_stacks))
    np.testing.assert_array_equal(report.unusable, [3, 5])
    assert "1 of 120 looked at are not finite (NaN or infinite), first in row 6" in text(report, "images")
    assert "1 of 120 looked at are constant, first in row 4" in text(report, "images")
    assert "five times off the median" in text(report, "images")
    assert levels(report, "images") == {"caution"} and report.contrast.verdict == "dark"


def test_a_set_of_constant_images_is_bad(two_stacks: Path) -> None:
    for name in ("dark", "other"):
        with stack_writer(two_stacks.parent / f"{name}.mrcs", 32, 4.0) as writer:
            writer.append(np.zeros((60, 32, 32)))
    report = check_particles(read_particles(two_stacks))
    assert levels(report, "images") == {"bad"} and len(report.unusable) == 120
    assert np.isnan(report.signal_to_noise)


def test_sample_bounds_what_is_read_but_not_what_is_checked(two_stacks: Path) -> None:
    table = read_particles(two_stacks)
    table.optics.defocus_u[77] = 5.0
    report = check_particles(table, sample=10)
    assert report.images_read == 10 and report.particles == 120
    assert "row 78" in text(report, "CTF")
    again = check_particles(table, sample=10)
    assert again.contrast == report.contrast and check_particles(table, sample=10, seed=1).contrast != report.contrast


def test_indices_past_the_end_and_vanished_stacks(project: Any) -> None:
    project.particles["rlnImageName"][2] = "000009@day1/mic.mrcs"
    table = read_particles(project.star())
    report = check_particles(table)
    assert levels(report, "stacks") == {"bad"} and "first in row 3: image 9" in text(report, "stacks")
    np.testing.assert_array_equal(report.unusable, [2])
    assert report.images_read == 3
    (project.folder / "day1" / "mic.mrcs").unlink()
    (project.folder / "day2" / "mic.mrcs").write_bytes(b"short")
    report = check_particles(table)
    assert report.images_read == 0 and len(report.unusable) == 4 and not report.is_usable
    assert "day1" in text(report, "stacks") and "day2" in text(report, "stacks")


def test_mixed_sizes_are_told(project: Any) -> None:
    report = check_particles(read_particles(project.star()))
    assert levels(report, "sizes") == {"caution"}
    assert "3 particles of 8 px at 2 Å/px" in text(report, "sizes") and "1 particles of 7 px" in text(report, "sizes")
    one_box(project)
    assert levels(check_particles(read_particles(project.star())), "sizes") == {"good"}


@pytest.mark.parametrize(
    ("block", "label", "value", "said"),
    [
        ("particles", "rlnDefocusU", "200000", "10 µm"),
        ("particles", "rlnDefocusV", "-30000", "defocus is outside"),
        ("particles", "rlnDefocusU", "30000", "astigmatism"),
        ("particles", "rlnPhaseShift", "900", "phase shift"),
        ("optics", "rlnVoltage", "300000", "voltage"),
        ("optics", "rlnVoltage", "30", "voltage"),
        ("optics", "rlnSphericalAberration", "27", "Cs"),
        ("optics", "rlnAmplitudeContrast", "0.9", "amplitude contrast"),
        ("optics", "rlnImagePixelSize", "40", "pixel size"),
    ],
)
def test_implausible_values_are_found(project: Any, block: str, label: str, value: str, said: str) -> None:
    getattr(project, block)[label][0] = value
    found = check_particles(read_particles(project.star()))
    assert said in text(found, "CTF") and "first in row 1" in text(found, "CTF")


def test_defocus_in_micrometres_is_recognised(project: Any) -> None:
    project.particles["rlnDefocusU"] = project.particles["rlnDefocusV"] = ["1.5"] * 4
    report = check_particles(read_particles(project.star()))
    assert "are the values in µm" in text(report, "CTF") and levels(report, "CTF") == {"bad"}


def test_plausible_values_are_good(project: Any) -> None:
    project.particles["rlnPhaseShift"] = ["0"] * 4
    assert levels(check_particles(read_particles(project.star())), "CTF") == {"good"}


def test_duplicates_are_found(project: Any) -> None:
    report = check_particles(read_particles(project.star()))
    assert levels(report, "duplicates") == set()
    project.particles["rlnCoordinateX"][2] = project.particles["rlnCoordinateY"][2] = "10.0"
    assert "1 rows repeat the coordinates" in text(check_particles(read_particles(project.star())), "duplicates")
    project.particles["rlnImageName"][3] = project.particles["rlnImageName"][2]
    assert "1 rows name an image" in text(check_particles(read_particles(project.star())), "duplicates")


def test_repeated_uids_are_found(project: Any) -> None:
    rows = project.rows()
    assert levels(check_particles(read_particles(project.cs(rows))), "duplicates") == set()
    rows["uid"][2] = rows["uid"][0]
    assert "1 uids" in text(check_particles(read_particles(project.cs(rows))), "duplicates")


def test_neglected_optics_become_cautions(project: Any) -> None:
    project.optics["rlnBeamTiltX"] = ["0.1", "0"]
    assert "beam tilt" in text(check_particles(read_particles(project.star())), "optics")


def test_a_file_that_cannot_be_read_is_a_finding(project: Any) -> None:
    report = check_file(project.folder / "none.star")
    assert levels(report, "reading") == {"bad"} and report.cost is None and report.particles == 0
    path = project.star()
    assert check_file(path).images_read == 4
    (project.folder / "day1" / "mic.mrcs").unlink()
    report = check_file(path)
    assert levels(report, "reading") == {"bad"} and report.particles == 4 and levels(report, "sizes")
    assert str(project.folder / "day1" / "mic.mrcs") in report.to_text()


def test_cost_grows_with_particles_and_box() -> None:
    one, more, larger = estimated_cost(1000, 64), estimated_cost(2000, 64), estimated_cost(1000, 128)
    for name in ("seconds", "memory_bytes", "disk_bytes"):
        assert getattr(one, name) < getattr(more, name) and getattr(one, name) < getattr(larger, name)
    model = CostModel()
    assert estimated_cost(1000, 1000) == estimated_cost(1000, model.largest_box)
    many, twice = (estimated_cost(count, 64) for count in (10**6, 2 * 10**6))  # the subset no longer grows
    assert many.memory_bytes == twice.memory_bytes
    per_image = model.per_image + model.per_voxel * 64**3
    assert twice.seconds - many.seconds == pytest.approx(10**6 * per_image / model.cores_in_use)


def test_text_of_large_and_small_costs() -> None:
    def shown(cost: Cost) -> str:
        finding = Finding("caution", "topic", "words")
        contrast = Contrast(7.0, 9)
        return CheckReport(Path("a"), 1, 1, (finding,), contrast, (), 0.1, np.array([0]), cost).to_text()

    assert "12 s, 5 MB of memory and 0.2 GB" in shown(Cost(12.0, 5_000_000, 240_000_000))
    assert "about 10 min" in shown(Cost(600.0, 1, 1)) and "about 2.0 h" in shown(Cost(7200.0, 1, 1))
    assert "caution  topic: words" in shown(Cost(1.0, 1, 1))


def test_reference_set(shared_data: Path) -> None:
    """Made at −10 dB and box 128, then cropped to 64: a fourth of the noise is left, and nearly all of the signal."""
    report = check_file(shared_data / "reference_set" / "particles.star", sample=300)
    assert report.is_usable and report.contrast.verdict == "dark"
    assert 0.3 < report.signal_to_noise < 0.5


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("sample_particles_relion31.star", "white"),
        ("sample_particles_relion30.star", "white"),
        ("empiar_10076_7.star", "dark"),
    ],
)
def test_contrast_of_real_particles(shared_data: Path, name: str, verdict: str) -> None:
    report = check_file(shared_data / "particles" / name)
    assert report.contrast.verdict == verdict and report.is_usable
