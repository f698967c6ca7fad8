"""Strict configuration: YAML becomes a frozen dataclass, or one line names the file, the line and the key.

    @dataclass(frozen=True, kw_only=True)
    class TrainingConfig:
        batch_size: int = positive()                         # samples per optimizer step, over all ranks
        learning_rate: float = positive()
        dropout: float = bounded(at_least=0, below=1)
        precision: Literal["auto", "float32", "bfloat16"]
        clip_norm: float | None = positive()                 # null: no clipping

    config = load_config(Path("recipes/modern/mae_config.yaml"), TrainingConfig, ["learning_rate=3e-4"])

The class is the schema.  A key that is unknown, missing, twice there, of the wrong type or out of range is a
`UsageError`.  A field whose class is itself a dataclass is a nested section.  What one field cannot see alone
(sizes that must divide) goes into the class's `__post_init__`, as a ValueError.

A file whose key `base` names another lists only what it changes; sections are merged key by key.  Every key
must be in the result, even where the class has a default, so that no value is hidden in the code.

A field is an int, float, bool, str, Literal[...], tuple[X, ...], list[X] or dataclass, or `X | None`.
"""

import dataclasses
import math
import operator
import os
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from support.errors import UsageError

T = TypeVar("T")

LARGEST_FILE = 1 << 16  # bytes; PyYAML reads about 100 kB a second, and a configuration is a page or two
LARGEST_INTEGER = (1 << 63) - 1  # what a tensor, a seed and a generator hold


# --- limits of a field ---


_LIMITS = {  # name in `bounded`: (wording, test)
    "above": ("above", operator.gt),
    "at_least": ("of at least", operator.ge),
    "below": ("below", operator.lt),
    "at_most": ("of at most", operator.le),
}


def bounded(**limits: float) -> Any:
    """A dataclass field (or, for a tuple, each of its items) with limits: above, at_least, below, at_most."""
    assert limits.keys() <= _LIMITS.keys()
    return dataclasses.field(metadata=limits)


def positive() -> Any:
    """A dataclass field that must be greater than 0."""
    return bounded(above=0)


def at_least(limit: float) -> Any:
    """A dataclass field that must not be less than `limit`."""
    return bounded(at_least=limit)


# --- the public functions ---


def load_config(path: Path | str, config_class: type[T], changes: Sequence[str] = ()) -> T:
    """Reads a YAML file and those that it is based on into `config_class`.

    Args:
        path: the file.
        config_class: what it must fit.
        changes: values that replace the file's, as `--set` takes them: "learning_rate=3e-4",
            "encoder.num_layers=6".

    Raises:
        UsageError: a file cannot be read, is not YAML, or does not fit the class; one line says why.
    """
    return config_from_dict(_read_file(Path(path)), config_class, str(path), changes)


def config_from_dict(mapping: Any, config_class: type[T], source: str, changes: Sequence[str] = ()) -> T:
    """The same checks for values that come from elsewhere; `source` ("checkpoint3.pt") opens the message."""
    for change in changes:
        mapping = _merge(mapping, _parse_change(change))
    if changes:
        source = f"{source} with {' '.join(f'--set {_printable(change)}' for change in changes)}"
    return _section(mapping, config_class, _Where(source))


def sets(change: str, key: str) -> bool:
    """Whether "encoder.num_layers=6" sets this dotted key, or the section that it is in."""
    return f"{key}.".startswith(f"{change.partition('=')[0].strip()}.")


def config_part(mapping: Mapping[str, Any], config_class: type[T], source: str) -> T:
    """The keys of a larger configuration that `config_class` has, checked in the same way."""
    names = {field.name for field in dataclasses.fields(config_class)}
    part = {key: value for key, value in mapping.items() if key in names}
    return config_from_dict(part, config_class, source)


def config_to_dict(config: Any, part: type | None = None) -> dict[str, Any]:
    """A configuration as nested dicts of plain values: fit for a checkpoint, and for `config_from_dict`.

    Args:
        config: a dataclass.
        part: a class that it inherits, where only its fields are wanted.
    """
    values = dataclasses.asdict(config)
    return {field.name: values[field.name] for field in dataclasses.fields(part or config)}


# --- plain values into a dataclass ---


class _Section(dict):
    """A mapping that knows where each of its keys was read: "mae_config.yaml, line 3", say."""

    def __init__(self, values: Mapping[str, Any], places: Mapping[str, str]) -> None:
        super().__init__(values)
        self.places = dict(places)


@dataclass(frozen=True)
class _Where:
    """What a message is about: the place it was read at, and the dotted key."""

    place: str
    key: str = ""

    def inside(self, name: str, section: Any = None) -> "_Where":
        place, name = getattr(section, "places", {}).get(name, self.place), _printable(name)
        return _Where(place, f"{self.key}.{name}" if self.key else name)

    def error(self, message: str) -> UsageError:
        said = not self.key or self.place.startswith(f"--set {self.key}=")
        return UsageError(f"{self.place}: {message}" if said else f"{self.place}: {self.key}: {message}")


def _section(mapping: Any, config_class: type[T], where: _Where) -> T:
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    if not isinstance(mapping, Mapping):
        raise where.error(f"expected a section with the keys {', '.join(fields)}; got {_shown(mapping)}")

    kinds = get_type_hints(config_class)
    missing = [name for name in fields if name not in mapping]
    for key in mapping:
        if key not in fields:
            name = key if isinstance(key, str) else type(key).__name__
            spelt = name.lower()
            likely = get_close_matches(spelt, missing, 1) or get_close_matches(spelt, fields, 1)
            advice = f"did you mean {likely[0]}?" if likely else f"known here: {', '.join(fields)}"
            raise where.inside(name, mapping).error(f"unknown key; {advice}")
    for name in missing:
        expected = _expected(kinds[name], fields[name].metadata)
        raise where.inside(name).error(f"this key is missing; expected {expected}")

    values = {
        name: _value(value, kinds[name], fields[name].metadata, where.inside(name, mapping))
        for name, value in mapping.items()
    }
    try:
        return config_class(**values)
    except ValueError as error:  # from __post_init__
        raise where.error(str(error)) from error


def _value(value: Any, kind: Any, limits: Mapping[str, float], where: _Where) -> Any:
    """`value` as the annotation `kind` wants it, or a UsageError."""
    expected = _expected(kind, limits)
    if get_origin(kind) in (Union, types.UnionType):  # X | None
        if value is None:
            return None
        kind = _without_none(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _section(value, kind, where)
    if origin is Literal and any(type(value) is type(choice) and value == choice for choice in arguments):
        return value
    if origin in (tuple, list) and isinstance(value, list | tuple):
        return origin(
            _value(item, arguments[0], limits, where.inside(str(number))) for number, item in enumerate(value)
        )

    if kind is float and type(value) is int and _fits(value):
        value = float(value)
    if _is_a(value, kind) and all(_LIMITS[name][1](value, limit) for name, limit in limits.items()):
        return value
    raise where.error(f"expected {expected}; got {_shown(value)}")


def _is_a(value: Any, kind: type) -> bool:
    """True for a value of exactly this type (True is no integer), finite and of at most 64 bits."""
    if type(value) is not kind:
        return False
    return {int: _fits, float: math.isfinite}.get(kind, lambda value: True)(value)


def _fits(value: int) -> bool:
    return abs(value) <= LARGEST_INTEGER


def _expected(kind: Any, limits: Mapping[str, float]) -> str:
    """What a field wants, in words: "an integer above 0"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return f"a section with the keys {', '.join(field.name for field in dataclasses.fields(kind))}"
    if origin in (Union, types.UnionType):
        return f"{_expected(_without_none(kind), limits)}, or null"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (tuple, list):
        return f"a list, each item {_expected(arguments[0], limits)}"
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}[kind]
    within = " and ".join(f"{_LIMITS[name][0]} {limit}" for name, limit in limits.items())
    return f"{words} {within}".strip()


def _without_none(kind: Any) -> Any:
    return next(member for member in get_args(kind) if member is not type(None))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return f"'{_printable(value)}'"
    if isinstance(value, float) or (isinstance(value, int) and _fits(value)):
        return str(value)
    return f"something else ({type(value).__name__})"


def _printable(text: str) -> str:
    """On one line, and not a long one, whatever the file holds."""
    text = repr(text)[1:-1]
    return text if len(text) <= 60 else f"{text[:60]}..."


# --- YAML into plain values ---


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars.  PyYAML's own (1.1) read 1e-4 as text, 017 as 15, 1:30 as 90 and no as False.

    Anchors, aliases and tags are refused: a configuration needs none, and aliases can multiply without bound.
    """

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own name and form)

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            problem = "anchors (&), aliases (*) and tags (!) are not allowed"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


# What looks like a number and is none of these (017, 0x1f, 1_000, .inf, over 18 digits) stays text, which no
# numeric field accepts.  The look-ahead in a float asks for a digit: "." and "e5" are none.
for _tag, _pattern in {
    "int": r"[-+]?(0|[1-9][0-9]{0,17})",
    "float": r"[-+]?(?=\.?[0-9])(0|[1-9][0-9]*)?(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"null|Null|NULL|~|",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)


def _read_file(path: Path, derived: tuple[Path, ...] = ()) -> Any:
    """The values of a YAML file over those of its base; `derived` are the files based on this one."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        of = f", the base of {derived[-1]}" if derived else ""
        raise UsageError(f"{path}{of}: cannot read this configuration: {reason}") from error
    if len(data) > LARGEST_FILE:
        raise UsageError(f"{path}: more than {LARGEST_FILE} bytes, which no configuration needs")
    try:
        values = _parse(data.decode(), _Where(str(path)))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    if not isinstance(values, _Section) or "base" not in values:
        return values

    where, name = _Where(str(path)).inside("base", values), values.pop("base")
    if not isinstance(name, str):
        raise where.error(f"expected the path of a YAML file, from this file's folder; got {_shown(name)}")
    base, chain = Path(os.path.normpath(path.parent / name)), (*derived, path)
    if base in chain:
        circle = " -> ".join(map(str, (*chain[chain.index(base) :], base)))
        raise where.error(f"these files are based on each other: {circle}")
    below = _read_file(base, chain)
    if not isinstance(below, _Section):
        raise where.error(f"expected a file of keys and values; {base} holds {_shown(below)}")
    return _merge(below, values)


def _parse_change(change: str) -> _Section:
    """The sections that "encoder.num_layers=6" would be in a file."""
    key, _, text = (part.strip() for part in change.partition("="))
    place = f"--set {_printable(change)}"
    if not key or not text:
        raise UsageError(f"{place}: expected KEY=VALUE, such as learning_rate=3e-4 or encoder.num_layers=6")
    value = _parse(text, _Where(place, key))
    for name in reversed(key.split(".")):
        value = _Section({name: value}, {name: place})
    return value


def _merge(base: Any, changes: Any) -> Any:
    """`changes` over `base`: of two sections key by key, else what changes."""
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    values = {**base, **{name: _merge(base.get(name), value) for name, value in changes.items()}}
    return _Section(values, getattr(base, "places", {}) | getattr(changes, "places", {}))


def _parse(text: str, where: _Where) -> Any:
    """The plain values of a YAML text."""
    try:
        loader = _Loader(text)
        return _plain(loader.get_single_node(), loader, where, where.place)
    except RecursionError as error:
        raise UsageError(f"{where.place}: not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: \U escapes, %YAML versions
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{where.place}{line}: not valid YAML: {reason[:200]}") from error


def _plain(node: yaml.Node | None, loader: _Loader, where: _Where, source: str) -> Any:
    """The plain value of a node; notes the place of every key, and refuses a key that is twice there."""
    if not isinstance(node, yaml.MappingNode):
        return node and loader.construct_object(node, deep=True)
    section, lines = _Section({}, {}), {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "(a key that is a list or a section)"
        line = key.start_mark.line + 1
        section.places[name] = f"{source}, line {line}"
        inside = where.inside(name, section)
        if name in lines:
            raise inside.error(f"this key is twice there; first on line {lines[name]}")
        section[name], lines[name] = _plain(value, loader, inside, source), line
    return section
