"""Configuration: a YAML file fits its dataclass exactly, or one line names file, key, expected and got."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml

from support.configuration import (
    at_least,
    bounded,
    config_from_dict,
    config_to_dict,
    load_config,
    positive,
)
from support.errors import UsageError


@dataclass(frozen=True)
class Stack:
    """Plain, as a component's own class is; its fields carry no limits."""

    hidden_size: int
    num_heads: int
    pre_norm: bool = False  # a default for those who build it in code; a file must say it

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class Training:
    batch_size: int = positive()
    learning_rate: float = positive()
    warmup_epochs: float = at_least(0)


@dataclass(frozen=True, kw_only=True)
class Config(Training):
    dropout: float = bounded(at_least=0, below=1)
    precision: Literal["auto", "float32"]
    accumulation: Literal[1, 2]
    clip_norm: float | None = positive()
    layers: tuple[str, ...]
    scales: tuple[float, ...] = bounded(above=0, at_most=1)
    encoder: Stack


GOOD = """\
batch_size: 64
learning_rate: 1e-4
warmup_epochs: 8
dropout: 0.2
precision: auto
accumulation: 1
clip_norm: null
layers: [patch, no, "1"]
scales:
  - 0.2
  - 1
encoder:
  hidden_size: 768
  num_heads: 12
  pre_norm: false
"""


def load(folder: Path, text: str | bytes) -> Config:
    path = folder / "mae_config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, Config)


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    message = str(caught.value)
    assert message.startswith(f"{folder}/mae_config.yaml")
    assert "\n" not in message
    assert len(message) < 400
    return message.removeprefix(f"{folder}/mae_config.yaml")


def test_a_good_file_becomes_the_dataclass(tmp_path):
    config = load(tmp_path, GOOD)
    assert config == Config(
        batch_size=64,
        learning_rate=1e-4,
        warmup_epochs=8.0,
        dropout=0.2,
        precision="auto",
        accumulation=1,
        clip_norm=None,
        layers=("patch", "no", "1"),
        scales=(0.2, 1.0),
        encoder=Stack(768, 12, False),
    )
    assert type(config.warmup_epochs) is float  # an integer will do for a number
    assert (
        load(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()) == config
    )  # an editor on Windows


def test_a_config_survives_a_checkpoint(tmp_path):
    config = load(tmp_path, GOOD)
    stored = config_to_dict(config)
    assert stored["encoder"] == {"hidden_size": 768, "num_heads": 12, "pre_norm": False}
    assert config_from_dict(stored, Config, "checkpoint3.pt") == config
    for change, message in [
        ({"encoder": None}, "checkpoint3.pt: encoder: expected a section with the keys hidden_size"),
        (
            {"dropout": float("nan")},
            "checkpoint3.pt: dropout: expected a finite number of at least 0 and below 1",
        ),
        (
            {"batch_size": 10**5000},
            "checkpoint3.pt: batch_size: expected an integer above 0; got something else",
        ),
        ({5: 1}, "checkpoint3.pt: int: unknown key"),
    ]:
        with pytest.raises(UsageError, match=message):
            config_from_dict({**stored, **change}, Config, "checkpoint3.pt")


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("1e4", 1e4), ("1.5e3", 1500.0), ("+.5", 0.5), ("5.", 5.0), ("2E+2", 200.0), ("7", 7.0)],
)
def test_numbers_are_those_of_yaml_1_2(tmp_path, written, value):
    """PyYAML reads 1e-4, 1e4 and 1.5e3 as text: the learning rate of half the configs in this field."""
    assert load(tmp_path, GOOD.replace("1e-4", written)).learning_rate == value


TRAPS = [
    "017",
    "1:30",
    "1_000",
    "0x1f",
    "0b11",
    "0o17",
    "1e4",
    "64.0",
    "'64'",
    "true",
    "no",
    "on",
    "null",
    "[1]",
]


@pytest.mark.parametrize("written", [*TRAPS, "9" * 19, "9" * 5000, "0", "-1"])
def test_nothing_else_passes_for_an_integer(tmp_path, written):
    """PyYAML reads 017 as 15, 1:30 as 90 and 1_000 as 1000, and Python takes True for 1."""
    message = refusal(tmp_path, GOOD.replace("batch_size: 64", f"batch_size: {written}"))
    assert message.startswith(", line 1: batch_size: expected an integer above 0; got ")


@pytest.mark.parametrize("written", ["yes", "no", "on", "off", "y", "0", "1", "'true'", "null"])
def test_only_true_and_false_are_booleans(tmp_path, written):
    message = refusal(tmp_path, GOOD.replace("pre_norm: false", f"pre_norm: {written}"))
    assert message.startswith(", line 15: encoder.pre_norm: expected true or false; got ")


@pytest.mark.parametrize("written", [".nan", ".inf", "-.INF", "1e999", "nan", "inf", "e5", ".", "1e", "--1"])
def test_no_number_is_infinite_or_not_a_number(tmp_path, written):
    message = refusal(tmp_path, GOOD.replace("1e-4", written))
    assert message.startswith(", line 2: learning_rate: expected a finite number above 0; got ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dropout: 0.2", "dropout: 1", ", line 4: dropout: expected a finite number of at least 0"),
        ("dropout: 0.2", "dropout: -0.1", "of at least 0 and below 1; got -0.1"),
        ("precision: auto", "precision: Auto", "precision: expected one of auto, float32; got 'Auto'"),
        ("accumulation: 1", "accumulation: true", "accumulation: expected one of 1, 2; got True"),
        ("clip_norm: null", "clip_norm: 0", "clip_norm: expected a finite number above 0, or null; got 0.0"),
        ("clip_norm: null", "clip_norm: none", "above 0, or null; got 'none'"),
        ("  - 1\n", "  - 1.5\n", "scales.1: expected a finite number above 0 and of at most 1; got 1.5"),
        ("[patch", "[[patch]", ": layers.0: expected a text; got a list"),
        ("[patch, no", "[patch, 5", ": layers.1: expected a text; got 5"),
        ('[patch, no, "1"]', "patch", ": layers: expected a list, each item a text; got 'patch'"),
        ("batch_size", "batchsize", ", line 1: batchsize: unknown key; did you mean batch_size?"),
        ("  num_heads", "  num_head", ", line 14: encoder.num_head: unknown key; did you mean num_heads?"),
        ("batch_size: 64", "batch_size: 64\nzzz: 1", ", line 2: zzz: unknown key; known here: batch_size"),
        ("batch_size: 64\n", "", ": batch_size: this key is missing; expected an integer above 0"),
        ("  pre_norm: false\n", "", ", line 12: encoder.pre_norm: this key is missing; expected true"),
        ("batch_size: 64", "batch_size: 64\nbatch_size: 2", ", line 2: batch_size: this key is twice"),
        ("  num_heads: 12", "  num_heads: 1\n  num_heads: 2", "this key is twice there; first on line 14"),
        ("num_heads: 12", "num_heads: 5", ", line 12: encoder: hidden_size 768 is no multiple of"),
        ("encoder:\n", "encoder: 5\nother:\n", "other: unknown key"),
        ("auto", "&a auto", "not valid YAML: anchors (&), aliases (*) and tags (!) are not allowed"),
        ("64", "!!int '64'", "tags (!) are not allowed"),
        ("64", "!!python/object/apply:os.system ['touch /tmp/executed']", "tags (!) are not allowed"),
        ("batch_size", '"a\\nb"', "a\\nb: unknown key"),
        ("batch_size", "? [a]\n", "unknown key"),
        ("batch_size", "<<", "<<: unknown key"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_one_line(tmp_path, old, new, message):
    assert GOOD.count(old) == 1
    assert message in refusal(tmp_path, GOOD.replace(old, new))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": expected a section with the keys batch_size"),
        ("# nothing\n", "; got nothing"),
        ("- batch_size\n", "; got a list"),
        ("64", "; got 64"),
        ("a: [1", ", line 1: not valid YAML: "),
        ("a: 1\n---\nb: 1\n", ", line 2: not valid YAML: "),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("%YAML 9" + "9" * 5000 + ".1\n---\na: 1", "not valid YAML"),
        (b"\x00\x01\x02", "not valid YAML"),
        (b"\xff\xfe\x80", ": not a text file in UTF-8 (byte 0)"),
        ("[" * 30_000, "nested too deeply"),
        ("{a: " * 5_000, "nested too deeply"),
        ("- " * 5_000, "nested too deeply"),
        ("x" * 70_000, ": more than 65536 bytes"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases (*) and tags (!) are not allowed"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path, content, message):
    assert message in refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("path", "message"),
    [("none.yaml", "No such file"), (".", "Is a directory"), ("a\0b", "null byte"), ("a" * 300, "too long")],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, path, message):
    with pytest.raises(UsageError, match=f"cannot read this configuration: .*{message}"):
        load_config(f"{tmp_path}/{path}", Config)


def test_mutated_files_never_end_in_a_traceback(tmp_path):
    """Bytes replaced, dropped, doubled; what is accepted must be what another parser reads."""
    draw = random.Random(0)
    extra = b"\0\t\n \"'#%&*!|>-?:,[]{}@`~<=019eE.+_abc\xc3\x80\xff"
    accepted = 0
    for _ in range(600):
        data = bytearray(GOOD.encode())
        for _ in range(draw.choice((1, 1, 2, 5))):
            place = draw.randrange(len(data))
            data[place : place + draw.randrange(3)] = bytes(draw.choices(extra, k=draw.randrange(3)))
        try:
            config = load(tmp_path, bytes(data))
        except UsageError:
            continue
        accepted += 1
        assert config.layers == tuple(map(str, yaml.load(bytes(data), yaml.BaseLoader)["layers"]))
    assert accepted > 20


# --- base: a file that lists only what it changes ---


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_a_recipe_changes_its_base_key_by_key(tmp_path):
    """A base may have a base of its own; every path starts from the file that it stands in."""
    write(
        tmp_path,
        root=GOOD,
        recipes__wide="base: ../root.yaml\nencoder: {hidden_size: 1536}\nlayers: [all]\n",
        recipes__fast="base: wide.yaml\nencoder:\n  pre_norm: true\nlearning_rate: 3e-4\n",
    )
    expected = yaml.safe_load(GOOD) | {"learning_rate": 3e-4, "layers": ["all"]}
    expected["encoder"] = {"hidden_size": 1536, "num_heads": 12, "pre_norm": True}
    config = load_config(tmp_path / "recipes" / "fast.yaml", Config)
    assert config == config_from_dict(expected, Config, "expected")
    assert config_from_dict(config_to_dict(config), Config, "checkpoint") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "base: root.yaml\nlerning_rate: 1"}, "recipe.yaml, line 2: lerning_rate: unknown key"),
        ({"root": GOOD + "drop: 1"}, "root.yaml, line 16: drop: unknown key; did you mean dropout?"),
        ({"root": GOOD + "  num_head: 1"}, "root.yaml, line 16: encoder.num_head: unknown key; did you mean"),
        ({"recipe": "base: root.yaml\nencoder: {num_head: 1}"}, "recipe.yaml, line 2: encoder.num_head: un"),
        ({"root": GOOD.replace("12", "x")}, "root.yaml, line 14: encoder.num_heads: expected an integer"),
        ({"recipe": "base: root.yaml\nencoder: {num_heads: 5}"}, "recipe.yaml, line 2: encoder: hidden_s"),
        ({"recipe": "base: root.yaml\nencoder: 5"}, "recipe.yaml, line 2: encoder: expected a section with"),
        ({"root": GOOD.replace("dropout: 0.2\n", "")}, "recipe.yaml: dropout: this key is missing; expected"),
        ({"root": "batch_size: 1\nbatch_size: 2"}, "root.yaml, line 2: batch_size: this key is twice there"),
        ({"recipe": "base: root.yaml\nbase: root.yaml"}, "recipe.yaml, line 2: base: this key is twice"),
        ({"recipe": "base: 5"}, "recipe.yaml, line 1: base: expected the path of a YAML file, from this f"),
        ({"recipe": "\nbase: no.yaml"}, "no.yaml, the base of {}/recipe.yaml: cannot read this config"),
        ({"recipe": "base: ''"}, "{}, the base of {}/recipe.yaml: cannot read this configuration: Is"),
        ({"root": "- batch_size"}, "recipe.yaml, line 1: base: expected a file of keys and values; {}/root"),
        ({"root": "base: a: b"}, "root.yaml, line 1: not valid YAML: mapping values are not allowed here"),
        ({"root": "base: recipe.yaml"}, "root.yaml, line 1: base: these files are based on each other: {}"),
        ({"recipe": "base: recipe.yaml"}, "each other: {}/recipe.yaml -> {}/recipe.yaml"),
        ({"recipe": "base: ../%s/root.yaml\nx: 1"}, "recipe.yaml, line 2: x: unknown key; known here: batch"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_or_base_is_one_line_that_names_the_file(tmp_path, changes, message):
    files = {"root": GOOD, "recipe": "base: root.yaml\nbatch_size: 2\n"} | changes
    write(tmp_path, **{name: text.replace("%s", tmp_path.name) for name, text in files.items()})
    with pytest.raises(UsageError) as refusal:
        load_config(tmp_path / "recipe.yaml", Config)
    assert str(refusal.value).startswith(str(tmp_path))
    assert message.replace("{}", str(tmp_path)) in str(refusal.value)
    assert "\n" not in str(refusal.value)


# --- --set: single values, last of all ---


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        (["learning_rate=3e-4"], "learning_rate", 3e-4),
        ([" learning_rate = 3e-4 "], "learning_rate", 3e-4),
        (["learning_rate=3e-4", "learning_rate=5"], "learning_rate", 5.0),
        (["clip_norm=1"], "clip_norm", 1.0),
        (["clip_norm=1", "clip_norm=null"], "clip_norm", None),
        (["scales=[0.5, 1]"], "scales", (0.5, 1.0)),
        (["layers=[a=b]"], "layers", ("a=b",)),
        (["encoder.num_heads=6"], "encoder", Stack(768, 6)),
        (["encoder.num_heads=6", "encoder={pre_norm: true}"], "encoder", Stack(768, 6, True)),
    ],
)
def test_single_values_are_set_last(tmp_path, changes, key, value):
    write(tmp_path, root=GOOD, recipe="base: root.yaml\nlearning_rate: 2.0\n")
    good = config_to_dict(load(tmp_path, GOOD)) | {"learning_rate": 2.0}
    expected = config_from_dict(good, Config, "expected")
    object.__setattr__(expected, key, value)
    assert load_config(tmp_path / "recipe.yaml", Config, changes) == expected
    assert config_from_dict(good, Config, "checkpoint3.pt", changes) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["learning_rate=abc"], "--set learning_rate=abc: expected a finite number above 0; got 'abc'"),
        (["lerning_rate=1"], "--set lerning_rate=1: unknown key; did you mean learning_rate?"),
        (["encoder.num_head=1"], "--set encoder.num_head=1: unknown key; did you mean num_heads?"),
        (["encoder=5"], "--set encoder=5: expected a section with the keys hidden_size"),
        (["encoder={num_heads: x}"], "--set encoder={num_heads: x}, line 1: encoder.num_heads: expected an"),
        (["batch_size.x=5"], "--set batch_size.x=5: batch_size: expected an integer above 0; got a section"),
        (["batch_size=017"], "--set batch_size=017: expected an integer above 0; got '017'"),
        (["scales=[2]"], "--set scales=[2]: scales.0: expected a finite number above 0 and of at most 1"),
        (["scales=[1"], "--set scales=[1, line 1: not valid YAML: "),
        (["base=recipe.yaml"], "--set base=recipe.yaml: unknown key; known here: batch_size"),
        (["encoder.num_heads=5"], "--set encoder.num_heads=5: encoder: hidden_size 768 is no multiple"),
        (["learning_rate"], "--set learning_rate: expected KEY=VALUE, such as learning_rate=3e-4"),
        (["learning_rate="], "--set learning_rate=: expected KEY=VALUE"),
        (["=1"], "--set =1: expected KEY=VALUE"),
        (["a\nb=1"], "--set a\\nb=1: unknown key; known here: batch_size"),
        (["clip_norm=" + "[" * 5000], "not valid YAML: it is nested too deeply"),
        ([".".join(["encoder"] * 5000) + "=1"], ": encoder.encoder: unknown key; known here: hidden_size"),
    ],
)  # fmt: skip
def test_a_wrong_value_that_is_set_is_one_line_that_names_the_option(tmp_path, changes, message):
    saved = config_to_dict(load(tmp_path, GOOD))
    for read in (
        lambda: load_config(tmp_path / "mae_config.yaml", Config, changes),
        lambda: config_from_dict(saved, Config, "checkpoint3.pt", changes),
    ):
        with pytest.raises(UsageError) as refusal:
            read()
        assert message in str(refusal.value)
        assert str(refusal.value).startswith("--set ")
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 400


def test_values_that_do_not_fit_together_are_refused_with_the_option_that_was_given(tmp_path):
    @dataclass(frozen=True)
    class Both:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low: {self.low} is above high {self.high}")

    (tmp_path / "both.yaml").write_text("low: 1\nhigh: 2\n")
    with pytest.raises(UsageError, match=r"both\.yaml with --set low=3: low: 3 is above high 2"):
        load_config(tmp_path / "both.yaml", Both, ["low=3"])
