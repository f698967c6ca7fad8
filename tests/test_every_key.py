"""Every key of every configuration, wrong in every way: exit 2, and one line that names file, key and cure.

The cases are made from the fields of the classes, so that a new key is tried without a word here.
"""

import copy
import dataclasses
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

import train_captioner
import train_encoder
from support.configuration import config_to_dict, load_config
from tests.training_cases import ROOT, ended, write_config

STAGES = {
    "mae_config.yaml": (train_encoder.main, train_encoder.MaeConfig, []),
    "captioner_config.yaml": (train_captioner.main, train_captioner.CaptionerConfig, ["--from-scratch"]),
}
UNLIMITED = {"unfreeze_start_epoch"}  # of any size and sign
NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


class Key(NamedTuple):
    path: tuple[str, ...]  # ("encoder", "num_layers")
    kind: Any  # the annotation, without "or null"
    optional: bool
    limits: dict[str, float]

    @property
    def dotted(self) -> str:
        return ".".join(self.path)


def keys_of(config_class: type, above: tuple[str, ...] = ()) -> Iterator[Key]:
    """Every key, those of the sections inside as well."""
    kinds = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, optional = kinds[field.name], False
        if get_origin(kind) in (Union, types.UnionType):
            kind, optional = next(k for k in get_args(kind) if k is not type(None)), True
        yield Key((*above, field.name), kind, optional, dict(field.metadata))
        if dataclasses.is_dataclass(kind):
            yield from keys_of(kind, (*above, field.name))


def wrong_types(key: Key) -> list[Any]:
    everything = ["x", "", "3", "true", 1.5, True, None, [], [[1]], {}, {"a": 1}, 10**19]
    if key.kind is int:
        right = {int}
    elif key.kind is float:
        right = {int, float}
    elif key.kind is bool:
        right = {bool}
    elif get_origin(key.kind) in (tuple, list):
        inside = wrong_types(key._replace(kind=get_args(key.kind)[0], optional=False))
        return ["x", 5, None, {}, True, *([item, copy.deepcopy(item)] for item in inside)]
    else:
        right = set()  # a section or one of some words
    wrong = [value for value in everything if type(value) not in right or value == 10**19]
    return [value for value in wrong if not (value is None and key.optional)]


def out_of_range(key: Key) -> list[Any]:
    """Just outside each limit and far outside, and what is no number, where a number is wanted."""
    kind = get_args(key.kind)[0] if get_origin(key.kind) in (tuple, list) else key.kind
    if kind not in (int, float):
        return []
    step = 1 if kind is int else 1e-6
    limits = key.limits
    if len(key.path) > 1:  # a stack's class says its limits in words
        limits = {"at_least": 1} if kind is int else {"at_least": 0, "below": 1}
    values: list[Any] = [] if kind is int else list(NOT_FINITE)
    for name, limit in limits.items():
        away = -1 if name in ("above", "at_least") else 1
        values += [limit] if name in ("above", "below") else [limit + away * step]
        values += [limit + away * 1000]
    values = [kind(value) if value == value and abs(value) < 1e18 else value for value in values]
    return [[value, value] for value in values] if kind is not key.kind else values


def with_value(values: dict[str, Any], key: Key, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(values)
    section = values
    for name in key.path[:-1]:
        section = section[name]
    section[key.path[-1]] = value
    return values


@pytest.fixture(params=STAGES)
def refusal(request, tmp_path, capsys) -> Callable[[str], str]:
    """The one line with which the stage's script refuses a configuration of this text."""
    main, config_class, more = STAGES[request.param]
    path = tmp_path / "broken.yaml"

    def refuse(text: str) -> str:
        path.write_text(text)
        code, message = ended(main, "--config", path, "--data", tmp_path / "nowhere", *more, capsys=capsys)
        assert code == 2, message
        assert message.count("\n") == 1, message
        assert str(path) in message, message
        return message

    refuse.values = yaml.safe_load(write_config(tmp_path, request.param).read_text())
    refuse.keys = list(keys_of(config_class))
    return refuse


def test_the_files_say_every_key_and_every_number_has_limits(refusal):
    assert len(refusal.keys) > 30
    for key in refusal.keys:
        values = refusal.values
        for name in key.path:
            values = values[name]
        if key.kind in (int, float) and key.path[-1] not in UNLIMITED:
            assert out_of_range(key), f"{key.dotted} may be any number"


def test_a_missing_key_is_named_with_what_it_should_be(refusal):
    for key in refusal.keys:
        values = with_value(refusal.values, key, None)
        section = values
        for name in key.path[:-1]:
            section = section[name]
        del section[key.path[-1]]
        message = refusal(yaml.safe_dump(values))
        assert f"{key.dotted}: this key is missing; expected " in message


def test_a_misspelt_key_is_named_with_the_right_one(refusal):
    for key in refusal.keys:
        name = key.path[-1]
        for wrong in (name + "s", name[1:], name.upper(), name.replace("_", "-") + "."):
            values = with_value(refusal.values, key, None)
            section = values
            for step in key.path[:-1]:
                section = section[step]
            section[wrong] = section.pop(name)
            message = refusal(yaml.safe_dump(values))
            assert f"{'.'.join((*key.path[:-1], wrong))}: unknown key; did you mean " in message
            if wrong == name + "s":
                assert f"did you mean {name}?" in message


def test_a_key_that_is_twice_there_is_named_with_both_lines(refusal):
    text = yaml.safe_dump(refusal.values, sort_keys=False)
    for key in refusal.keys:
        block = text
        indent = "  " * (len(key.path) - 1)
        if indent:
            block = re.search(rf"^{key.path[0]}:\n(?:  .*\n)+", text, re.MULTILINE)[0]
        entry = re.search(rf"^{indent}{key.path[-1]}:.*\n(?:{indent}[ -] .*\n)*", block, re.MULTILINE)[0]
        message = refusal(text.replace(block, block.replace(entry, entry + entry)))
        assert f"{key.dotted}: this key is twice there; first on line " in message


def test_a_value_of_the_wrong_type_is_named_with_what_is_expected_and_got(refusal):
    for key in refusal.keys:
        for value in wrong_types(key):
            message = refusal(yaml.safe_dump(with_value(refusal.values, key, value)))
            inside = rf"{re.escape(key.dotted)}(\.\w+)*: "
            said = re.search(
                inside + r"(expected .+; got .+|unknown key; .+|this key is missing; .+)", message
            )
            assert said or "crop_scale: expected two numbers" in message, (key, value, message)


def test_a_value_out_of_range_is_named_with_what_is_expected_and_got(refusal):
    for key in refusal.keys:
        for value in out_of_range(key):
            message = refusal(yaml.safe_dump(with_value(refusal.values, key, value)))
            assert key.path[-1] in message, (key, value)
            assert re.search("expected .+; got |must be .+, got ", message), (key, value, message)


def test_words_other_than_the_known_ones_are_refused(refusal):
    tried = 0
    for key in refusal.keys:
        if get_origin(key.kind) is Literal:
            for value in ("", "Auto", "float64", 0):
                message = refusal(yaml.safe_dump(with_value(refusal.values, key, value)))
                assert (
                    f"{key.dotted}: expected one of {', '.join(map(str, get_args(key.kind)))}; got "
                    in message
                )
                tried += 1
    assert tried


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 33}, ["patch_size", "8", "does not divide", "33"]),
        ({"patch_size": 64}, ["patch_size", "64", "does not divide"]),
        ({"masking_ratio": 0.001}, ["masking_ratio", "0.001", "16 patches"]),
        ({"crop_scale": [0.9, 0.1]}, ["crop_scale", "lesser first", "[0.9, 0.1]"]),
        ({"crop_scale": [0.5]}, ["crop_scale", "two numbers", "[0.5]"]),
        ({"warmup_epochs": 4}, ["warmup_epochs", "4", "total_epochs"]),
        ({"min_learning_rate": 0.5}, ["min_learning_rate", "0.5", "learning_rate"]),
        ({"splits": ["train", "nowhere"]}, ["splits.1", "nowhere", "one of train, val"]),
        ({"splits": []}, ["splits"]),
    ],
)
def test_values_that_do_not_fit_together_are_named(make_tiny_coco, tmp_path, capsys, changes, words):
    config = write_config(tmp_path, "mae_config.yaml", **changes)
    data = make_tiny_coco()["data"]
    arguments = ["--config", config, "--data", data, "--out", tmp_path / "out"]
    code, message = ended(train_encoder.main, *arguments, capsys=capsys)
    assert code == 2, message
    assert message.count("\n") == 1
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", STAGES)
def test_every_key_of_the_root_files_has_a_comment_behind_it(name):
    """The file is its own manual; a section's keys are explained where they come first."""
    explained = set()
    for line in Path(ROOT, name).read_text().splitlines():
        key, _, rest = line.partition(":")
        if not line.startswith("#") and rest:
            assert "  # " in rest or key in explained or key in ("  num_layers", "decoder"), line
            explained.add(key)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("recipe", ["sample", "modern", "photographs", "photographs/h100"])
def test_a_recipe_lists_only_what_it_changes(recipe, name):
    """66 of the 84 lines of recipes/modern repeated the root's, so nobody saw what "modern" was."""

    def unchanged(changes: dict, base: dict) -> list[str]:
        return [
            key
            for key, value in changes.items()
            if (unchanged(value, base[key]) if isinstance(value, dict) else value == base[key])
        ]

    file = Path(ROOT, "recipes", recipe, name)
    changes = yaml.safe_load(file.read_text())
    _, config_class, _ = STAGES[name]
    base = config_to_dict(load_config(file.parent / changes.pop("base"), config_class))
    assert unchanged(changes, base) == []


@pytest.mark.parametrize(
    "recipe", [".", *(f"recipes/{name}" for name in ("sample", "modern", "photographs", "photographs/h100"))]
)
def test_the_files_that_come_with_the_project_fit(recipe):
    for name, (_, config_class, _) in STAGES.items():
        assert load_config(Path(ROOT, recipe, name), config_class)
