"""Where others win: sets where the oracle's poses are clearly better than ours, and programs that were faster or more accurate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from comparison_tables import title_of
from page import NOT_RUN, SHIFT, VIEWING, VIEWING_MEAN, Results, Row, markdown_table

CLEARLY = 1.1
"""Errors over those of the oracle from which on they are listed."""
SCORES = (VIEWING, VIEWING_MEAN, SHIFT)
OURS = "cryofire"


def shortfalls(results: Results, titles: Mapping[str, str]) -> str:
    """The section; `titles` says what sets are called."""
    remedies = results.content("remedies")
    behind = [(name, title, list(clearly_behind(row))) for name, title, row in scored(results, titles)]
    lines = [[title, "; ".join(found), remedies.get(name, "not known")] for name, title, found in behind if found]
    head = ["set", "ours against the oracle (ratio)", "what would have to change"]
    text = (
        f"Errors of poses above that are more than {CLEARLY:g} times those of the oracle, which starts from the true poses and has "
        "maps without noise, and areas of maps that are smaller than the oracle's by that factor."
    )
    parts = ["## Where the oracle or another program wins", text, markdown_table(head, lines) if lines else NOT_RUN]
    return "\n\n".join([*parts, *programs(results)])


def scored(results: Results, titles: Mapping[str, str]) -> Iterator[tuple[str, str, Row]]:
    """Name, title and scores of everything that has an oracle."""
    for row in results.rows("quality"):
        yield row["set"], f"{titles.get(row['set'], row['set'])}, seed {row['seed']}", row
    for row in results.rows("robustness"):
        yield row["set"], titles.get(row["set"], row["set"]), row
    for row in results.rows("conformations"):
        yield row["set"], title_of(row["set"], row["snr"], row["poses"]), row
    for row in results.rows("paper"):
        for one in row["unseen"]:
            viewing, shift = one["rotation"], one["translation"]
            how = "in one pass" if one["polish"] == 0 else f"after {one['polish']} polish steps"
            where = " on a graphics processor" if row["gpu"] else ""
            scores = {
                VIEWING.key: viewing[0], VIEWING_MEAN.key: viewing[1], SHIFT.key: shift[0],
                **{f"oracle_{score.key}": row.get(f"oracle_{score.key}") for score in SCORES},
            }  # fmt: skip
            yield (
                "encoder" if one["polish"] == 0 else "polished",
                f"unseen images of {row['row']}{where}, {how}",
                scores,
            )


def clearly_behind(row: Row) -> Iterator[str]:
    """Scores of a row that are clearly above the oracle's, with that and the ratio."""
    for score in SCORES:
        ours, oracle = row.get(score.key), row.get(f"oracle_{score.key}")
        if ours is not None and oracle and ours > CLEARLY * oracle:
            reached = score.form.format(oracle) + score.unit
            yield f"{score.title}: {score.text(row)} against {reached} ({ours / oracle:.2f})"
    area, best = row.get("state_area_mean"), row.get("oracle_state_area_mean")
    if area is not None and best and CLEARLY * area < best:
        yield f"FSC area, state by state: {area:.3f} against {best:.3f} ({area / best:.2f})"


def programs(results: Results) -> Iterator[str]:
    """Other programs that ended nearer to the truth, or came as near sooner; or that none did."""
    rows = [row for row in results.rows("peers") if row["snapshots"]]
    ours = [row for row in rows if row["program"] == OURS]
    others = [row for row in rows if row["program"] != OURS]
    if not ours or not others:
        return
    wins = [text for other in others for text in wins_over(other, _on_the_same_images(other, ours))]
    names = ", ".join(dict.fromkeys(f"{row['program']} ({row['settings']})" for row in others))
    yield f"Of the other programs on the same images ({names}):"
    yield "\n".join(f"- {text}" for text in wins or ["none ended nearer to the truth, or came as near sooner."])


def _on_the_same_images(other: Row, ours: list[Row]) -> list[Row]:
    return [row for row in ours if (row["particles"], row["seed"]) == (other["particles"], other["seed"])]


def wins_over(other: Row, ours: list[Row]) -> Iterator[str]:
    """What another program did better than every run of ours on the same images; nothing where we have none."""
    if not ours:
        return
    last, best = error(other["snapshots"][-1]), min(error(row["snapshots"][-1]) for row in ours)
    name = f"{other['program']}, {other['settings']}"
    if last < best:
        yield f"{name}: poses end at {last:.2f}°, ours at {best:.2f}°."
    first = other["snapshots"][0]
    for one in other["snapshots"]:
        reached = [found["elapsed_s"] for row in ours for found in row["snapshots"] if error(found) <= error(one)]
        if error(one) < error(first) / 2 and (not reached or one["elapsed_s"] < min(reached)):
            when = f"{min(reached):.0f} s" if reached else "never"
            yield f"{name}: {error(one):.2f}° after {one['elapsed_s']:.0f} s, ours {when}."
            return


def error(snapshot: Row) -> float:
    """Median error of viewing directions in degrees."""
    return float(snapshot[VIEWING.key])
