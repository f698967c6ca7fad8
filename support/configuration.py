"""Strict configuration: a YAML file becomes a frozen dataclass, or one line says which key is wrong.

    @dataclass(frozen=True, kw_only=True)
    class TrainingConfig:
        batch_size: int = positive()                         # samples per optimizer step, over all ranks
        learning_rate: float = positive()
        dropout: float = bounded(at_least=0, below=1)
        precision: Literal["auto", "float32", "bfloat16"]
        clip_norm: float | None = positive()                 # null: no clipping

    config = load_config(Path("mae_config.yaml"), TrainingConfig)

The class is the schema.  A key that is unknown, missing, twice there, of the wrong type or out of range is a
`UsageError` that names file, line, key, what was expected and what was got.  A field whose class is itself a
dataclass is a nested section.  What one field cannot see alone (sizes that must divide) goes into the class's
`__post_init__`, as a ValueError.

Every field must be there, also one whose class knows a default: a file says all of what it does.
A field is an int, float, bool, str, Literal[...], tuple[X, ...], list[X] or dataclass, or `X | None`.
"""

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from support.errors import UsageError

T = TypeVar("T")

LARGEST_FILE = 1 << 16  # bytes; PyYAML reads about 100 kB a second, and a configuration is a page or two
DEEPEST = 20  # sections within sections
LARGEST_INTEGER = (1 << 63) - 1  # what a tensor, a seed and a generator hold


# --- limits of a field ---


def bounded(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field (or, for a tuple, each of its items) that must lie within these limits."""
    given = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    return dataclasses.field(metadata={key: limit for key, limit in given.items() if limit is not None})


def positive() -> Any:
    """A dataclass field that must be greater than 0."""
    return bounded(above=0)


def at_least(limit: float) -> Any:
    """A dataclass field that must not be less than `limit`."""
    return bounded(at_least=limit)


_LIMITS = {  # name in `bounded`: (wording, test)
    "above": ("above", lambda value, limit: value > limit),
    "at_least": ("of at least", lambda value, limit: value >= limit),
    "below": ("below", lambda value, limit: value < limit),
    "at_most": ("of at most", lambda value, limit: value <= limit),
}


# --- the public functions ---


def load_config(path: Path | str, config_class: type[T]) -> T:
    """Reads one YAML file into `config_class`.

    Raises:
        UsageError: the file cannot be read, is not YAML, or does not fit the class; one line says why.
    """
    mapping, lines = _read_yaml(Path(path))
    return _section(mapping, config_class, _Where(str(path), lines))


def config_from_dict(mapping: Any, config_class: type[T], source: str) -> T:
    """The same checks for values that come from elsewhere; `source` ("checkpoint3.pt") opens the message."""
    return _section(mapping, config_class, _Where(source, {}))


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts of plain values: fit for a checkpoint, and for `config_from_dict`."""
    return dataclasses.asdict(config)


# --- plain values into a dataclass ---


@dataclass(frozen=True)
class _Where:
    """A place in a configuration, for messages: the file, the dotted key, its line (or its section's)."""

    source: str
    lines: Mapping[str, int]
    key: str = ""
    line: int | None = None

    def inside(self, name: str) -> "_Where":
        key = f"{self.key}.{name}" if self.key else name
        return _Where(self.source, self.lines, key, self.lines.get(key, self.line))

    def error(self, message: str) -> UsageError:
        line = f", line {self.line}" if self.line else ""
        key = f"{self.key}: " if self.key else ""
        return UsageError(f"{self.source}{line}: {key}{message}")


def _section(mapping: Any, config_class: type[T], where: _Where) -> T:
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    if not isinstance(mapping, Mapping):
        raise where.error(f"expected a section with the keys {', '.join(fields)}; got {_shown(mapping)}")

    kinds = get_type_hints(config_class)
    missing = [name for name in fields if name not in mapping]
    for key in mapping:
        if key not in fields:
            name = _printable(key) if isinstance(key, str) else type(key).__name__
            spelt = name.lower()
            likely = get_close_matches(spelt, missing, 1) or get_close_matches(spelt, fields, 1)
            advice = f"did you mean {likely[0]}?" if likely else f"known here: {', '.join(fields)}"
            raise where.inside(name).error(f"unknown key; {advice}")
    for name in missing:
        expected = _expected(kinds[name], fields[name].metadata)
        raise where.inside(name).error(f"this key is missing; expected {expected}")

    values = {
        name: _value(value, kinds[name], fields[name].metadata, where.inside(name))
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


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2's plain scalars.  PyYAML's own (1.1) read 1e-4 as text, 017 as 15, 1:30 as 90 and no as False.

    Anchors, aliases and tags are refused: a configuration needs none, and aliases can multiply without bound.
    """

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own name and form)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        problem = "it is nested too deeply" if self.depth >= DEEPEST else None
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            problem = "anchors (&), aliases (*) and tags (!) are not allowed"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# What looks like a number and is none of these (017, 0x1f, 1_000, more than 18 digits) stays text, which no
# numeric field accepts.  The look-ahead in a float asks for a digit: "." and "e5" are none.
_SCALARS = {
    "int": (r"[-+]?(0|[1-9][0-9]{0,17})", int),
    "float": (r"[-+]?(?=\.?[0-9])(0|[1-9][0-9]*)?(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", float),
    "special": (r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", lambda text: float(text.replace(".", ""))),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "null": (r"null|Null|NULL|~|", lambda text: None),
}
for _name, (_pattern, _) in _SCALARS.items():
    _StrictLoader.add_implicit_resolver(_name, re.compile(rf"(?:{_pattern})\Z"), None)


def _read_yaml(path: Path) -> tuple[Any, dict[str, int]]:
    """The values of a YAML file, and the line on which each dotted key stands."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot read this configuration: {reason}") from error
    if len(data) > LARGEST_FILE:
        raise UsageError(f"{path}: more than {LARGEST_FILE} bytes, which no configuration needs")

    lines: dict[str, int] = {}
    try:
        root = yaml.compose(data.decode(), _StrictLoader)
        return (None if root is None else _plain(root, _Where(str(path), lines), lines)), lines
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: \U escapes, %YAML versions
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{path}{line}: not valid YAML: {reason[:200]}") from error


def _plain(node: yaml.Node, where: _Where, lines: dict[str, int]) -> Any:
    """The plain value of a node; notes the line of every key, and refuses a key that is twice there."""
    if isinstance(node, yaml.ScalarNode):
        convert = _SCALARS[node.tag][1] if node.tag in _SCALARS else str
        return convert(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, where.inside(str(number)), lines) for number, item in enumerate(node.value)]

    mapping: dict[str, Any] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "(a key that is a list or a section)"
        line = key.start_mark.line + 1
        if name in mapping:
            first = lines[where.inside(name).key]
            raise UsageError(
                f"{where.source}, line {line}: {_printable(where.inside(name).key)}: "
                f"this key is twice there; first on line {first}"
            )
        lines[where.inside(name).key] = line
        mapping[name] = _plain(value, where.inside(name), lines)
    return mapping
