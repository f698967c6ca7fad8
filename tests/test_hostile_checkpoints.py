"""Sound files with unsound contents, given to the four scripts that build a model from a checkpoint.

Digest, schema and stage are right: whoever makes a hostile file can make these.  Each must end with exit code
2 and one line that names the file; a size of 10**9 that were allocated would end with another code.
"""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

import caption
import evaluate_captioner
import export
import train_captioner
import train_encoder
from captioner import captioner_from_state
from reconstruction import reconstructor_from_state
from support.errors import UsageError
from tests.checkpoint_cases import hostile, saved, sealed
from tests.training_cases import STACK, ended, train_captions, train_mae, write_config
from training import checkpoints

REMOVED = object()
PARTS = ("config", "model", "optimizer", "scaler", "progress", "samples")
CAPTIONER_PARTS = ("encoder", "tokenizer", "from_scratch")
SIZES = (10**9, 33, "16")
COUNTS = ("7", -1, 10**30, REMOVED)
SCRIPTS = {
    "train_encoder -c": ("encoder", train_encoder.main),
    "train_captioner -p": ("encoder", train_captioner.main),
    "train_captioner -c": ("captioner", train_captioner.main),
    "evaluate_captioner -c": ("captioner", evaluate_captioner.main),
    "evaluate_captioner --encoder": ("encoder", evaluate_captioner.main),
    "caption -c": ("captioner", caption.main),
    "export -c": ("captioner", export.main),
}


@pytest.fixture
def trained(make_tiny_coco, tmp_path):
    """The data root, and the checkpoints of one epoch of each stage on it."""
    paths = make_tiny_coco(train=6, val=2, unlabeled=0)
    out = tmp_path / "out"
    one_layer = STACK | {"num_layers": 1}
    mae = write_config(
        tmp_path, "mae_config.yaml", splits=["train"], encoder=one_layer, decoder={**one_layer}
    )
    train_mae(paths["data"], out, mae, "--epochs", "1")
    captioner = write_config(tmp_path, "captioner_config.yaml", decoder=one_layer)
    train_captions(paths["data"], out, captioner, "-p", "last", "--epochs", "1")
    return paths["data"], {stage: out / stage / "checkpoint1.pt" for stage in ("encoder", "captioner")}


def changed(state: dict, *place: Any) -> dict:
    """A state with the value at a place (keys, then the value) replaced or removed; it is left as it was."""
    key, *rest = place
    if len(rest) > 1:
        return {**state, key: changed(state[key], *rest)}
    return {**{k: v for k, v in state.items() if k != key}, **({} if rest[0] is REMOVED else {key: rest[0]})}


def places_of_unsound_contents(state: dict[str, Any], resumes: bool) -> Iterator[tuple]:
    """(keys, then the value) of what each hostile state has otherwise than `state`."""
    captioner = state["stage"] == "captioner"
    for part in (*PARTS, *(CAPTIONER_PARTS if captioner else ())):
        for value in (REMOVED, [7.5]):
            yield part, value
    yield "config", {}
    yield "model", {}
    yield "split_file", "mine.json"
    yield "split_file", {"name": "mine.json"}
    for part in ("root", "images", "begun_with"):
        yield part, {"words": "3 images", "sha256": 5}
        yield part, None
    for value in ("256", "/../elsewhere", -256, 2.5, True, 1 << 60):
        yield "resized_to", value

    shape = ("encoder",) if captioner else ("config",)
    for size in ("num_layers", "hidden_size", "feedforward_size"):
        for value in (REMOVED, *SIZES):
            yield "config", "decoder", size, value
            yield *shape, "encoder", size, value
    for size in ("image_size", "patch_size"):
        for value in (REMOVED, *SIZES):
            yield *shape, size, value
    yield *shape, "encoder", [1]
    yield "config", "decoder", {"num_layers": 1}
    yield "config", "decoder", "dropout", float("nan")

    name = next(iter(state["model"]))
    weight = state["model"][name]
    for value in (REMOVED, 5, torch.zeros(3), weight.long(), torch.zeros(0, *weight.shape)):
        yield "model", name, value
    yield "model", 5, weight
    yield "model", "another", weight

    if captioner:
        for value in (REMOVED, *SIZES):
            yield "config", "context_length", value
        yield "config", "num_beams", 10**9
        yield "config", "consensus_samples", 10**9
        yield "config", "length_alpha", "x"
        yield "config", "precision", "float1"
        yield "config", "tie_embeddings", 1
        yield from (("tokenizer", text) for text in hostile_tokenizers(state["tokenizer"]))
    if resumes:
        yield "config", "batch_size", "6"
        for key in ("batch_size", "accumulation_steps", *["captions_per_image"] * captioner):
            yield "config", key, 10**15
        yield "config", "seed", REMOVED
        yield from (("progress", count, value) for count in ("epoch", "step", "updates") for value in COUNTS)
        yield "progress", "loss_sum", "x"
        yield "progress", "another", 1
        yield "progress", "history", [5]
        yield "progress", "history", [{"epoch": "1"}]
        yield "optimizer", {}
        yield "optimizer", "param_groups", [{}]
        groups = state["optimizer"]["param_groups"]
        yield "optimizer", "param_groups", [{**group, "betas": "x"} for group in groups]
        yield "optimizer", "param_groups", [changed(group, "base_lr", REMOVED) for group in groups]
        moments = next(iter(state["optimizer"]["state"]))
        yield "optimizer", "state", moments, "exp_avg", torch.zeros(3)
        yield "optimizer", "state", moments, "exp_avg", 3
        yield "optimizer", "state", moments, [3]
        as_muons = {"momentum_buffer": state["optimizer"]["state"][moments]["exp_avg"]}
        yield "optimizer", "state", moments, as_muons


def hostile_tokenizers(good: str) -> Iterator[str]:
    values = json.loads(good)
    yield from ("", "{}", "[", "[" * 100_000, "[1]", '{"model": {}}')
    fixed = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None}
    yield json.dumps(values | {"padding": fixed | {"pad_id": 0, "pad_type_id": 0, "pad_token": "<PAD>"}})
    yield json.dumps(
        values | {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}}
    )
    vocabulary = values["model"]["vocab"]
    for more in ({"new": 4 * 10**9}, {"new": len(vocabulary)}, {"<PAD>": REMOVED}):
        yield json.dumps(
            values | {"model": values["model"] | {"vocab": changed(vocabulary, *more, *more.values())}}
        )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_sound_file_with_unsound_contents_is_refused_in_one_line(trained, tmp_path, script, capsys):
    """Nothing of it is executed, and nothing allocated by what it says."""
    data, good = trained
    stage, main = SCRIPTS[script]
    path, marker = tmp_path / "named.pt", tmp_path / "executed"
    options = [script.split()[1], path]
    if main is caption.main:
        picture = tmp_path / "picture.png"
        Image.new("RGB", (40, 30)).save(picture)
        options.append(picture)
    elif main is export.main:
        pytest.importorskip("safetensors", reason="safetensors is an extra of export.py's tests")
        options += ["--encoder", tmp_path / "taken"]
    else:
        options += ["--data", data]
    if main in (train_encoder.main, train_captioner.main):
        options += ["--out", tmp_path / "new", "--epochs", "2"]
    if script.endswith("--encoder"):
        options += ["-c", good["captioner"], "--report", tmp_path / "report.html"]
    if script.endswith("-p"):
        options += ["--config", next(tmp_path.glob("*captioner_config.yaml"))]

    state = checkpoints.load(good[stage], stage)
    resumes = main in (train_encoder.main, train_captioner.main) and script.endswith("-c")
    if not resumes:
        state["optimizer"] = {}  # never looked into, and most of a file's parts
    files = [(what, sealed(archive)) for what, archive in hostile(marker)]
    files += [
        ((*place[:-1], f"{place[-1]!r:.60}"), sealed(saved(changed(state, *place))))
        for place in places_of_unsound_contents(state, resumes)
    ]
    for what, contents in files:
        path.write_bytes(contents)
        code, message = refusal(main, options, capsys)
        assert code == 2, (what, message)
        assert message.count("\n") == 1, (what, message)
        assert str(path) in message, (what, message)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("stage", "build"), [("encoder", reconstructor_from_state), ("captioner", captioner_from_state)]
)
def test_a_notebook_is_as_safe_as_a_script(trained, stage, build):
    """They build a model from a state that is loaded; the sizes were allocated before they were compared."""
    _, good = trained
    state = checkpoints.load(good[stage], stage)
    assert build(state, torch.device("cpu"))
    for place in places_of_unsound_contents({**state, "optimizer": {}}, resumes=False):
        parts_missing = len(place) == 2 and not isinstance(place[1], str)  # which loading has refused
        if place[0] in ("config", "encoder", "model", "tokenizer") and not parts_missing:
            with pytest.raises(UsageError, match=f"the {stage}'s checkpoint: "):
                build(changed(state, *place), torch.device("cpu"))


def refusal(main: Any, options: list, capsys) -> tuple[int | str, str]:
    """How it ended; an exception that is no exit is told by its name, so that the file's kind can be."""
    with warnings.catch_warnings(action="error"):
        try:
            return ended(main, *options, capsys=capsys)
        except Exception as error:
            return type(error).__name__, str(error)
