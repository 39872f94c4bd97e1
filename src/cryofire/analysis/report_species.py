"""The section of a report on particles of several species, each of which has a report of its own."""

from __future__ import annotations

from html import escape

from cryofire.analysis import report_html as html
from cryofire.analysis.run_record import RunRecord, SpeciesRecord


def species_section(record: RunRecord) -> str:
    """Return a table of the species with links to their reports; nothing where all particles are of one kind.

    Parameters
    ----------
    record : RunRecord
        The run.
    """
    if not record.species:
        return ""
    if len(record.species) == 1:
        text = "Some images show no structure. The others were told apart from them and reconstructed in a run of their own."
    else:
        text = (
            "No single structure explains these particles. They were told apart by the map that explains each image best, and "
            "every kind was reconstructed in a run of its own: poses, states and latent coordinates of one have nothing to do with "
            "those of another."
        )
    head = ("species", "particles", "share", "differences within it", "states", "best resolution", "its report")
    rows = [_row(record, one) for one in record.species]
    return html.section("species", "Species", html.paragraph(text), html.table(head, rows, numbers=(1, 2, 4, 5)))


def _row(record: RunRecord, one: SpeciesRecord) -> list[str]:
    states = [record.states[index] for index in one.states]
    best = min((state.resolution for state in states if state.resolution), default=None)
    return [
        escape(one.title),
        html.count(one.particles),
        f"{100 * one.weight:.1f} %",
        escape(one.heterogeneity),
        str(len(states)),
        f"{best:.1f} Å" if best else "",
        f'<a href="{one.name}/report.html">{one.name}/report.html</a>',
    ]
