"""Single settings: what is known about each, and how text and TOML become checked values.

    entry = Entry(float, default=1e-3, help="learning rate", above=0)
    parse("optim.lr", "0.01", entry)      # from a command line: 0.01
    check("optim.lr", "fast", entry)      # SettingError: optim.lr must be a number, got 'fast'

A setting's kind is `bool`, `int`, `float`, `str`, a `Literal` of words, a tuple of these, or a union with None.
"""

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinyseg.train.errors import SettingError

REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Entry:
    """What is known about one setting. The limits hold for a number, and for each number of a list."""

    kind: Any
    default: Any = REQUIRED
    help: str = ""
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None


def setting(default: Any, help: str, **limits: float) -> Any:
    """A field of a section: its default, its meaning, and the range of its number or numbers (see `Entry`)."""
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def of_section(section: type) -> dict[str, Entry]:
    """The settings of a dataclass whose fields are made with `setting`."""
    kinds = typing.get_type_hints(section)
    return {
        field.name: Entry(kinds[field.name], field.default, **field.metadata)
        for field in dataclasses.fields(section)
        if "help" in field.metadata
    }


def of_callable(function: Callable, *, without: Iterable[str] = ()) -> dict[str, Entry]:
    """The settings of a class or function: its arguments, of the kinds that they are annotated with."""
    bare = function.func if isinstance(function, functools.partial) else function
    hints = typing.get_type_hints(bare.__init__ if inspect.isclass(bare) else bare)
    return {
        name: Entry(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in without and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def unknown(key: str, known: Iterable[str], source: str = "") -> SettingError:
    """The error about a setting that does not exist: the nearest one that does, and its neighbours."""
    known = list(known)
    section, _, word = key.rpartition(".")
    neighbours = [other for other in known if other.rpartition(".")[0] == section]
    below = [other for other in known if other.startswith(key + ".")]
    same_word = [other for other in known if other.rpartition(".")[2] == word]
    candidates = below or same_word or neighbours or known
    nearest = max(candidates, key=lambda other: _likeness(word, other.rpartition(".")[2]))
    listing = ", ".join(other.rpartition(".")[2] for other in neighbours)
    rest = f" ({section} has {listing})" if neighbours and section else ""
    return SettingError(f"unknown setting {key}{in_source(source)}: did you mean {nearest}?{rest}")


def _likeness(word: str, other: str) -> float:
    """How alike two names are, 0..1. "lr" and "learning_rate" are: one is the initials of the other."""
    if other == _initials(word) or word == _initials(other):
        return 1.0
    return difflib.SequenceMatcher(None, word, other).ratio()


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.split("_"))


def parse(name: str, text: str, entry: Entry) -> Any:
    """The value of a setting written on a command line: `0.01`, `true`, `none`, `1, 2, 3`, or a word."""
    for candidate in _readings(text.strip()):
        if _accepts(entry.kind, candidate):
            return check(name, candidate, entry)
    return check(name, text.strip(), entry)  # raises


def check(name: str, value: Any, entry: Entry, source: str = "") -> Any:
    """The value, with lists made tuples and whole numbers made floats where the kind says so.

    TOML has no word for None; the text "none" stands for it where None is allowed. Raises `SettingError`, which
    names the setting, what it must be, and the value.
    """
    if value == "none" and _accepts(entry.kind, None):
        value = None
    if not _accepts(entry.kind, value):
        nearest = _nearest_choice(entry.kind, value)
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        raise SettingError(f"{name}{in_source(source)} must be {describe(entry.kind)}, got {value!r}{hint}")
    value = _convert(entry.kind, value)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_range(name, number, entry, source)
    return value


def describe(kind: Any) -> str:
    """A kind of setting in words."""
    if kind in _WORDS:
        return _WORDS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        *most, last = map(str, arguments)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"{len(arguments)} {_PLURAL.get(arguments[0], 'values')}" + (
            ", or one for both" if _is_pair(kind) else ""
        )
    if origin in _LISTS:
        return f"a list of {_PLURAL.get(arguments[0], 'values')}"
    return ", or ".join(describe(part) for part in arguments) or "a value"


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "none"}
_PLURAL = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}
_LISTS = (tuple, list, collections.abc.Sequence)
_UNIONS = (types.UnionType, typing.Union)


def _readings(text: str) -> list[Any]:
    """What a text may stand for, the narrowest reading first."""
    if text.lower() in ("none", "null"):
        return [None, text]
    readings: list[Any] = []
    for toml in (text.lower(), text, f"[{text}]", text.replace("(", "[").replace(")", "]")):
        try:
            table = tomllib.loads(f"value = {toml}")
        except tomllib.TOMLDecodeError:
            continue
        if set(table) == {"value"}:
            readings.append(table["value"])
    words = [word.strip() for word in text.strip("[]() ").split(",")]
    return [*readings, words, text] if len(words) > 1 else [*readings, text, words]


def _accepts(kind: Any, value: Any) -> bool:
    if kind is types.NoneType:
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple and arguments[-1] is not Ellipsis:
        if _is_pair(kind) and _accepts(int, value):
            return True
        return (
            isinstance(value, list | tuple)
            and len(value) == len(arguments)
            and all(map(_accepts, arguments, value))
        )
    if origin in _LISTS:
        return isinstance(value, list | tuple) and len(value) > 0 and all(_accepts(arguments[0], v) for v in value)
    if origin in _UNIONS:
        return any(_accepts(part, value) for part in arguments)
    return True  # a kind that only the function itself understands


def _is_pair(kind: Any) -> bool:
    """Height and width: one number may stand for both."""
    return kind == tuple[int, int]


def _convert(kind: Any, value: Any) -> Any:
    """An accepted value as the type that the kind names."""
    if kind is float:
        return float(value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return tuple(map(_convert, arguments, value)) if isinstance(value, list | tuple) else (value, value)
    if origin in _LISTS:
        return tuple(_convert(arguments[0], element) for element in value)
    if origin in _UNIONS:
        return _convert(next(part for part in arguments if _accepts(part, value)), value)
    return value


def _check_range(name: str, number: float, entry: Entry, source: str) -> None:
    bounds: Sequence[tuple[float | None, str, Callable[[float], bool]]] = [
        (entry.minimum, "at least", lambda limit: number >= limit),
        (entry.above, "more than", lambda limit: number > limit),
        (entry.maximum, "at most", lambda limit: number <= limit),
        (entry.below, "less than", lambda limit: number < limit),
    ]
    within = all(holds(limit) for limit, _, holds in bounds if limit is not None)
    if not math.isfinite(number) or not within:
        words = [f"{relation} {limit:g}" for limit, relation, _ in bounds if limit is not None]
        must = " and ".join(words) or "a finite number"
        raise SettingError(f"{name}{in_source(source)} must be {must}, got {number:g}")


def _nearest_choice(kind: Any, value: Any) -> str | None:
    """The word of a `Literal` that was probably meant."""
    parts = typing.get_args(kind) if typing.get_origin(kind) is not Literal else (kind,)
    words = [word for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part)]
    close = difflib.get_close_matches(value, words, n=1, cutoff=0.5) if isinstance(value, str) else []
    return close[0] if close else None


def in_source(source: str) -> str:
    """The place of a setting, for a message: " (in preset shapes)"."""
    return f" (in {source})" if source else ""
