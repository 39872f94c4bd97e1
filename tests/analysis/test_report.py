"""The report is one page that stands alone, says what is there, and survives what is not."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cryofire.analysis import report_html as html
from cryofire.analysis.report import trust_section, write_report
from cryofire.analysis.report_maps import load_maps, maps_section, resolution_section
from cryofire.analysis.report_motion import motion_section
from cryofire.analysis.report_particles import (
    cost_table,
    data_section,
    example_section,
    latent_section,
    pose_section,
    progress_section,
)
from cryofire.analysis.run_files import read_estimates
from cryofire.analysis.run_record import MapRecord, RunRecord, Verdict, read_run
from cryofire.data.estimates import ParticleEstimates
from cryofire.errors import MissingFileError
from cryofire.formats.mrc import read_map, write_map

VOID = {"meta", "img", "br", "link"}


class Balance(HTMLParser):
    """Collects the text, and fails where a tag is closed that was not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.sources: list[str] = []
        self.anchors: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [values["src"] or ""] if "src" in values else []
        self.links += [values["href"] or ""] if "href" in values else []
        self.anchors += [values["id"] or ""] if "id" in values else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read_page(path: Path) -> Balance:
    parser = Balance()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def finished_page(finished_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(finished_run[0], run)
    return write_report(run)


def test_page_stands_alone_and_is_small(finished_page: Path) -> None:
    page = read_page(finished_page)
    assert finished_page.name == "report.html" and finished_page.stat().st_size < 3e6
    assert len(page.sources) > 20 and all(source.startswith("data:image/") for source in page.sources)
    assert {link.removeprefix("#") for link in page.links} <= set(page.anchors)
    assert not re.search(r"<(script|link|iframe)", finished_page.read_text(encoding="utf-8"))


def test_page_says_what_was_found(finished_page: Path) -> None:
    words = " ".join(" ".join(read_page(finished_page).words).split())
    for text in (
        "set/particles.star", "What to trust", "Rotations are certain to 0.7°", "molecule from its mirror image",
        "State 1", "State 2", "How State 2 differs from State 1", "20.0 Å", "Central slices", "Views and poses",
        "Images and predictions", "How the run went", "4 min 24 s", "chimerax",
        "cryofire export run/ --relion poses.star",
        "Your particles are dark", "states/state1.mrc", "300 kV", "1.5 µm",
    ):  # fmt: skip
        assert text in words, text


def test_every_picture_is_described(finished_page: Path) -> None:
    tags = re.findall(r"<img [^>]*>", finished_page.read_text(encoding="utf-8"))
    assert all(re.search(r'alt="[^"]{5,}"', tag) for tag in tags)


def test_a_motion_is_shown_as_a_film_strip(run_and_truth: tuple[Path, Path]) -> None:
    run, _ = run_and_truth
    first, pixel = read_map(run / "states" / "state1.mrc")
    last, _ = read_map(run / "states" / "state2.mrc")
    frames = []
    for number, share in enumerate((0.0, 0.5, 1.0), start=1):
        (run / "path").mkdir(exist_ok=True)
        write_map(run / "path" / f"frame{number}.mrc", (1 - share) * first + share * last, pixel)
        frames.append({"map": f"path/frame{number}.mrc", "latent": [share, 0.0, 0.0], "weight": 0.3})
    found = json.loads((run / "results.json").read_text())
    found |= {"heterogeneity": "continuous", "path": {"frames": frames, "closed": False, "length": 9.0}}
    (run / "results.json").write_text(json.dumps(found))
    words = " ".join(" ".join(read_page(write_report(run)).words).split())
    for text in ("3 maps decoded", "run from end to end", "frame 3, 30 % of particles", "run/path/frame*.mrc", "#1-3"):
        assert text in words, text
    record = read_run(run)
    assert [one.latent[0] for one in record.frames] == [0.0, 0.5, 1.0]
    (run / "path" / "frame2.mrc").unlink()
    assert len(read_run(run).frames) == 2
    shutil.rmtree(run / "path")
    assert motion_section(read_run(run)) == ""


def test_a_run_without_maps_and_curves_still_has_its_particles(run_and_truth: tuple[Path, Path]) -> None:
    run, _ = run_and_truth
    shutil.rmtree(run / "states")
    for name in ("consensus.mrc", "metrics.jsonl", "examples.npz", "run.log"):
        (run / name).unlink()
    page = read_page(write_report(run))
    assert {"trust", "resolution", "conformations", "poses", "data"} <= set(page.anchors)
    assert not {"maps", "images", "unfinished"} & set(page.anchors)


def test_a_run_whose_every_file_is_damaged_still_gets_a_report(run_and_truth: tuple[Path, Path]) -> None:
    run, _ = run_and_truth
    for path in [path for path in run.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    page = read_page(write_report(run))
    assert "Do not use these results yet" in " ".join(page.words)
    assert not {"maps", "images", "conformations"} & set(page.anchors)


def test_a_map_that_cannot_be_shown_is_left_out(run_and_truth: tuple[Path, Path]) -> None:
    run, _ = run_and_truth
    path = run / "states" / "state2.mrc"
    path.write_bytes(path.read_bytes()[:5000])
    assert [one.name for one, *_ in load_maps(read_run(run))] == ["state1"]
    write_map(path, np.zeros((24, 24, 24)), 8.0)
    assert [one.name for one, *_ in load_maps(read_run(run))] == ["state1"]
    (run / "states" / "state1.mrc").unlink()
    path.unlink()
    assert [one.name for one, *_ in load_maps(read_run(run))] == ["consensus"]


def test_sections_of_pieces_that_are_missing_are_empty(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, finished=True)
    assert maps_section(record) == "" and resolution_section(record, None) == ""
    assert data_section(record) == "" and latent_section(record, None) == "" and pose_section(None) == ""
    assert example_section(record) == "" and progress_section(record, ()) == "" and cost_table(record) == ""


def test_an_empty_run_gets_a_report_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text("reading particles\nimage 7 is missing <tag>\n")
    words = " ".join(read_page(write_report(tmp_path)).words)
    assert "Do not use these results yet" in words and "image 7 is missing <tag>" in words


def test_bad_verdicts_come_first_and_the_hand_is_added() -> None:
    verdicts = (Verdict("good", "Poses", "certain"), Verdict("bad", "Search", "noise & nothing <else>"))
    text = trust_section(RunRecord(Path(), finished=True, verdicts=verdicts), None)
    assert text.index("noise &amp; nothing &lt;else&gt;") < text.index("mirror image") < text.index("certain")


def test_runs_without_verdicts_are_judged(finished_run: tuple[Path, Path]) -> None:
    record = replace(read_run(finished_run[0]), verdicts=())
    assert "All 300 images could be read." in trust_section(record, read_estimates(record))


def test_runs_without_latents_or_usable_images_get_a_report(run_and_truth: tuple[Path, Path]) -> None:
    run, _ = run_and_truth
    shutil.rmtree(run / "states")
    (run / "consensus.mrc").unlink()
    with np.load(run / "estimates.npz") as archive:
        values = dict(archive)
    values["latents"], values["latent_std"] = np.zeros((300, 0)), np.zeros((300, 0))
    assert latent_section(read_run(run), ParticleEstimates(**values)) == ""
    values["used"][:] = False
    np.savez(run / "estimates.npz", **values)
    assert "No image of this run was usable." in " ".join(read_page(write_report(run)).words)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="run folder"):
        write_report(tmp_path / "nowhere")


def test_foreign_text_is_escaped() -> None:
    assert "<b>" not in html.paragraph("<b>x</b>")
    assert "&lt;i&gt;" in html.verdict(Verdict("strange", "<i>", "<i>")) and "caution" in html.verdict(
        Verdict("x", "", "")
    )
    assert "&lt;" in html.commands("a < b") and "&lt;" in html.tile("<", "<") and "&lt;" in html.figure("", "<")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (264.0, "4 min 24 s"), (7500.0, "2 h 5 min"), (59.6, "1 min 0 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert html.duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(12, "12 bytes"), (3100, "3.1 kB"), (250e6, "250 MB"), (2.5e12, "2500 GB")]
)
def test_sizes(amount: float, text: str) -> None:
    assert html.data_size(amount) == text


def test_thousands_are_separated() -> None:
    assert html.count(1234567) == "1\u202f234\u202f567"


def test_a_curve_that_never_falls_is_reported_as_a_limit() -> None:
    state = MapRecord("state1", fsc=np.linspace(1.0, 0.3, 16), resolution=20.0)
    record = RunRecord(Path(), finished=True, box=32, pixel_size=5.0, states=(state,))
    words = resolution_section(record, None)
    assert "≤ 10.7 Å" in words and '<td class="number">14.9 Å</td>' in words
