"""Tables of plain data, as TOML gives them, into frozen dataclasses; and back into TOML.

Nothing is guessed: a key that is not known is refused with the nearest one that is, and so is a value
of another kind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from rtsmap.errors import OptionsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

T = TypeVar("T")

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def parse(text: str, where: str) -> dict[str, Any]:
    """TOML as plain data; raises OptionsError that says where it is none."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise OptionsError(f"{where} is not TOML: {exc}") from exc
    return data


def override(data: dict[str, Any], setting: str) -> None:
    """Put `key=value` into a table, the key dotted, the value as in TOML; a bare word is a text."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise OptionsError(f"--set {setting}: wanted key=value, for example stages.fused.steps=500")
    *path, last = key.strip().split(".")
    table = data
    for depth, name in enumerate(path):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise OptionsError(f"--set {setting}: '{'.'.join(path[: depth + 1])}' is a value, no table")
    table[last] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def read_table(kind: type[T], data: Any, where: str, prefix: str = "") -> T:
    """A dataclass from a table; `where` is the file and `prefix` the table's place in it, for errors."""
    if not isinstance(data, Mapping):
        raise OptionsError(f"{where}: '{prefix.rstrip('.')}' must be a table, got {data!r}")
    hints = get_type_hints(kind)
    known = fields(kind)  # type: ignore[arg-type]
    refuse_unknown(data, [field.name for field in known], where, prefix)
    for field in known:
        if field.name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise OptionsError(f"{where}: '{prefix}{field.name}' is missing")
    values = {key: _value(hints[key], value, where, prefix + key) for key, value in data.items()}
    return built(lambda: kind(**values), where, prefix)


def built(make: Callable[[], T], where: str, prefix: str) -> T:
    """What `make` makes; an OptionsError from there says where it happened."""
    try:
        return make()
    except OptionsError as exc:
        place = f"{where} [{prefix.rstrip('.')}]" if prefix else where
        raise OptionsError(f"{place}: {exc}") from exc


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str, prefix: str = "") -> None:
    """Raise OptionsError for the first key that is not among the known ones, with the nearest of them."""
    names = sorted(known)
    for key in keys:
        if key not in names:
            nearest = get_close_matches(key, names, n=1, cutoff=0.0)
            hint = f"; the nearest known one is '{prefix}{nearest[0]}'" if nearest else ""
            raise OptionsError(f"{where}: unknown key '{prefix}{key}'{hint}")


def _value(hint: Any, value: Any, where: str, key: str) -> Any:
    """`value` as the type hint wants it."""
    if is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return read_table(hint, value, where, f"{key}.")  # type: ignore[arg-type]
    inner = get_args(hint)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise OptionsError(f"{where}: '{key}' must be a list, got {value!r}")
        return tuple(_value(inner[0], item, where, key) for item in value)
    if inner:
        if not isinstance(value, Mapping):
            raise OptionsError(f"{where}: '{key}' must be a table, got {value!r}")
        return {name: _value(inner[1], item, where, f"{key}.{name}") for name, item in value.items()}
    # bool is an int in Python, but `steps = true` is a mistake
    fits = isinstance(value, (int, float) if hint is float else hint)
    if hint in _KINDS and (not fits or (isinstance(value, bool) and hint is not bool)):
        raise OptionsError(f"{where}: '{key}' must be {_KINDS[hint]}, got {value!r}")
    return float(value) if hint is float else value


def to_toml(data: Mapping[str, Any], place: tuple[str, ...] = ()) -> str:
    """Plain data as TOML, one `[table]` a mapping; `parse` gives the same data back."""
    plain = {key: value for key, value in data.items() if not isinstance(value, Mapping)}
    tables = {key: value for key, value in data.items() if isinstance(value, Mapping)}
    lines = [f"[{'.'.join(_key(name) for name in place)}]"] if place and (plain or not tables) else []
    lines += [f"{_key(key)} = {_text(value)}" for key, value in plain.items()]
    own = ["\n".join(lines) + "\n"] if lines else []
    return "\n".join([*own, *(to_toml(table, (*place, key)) for key, table in tables.items())])


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _text(name)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    # a JSON string is a TOML basic string, apart from DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Sentences 'key: is A here, was B there' for two tables that should be equal."""
    told: list[str] = []
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        here, there = mine.get(key), theirs.get(key)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            told += differences(here, there, f"{prefix}{key}.")
        elif here != there:
            told.append(f"{prefix}{key}: {_brief(here)} now, {_brief(there)} then")
    return told


def _brief(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
