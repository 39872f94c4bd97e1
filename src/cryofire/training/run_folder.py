"""The folder of a run: settings, hashes of the input, log, metrics, checkpoints, results."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryofire.config import Settings
from cryofire.data.particles import CryosparcSource, ParticleTable
from cryofire.errors import RunFolderError, SettingError
from cryofire.formats.atomic import replacing
from cryofire.settings_by_name import settings_from_dict
from cryofire.version import __version__

_HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class RunFolder:
    """Paths and small files of one run.

    Attributes
    ----------
    path : Path
    turn : int
        1 when stages run for the first time; those of a later turn have checkpoints of their own.
    group : tuple of int
        Which part of the particles, and of that which part, stages look at; of each they leave checkpoints of its own.
    """

    path: Path
    turn: int = 1
    group: tuple[int, ...] = ()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def cache(self) -> Path:
        """The coefficient cache."""
        return self.path / "cache" / "coefficients.npy"

    @property
    def states(self) -> Path:
        """Folder of the state maps."""
        return self.path / "states"

    def checkpoint(self, stage: str) -> Path:
        """Checkpoint of a stage in this turn."""
        name = ".".join([*map(str, self.group), stage])
        return self.checkpoints / (f"{name}.safetensors" if self.turn == 1 else f"{name}_{self.turn}.safetensors")

    def within(self, number: int) -> RunFolder:
        """The same folder for a part of the particles that stages look at by itself."""
        return replace(self, group=(*self.group, number))

    def last_checkpoint(self, stage: str) -> Path:
        """Checkpoint of a stage in the last turn that left one; of the first where none did."""
        turn = replace(self, turn=1)
        while (following := replace(turn, turn=turn.turn + 1)).checkpoint(stage).exists():
            turn = following
        return turn.checkpoint(stage)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a small JSON file, whole or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a small JSON file of this folder.

        Raises
        ------
        RunFolderError
            It is missing or damaged.
        """
        try:
            values = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"the run folder has no readable {name}", file=self.path, hint="name a folder that cryofire wrote"
            ) from error
        return dict(values)

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; that of a group of particles names it."""
        group = {"group": list(self.group)} if self.group else {}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**values, **group}) + "\n")


def open_run_folder(path: Path, table: ParticleTable, settings: Settings) -> RunFolder:
    """Start a run folder, or take up the run that it holds.

    Raises
    ------
    RunFolderError
        The folder belongs to other data or other settings, or holds files that are not a run's.
    """
    folder = RunFolder(path)
    inputs = input_digest(table)
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / "inputs.json").exists())):
        raise RunFolderError("this is not a run folder, and not empty", file=path, hint="name a new folder with -o")
    if (path / "inputs.json").exists():
        _check_same(folder, inputs, settings)
    try:
        for part in (path, folder.checkpoints, folder.cache.parent, folder.states):
            part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"the run folder cannot be made: {error.strerror}", file=path) from error
    folder.write_json("inputs.json", inputs)
    folder.write_json("settings.json", {"version": __version__, **settings.to_dict()})
    return folder


def _check_same(folder: RunFolder, inputs: Mapping[str, Any], settings: Settings) -> None:
    hint = "name a new folder with -o, or delete this one to start again"
    if folder.read_json("inputs.json")["digest"] != inputs["digest"]:
        raise RunFolderError("this run folder belongs to other data", file=folder.path, hint=hint)
    earlier = folder.read_json("settings.json")
    version = earlier.pop("version", "")
    try:
        known = settings_from_dict(earlier)
    except SettingError as error:
        raise RunFolderError(
            f"this run folder was started by cryofire {version} with a setting that this version does not have",
            file=folder.path,
            field=error.field,
            hint=f"continue with the version that started it; or {hint}",
        ) from error
    if _used_so_far(folder, known) != _used_so_far(folder, settings):
        raise RunFolderError("this run folder was started with other settings", file=folder.path, hint=hint)


def _used_so_far(folder: RunFolder, settings: Settings) -> Settings:
    """The settings that what lies in the folder depends on: those of later stages may still be changed after `prepare`."""
    if {path.stem for path in folder.checkpoints.glob("*.safetensors")} <= {"prepare"}:
        return Settings(seed=settings.seed, prepare=settings.prepare)
    return settings


def input_digest(table: ParticleTable) -> dict[str, Any]:
    """SHA-256 of the particle table's files and of size and first megabyte of every stack, alone and together."""
    joined = table.source.passthrough if isinstance(table.source, CryosparcSource) else ()
    tables = (table.path, *joined)
    files = {str(path): _digest(path, whole=path in tables) for path in (*tables, *table.stack_paths)}
    together = hashlib.sha256("".join(sorted(files.values())).encode()).hexdigest()
    named = {"table": str(table.path.resolve()), "passthrough": [str(path.resolve()) for path in joined]}
    return {**named, "particles": len(table), "files": files, "digest": together}


def _digest(path: Path, whole: bool) -> str:
    with path.open("rb") as file:
        content = file.read(-1 if whole else _HASHED_BYTES)
        size = os.fstat(file.fileno()).st_size
    return hashlib.sha256(content + str(size).encode()).hexdigest()


def start_log(folder: RunFolder) -> logging.Logger:
    """The run's logger, writing to run.log."""
    logger = logging.getLogger(f"cryofire.run.{folder.path.resolve()}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.FileHandler(folder.path / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger
