"""A path along the ridge of density through latent space: the order of shapes in a continuous motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

NODES = 48
"""Nodes of the curve while it is fitted."""


@dataclass(frozen=True)
class RidgePath:
    """A curve through latent space and where each particle lies along it.

    Attributes
    ----------
    points : array (point, component)
        Ordered, evenly spaced along the curve; a closed curve does not repeat its first point.
    positions : array (particle,)
        Nearest place on the curve, as a fraction of its length, 0 … 1.
    is_closed : bool
        Whether the motion comes back to where it began.
    length : float
        Of the curve, in units of the latent coordinates.
    curve : array (node, component)
        The same curve with more nodes; give it to `project_on_curve` to place other particles.
    """

    points: Float[np.ndarray, "point component"]
    positions: Float[np.ndarray, " particle"]
    is_closed: bool
    length: float
    curve: Float[np.ndarray, "node component"]


def ridge_path(
    latents: Float[np.ndarray, "particle component"], points: int = 10, *, sample: int = 3000, seed: int = 0
) -> RidgePath:
    """Path of `points` ordered points along the densest part of a cloud, from one end to the other or all around.

    The longest of the shortest paths through a neighbour graph of dense particles starts the curve; where a second way
    round leads back, the curve is closed. It is then fitted as a principal curve (Hastie and Stuetzle 1989): every node
    becomes the local linear fit of the particles that project near it.

    Parameters
    ----------
    latents : array (particle, component)
        Finite coordinates, scaled so that noise is alike along all of them (divide by posterior deviations).
    points : int
        How many points to return, at least 2.
    sample : int
        Most particles the curve is fitted to; all are then placed on it.
    seed : int
        Of the sampling.
    """
    chosen = latents[np.sort(np.random.default_rng(seed).permutation(len(latents))[:sample])]
    dense = _densest(chosen, 0.85)
    curve, is_closed = _initial_curve(dense)
    curve = resample_curve(curve, NODES, is_closed)
    for width in np.geomspace(0.14, 0.045, 12):
        curve = _fit_nodes(curve, dense, float(width), is_closed)
    positions, _ = project_on_curve(latents, curve, is_closed)
    if not is_closed:
        curve = _cut(curve, *(float(one) for one in np.quantile(positions, [0.03, 0.97])))
        positions, _ = project_on_curve(latents, curve, is_closed)
    length = float(_segment_lengths(curve, is_closed).sum())
    return RidgePath(resample_curve(curve, points, is_closed), positions, is_closed, length, curve)


def _densest(points: Float[np.ndarray, "particle component"], share: float) -> Float[np.ndarray, "particle component"]:
    """Return the share of points with the nearest neighbours."""
    neighbours = min(len(points) - 1, max(8, len(points) // 60))
    distance = cKDTree(points).query(points, k=[neighbours + 1])[0][:, 0]
    return points[distance <= np.quantile(distance, share)]


def _initial_curve(
    points: Float[np.ndarray, "particle component"],
) -> tuple[Float[np.ndarray, "node component"], bool]:
    """Longest shortest path through the neighbour graph, closed where a second way round exists."""
    graph = neighbour_graph(points, 12)
    _, piece = connected_components(graph, directed=False)
    body = np.flatnonzero(piece == np.argmax(np.bincount(piece)))
    far = body[_farthest(graph, int(body[0]), body)]
    away, previous = dijkstra(graph, directed=False, indices=int(far), return_predecessors=True)
    end = int(body[np.argmax(np.where(np.isfinite(away[body]), away[body], -1.0))])
    first = walk_back(previous, int(far), end)
    second = _second_way(graph, points, first)
    if second is None:
        return points[first], False
    return points[[*first, *second[::-1][1:-1]]], True


def neighbour_graph(points: Float[np.ndarray, "particle component"], neighbours: int) -> csr_matrix:
    """Graph of nearest neighbours; its lengths are squared, so that many short steps are shorter than one across a gap.

    Parameters
    ----------
    points : array (particle, component)
        At least two points.
    neighbours : int
        Each point is joined to.
    """
    count = min(neighbours, len(points) - 1)
    distance, index = cKDTree(points).query(points, k=count + 1)
    rows = np.repeat(np.arange(len(points)), count)
    lengths = distance[:, 1:].ravel() ** 2 + 1e-12
    return csr_matrix((lengths, (rows, index[:, 1:].ravel())), shape=(len(points), len(points)))


def _farthest(graph: csr_matrix, start: int, body: Int[np.ndarray, " node"]) -> int:
    """Position in `body` of the node farthest from a start."""
    away = dijkstra(graph, directed=False, indices=start)[body]
    return int(np.argmax(np.where(np.isfinite(away), away, -1.0)))


def walk_back(previous: Int[np.ndarray, " node"], start: int, end: int) -> list[int]:
    """Nodes from start to end, from the table of predecessors that `dijkstra` returns.

    Parameters
    ----------
    previous : array (node,)
        Negative where there is none.
    start, end : int
        Nodes.
    """
    path = [end]
    while path[-1] != start and previous[path[-1]] >= 0:
        path.append(int(previous[path[-1]]))
    return path[::-1]


def _second_way(
    graph: csr_matrix, points: Float[np.ndarray, "particle component"], first: list[int]
) -> list[int] | None:
    """Another way between the ends of a path that stays clear of its middle; None where there is none."""
    middle = points[first[len(first) // 5 : -(len(first) // 5) or None]]
    span = float(np.linalg.norm(points[first].max(axis=0) - points[first].min(axis=0)))
    near = cKDTree(middle).query(points)[0] < 0.2 * span
    near[[first[0], first[-1]]] = False
    keep = np.flatnonzero(~near)
    place = {int(node): index for index, node in enumerate(keep)}
    part = graph[keep][:, keep]
    away, previous = dijkstra(part, directed=False, indices=place[first[0]], return_predecessors=True)
    if not np.isfinite(away[place[first[-1]]]):
        return None
    way = [int(keep[node]) for node in walk_back(previous, place[first[0]], place[first[-1]])]
    return way if _is_round(points[first], points[way], span) else None


def _is_round(
    first: Float[np.ndarray, "node component"], second: Float[np.ndarray, "node component"], span: float
) -> bool:
    """Whether two ways between the same ends enclose a hole: the second keeps away from the first in its middle."""
    inner = second[len(second) // 4 : -(len(second) // 4) or None]
    if len(inner) == 0:
        return False
    return bool(np.median(cKDTree(first).query(inner)[0]) > 0.35 * span)


def _segment_lengths(curve: Float[np.ndarray, "node component"], is_closed: bool) -> Float[np.ndarray, " segment"]:
    ends = np.roll(curve, -1, axis=0) if is_closed else curve[1:]
    return np.asarray(np.linalg.norm(ends - curve[: len(ends)], axis=1))


def resample_curve(
    curve: Float[np.ndarray, "node component"], count: int, is_closed: bool
) -> Float[np.ndarray, "node component"]:
    """Evenly spaced points along a polyline.

    Parameters
    ----------
    curve : array (node, component)
        Ordered nodes.
    count : int
        Number of points; those of an open curve include both ends.
    is_closed : bool
        Whether the last node is joined to the first.
    """
    whole = np.concatenate([curve, curve[:1]]) if is_closed else curve
    place = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(whole, axis=0), axis=1))])
    wanted = np.linspace(0.0, place[-1], count + 1)[:-1] if is_closed else np.linspace(0.0, place[-1], count)
    return np.stack([np.interp(wanted, place, column) for column in whole.T], axis=1)


def project_on_curve(
    points: Float[np.ndarray, "particle component"], curve: Float[np.ndarray, "node component"], is_closed: bool
) -> tuple[Float[np.ndarray, " particle"], Float[np.ndarray, " particle"]]:
    """Nearest place of every point on a polyline, as a fraction of its length, and the distance to it.

    Parameters
    ----------
    points : array (particle, component)
        Any points.
    curve : array (node, component)
        At least two nodes.
    is_closed : bool
        Whether the last node is joined to the first.
    """
    starts = curve if is_closed else curve[:-1]
    steps = (np.roll(curve, -1, axis=0) if is_closed else curve[1:]) - starts
    lengths = np.linalg.norm(steps, axis=1)
    before = np.concatenate([[0.0], np.cumsum(lengths)])
    best, place = np.full(len(points), np.inf), np.zeros(len(points))
    for index in range(len(starts)):
        relative = points - starts[index]
        share = np.clip(relative @ steps[index] / max(lengths[index] ** 2, 1e-300), 0.0, 1.0)
        distance = np.linalg.norm(relative - share[:, None] * steps[index], axis=1)
        nearer = distance < best
        best[nearer] = distance[nearer]
        place[nearer] = (before[index] + share * lengths[index])[nearer]
    return place / max(float(before[-1]), 1e-300), best


def _fit_nodes(
    curve: Float[np.ndarray, "node component"],
    points: Float[np.ndarray, "particle component"],
    width: float,
    is_closed: bool,
) -> Float[np.ndarray, "node component"]:
    """One step of the principal curve: each node moves to the local linear fit of the particles projected near it."""
    positions, _ = project_on_curve(points, curve, is_closed)
    count = len(curve)
    nodes = np.arange(count) / count if is_closed else np.linspace(0.0, 1.0, count)
    away = positions[None, :] - nodes[:, None]
    if is_closed:
        away -= np.round(away)
    weight = np.exp(-0.5 * (away / width) ** 2) + 1e-300
    total, first, second = (np.sum(weight * away**power, axis=1) for power in (0, 1, 2))
    linear = weight * (second[:, None] - away * first[:, None])
    scale = np.maximum(total * second - first**2, 1e-12 * total**2)
    moved = (linear / scale[:, None]) @ points
    return resample_curve(np.asarray(moved), count, is_closed)


def _cut(curve: Float[np.ndarray, "node component"], low: float, high: float) -> Float[np.ndarray, "node component"]:
    """Part of an open curve between two fractions of its length."""
    fine = resample_curve(curve, 20 * len(curve), is_closed=False)
    place = np.linspace(0.0, 1.0, len(fine))
    kept: Bool[np.ndarray, " node"] = (place >= low) & (place <= high)
    return resample_curve(fine[kept], len(curve), is_closed=False) if kept.sum() > 1 else curve
