"""Settings by name: changed by users' assignments, and read back from plain values.

Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cryofire.config import RECIPES, Settings
from cryofire.errors import SettingError


def changed(settings: Settings, assignments: Iterable[str]) -> Settings:
    """Settings after assignments such as ``search.steps=60``.

    Raises
    ------
    SettingError
        A name is unknown (the nearest ones are offered), or a value is of another kind.
    """
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise SettingError(f"'{assignment}' is not of the form name=value", hint="for example search.steps=60")
        settings = _assigned(settings, name.strip().split("."), _parsed(text.strip()), name.strip())
    return settings


def settings_from_dict(values: Mapping[str, Any]) -> Settings:
    """Settings from nested plain values; what is not named keeps its default.

    Raises
    ------
    SettingError
        A name is unknown or a value is of another kind.
    """
    return typing.cast(Settings, _filled(Settings(), values, ""))


def read_settings(path: Path) -> Settings:
    """Settings from a JSON file, such as the ``settings.json`` of an earlier run.

    Raises
    ------
    SettingError
        The file cannot be read, or what it says is unknown or impossible.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"the settings cannot be read: {error}", file=path, hint="name a JSON file") from error
    if not isinstance(values, dict):
        raise SettingError("the settings are not a JSON object", file=path)
    return settings_from_dict({name: value for name, value in values.items() if name != "version"})


def check_recipe(name: str) -> None:
    """Do nothing for the name of a recipe.

    Raises
    ------
    SettingError
        There is no recipe of that name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        offered = near[0] if near else " or ".join(RECIPES)
        raise SettingError(f"there is no recipe '{name}'", field="recipe", hint=f"did you mean {offered}?")


def _filled(settings: Any, values: Mapping[str, Any], prefix: str) -> Any:
    for name, value in values.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping) and name in {item.name for item in fields(settings)}:
            settings = dataclasses.replace(settings, **{name: _filled(getattr(settings, name), value, f"{full}.")})
        else:
            settings = _assigned(settings, [name], value, full)
    return settings


def _assigned(settings: Any, path: list[str], value: Any, full: str) -> Any:
    known = {item.name for item in fields(settings)}
    if path[0] not in known:
        near = difflib.get_close_matches(path[0], known, n=3)
        offered = " or ".join(near) if near else ", ".join(sorted(known))
        raise SettingError("there is no such setting", field=full, hint=f"did you mean {offered}?")
    current = getattr(settings, path[0])
    if is_dataclass(current) != (len(path) > 1):
        raise SettingError("this names a group of settings, or one that is not a group", field=full, hint="see --help")
    if len(path) > 1:
        return dataclasses.replace(settings, **{path[0]: _assigned(current, path[1:], value, full)})
    return dataclasses.replace(settings, **{path[0]: _checked(type(settings), path[0], value, full)})


def _checked(owner: type, name: str, value: Any, full: str) -> Any:
    annotation = typing.get_type_hints(owner)[name]
    allowed = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        wanted = " or ".join("empty" if kind is type(None) else kind.__name__ for kind in allowed)
        raise SettingError(f"{value!r} is not of kind {wanted}", field=full)
    if isinstance(value, int | float) and value < 0:
        raise SettingError(f"{value!r} is negative", field=full)
    if owner is Settings and name == "recipe":
        check_recipe(value)
    return value


def _parsed(text: str) -> Any:
    if text.lower() in {"none", "null", ""}:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
