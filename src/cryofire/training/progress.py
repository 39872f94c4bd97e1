"""Who listens to a run: progress of stages, and the cost of each."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from cryofire.training.run_folder import RunFolder


class Progress(Protocol):
    """Listener of a run; the command line draws bars from it, `SilentProgress` does nothing."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins; `total` units of work are expected."""

    def advance(self, units: int) -> None:
        """Some units are done."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def finish(self) -> None:
        """The stage is over."""


class SilentProgress:
    """A listener that ignores everything."""

    def start(self, stage: str, total: int) -> None:
        """Ignore."""

    def advance(self, units: int) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


@dataclass(frozen=True)
class StageCost:
    """What a stage cost: seconds, processor seconds, peak memory of the process so far, bytes read."""

    name: str
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    bytes_read: int


@contextmanager
def measured_stage(folder: RunFolder, name: str) -> Iterator[None]:
    """Add the cost of the block to the folder's ``stages.json``; a stage that was resumed adds up."""
    wall, cpu, read = time.perf_counter(), time.process_time(), _bytes_read()
    yield
    cost = StageCost(
        name,
        time.perf_counter() - wall,
        time.process_time() - cpu,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        _bytes_read() - read,
    )
    costs = joined_costs([stage_costs(folder), (cost,)])
    folder.write_json("stages.json", {"stages": [asdict(each) for each in costs]})


def joined_costs(lists: Iterable[Iterable[StageCost]]) -> tuple[StageCost, ...]:
    """Costs of each stage over all lists, in the order in which stages first appear."""
    found: dict[str, StageCost] = {}
    for cost in chain.from_iterable(lists):
        earlier = found.get(cost.name, StageCost(cost.name, 0.0, 0.0, 0, 0))
        found[cost.name] = StageCost(
            cost.name,
            earlier.wall_s + cost.wall_s,
            earlier.cpu_s + cost.cpu_s,
            max(earlier.peak_memory_bytes, cost.peak_memory_bytes),
            earlier.bytes_read + cost.bytes_read,
        )
    return tuple(found.values())


def stage_costs(folder: RunFolder) -> tuple[StageCost, ...]:
    """Costs recorded so far."""
    if not (folder.path / "stages.json").exists():
        return ()
    return tuple(StageCost(**each) for each in folder.read_json("stages.json")["stages"])


def _bytes_read() -> int:
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("rchar:")), 0)
