"""What export.py writes captions as the checkpoint does, and other libraries read it.

Tests of an extra's format are skipped without it: `pip install -r requirements-export.txt`, and transformers
and timm for two of them.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import caption
import evaluate_captioner
import export
import train_captioner
from captioner import load_captioner
from image_transforms import normalize
from model_card import TERMS, front_matter
from onnx_export import ENCODER, STEP
from tests.captioner_cases import TEXTS, save_random_captioner
from tests.training_cases import ONE_LAYER, ended, train_captions, train_mae, write_config
from training import checkpoints

HALF_PRECISION = 2**-11  # the largest relative rounding error of float16, where it is normal


@pytest.fixture
def trained(make_tiny_coco, tmp_path):
    """The data root, and a captioner's checkpoint with running means of its weights, tied ones too."""
    data, out = make_tiny_coco(train=6, val=2, unlabeled=0)["data"], tmp_path / "out"
    mae = write_config(tmp_path, "mae_config.yaml", splits=["train"], encoder=ONE_LAYER)
    train_mae(data, out, mae, "--epochs", "1")
    config = write_config(
        tmp_path, "captioner_config.yaml", decoder=ONE_LAYER, tie_embeddings=True, ema_decay=0.9
    )
    train_captions(data, out, config, "-p", "last", "--epochs", "1")
    return data, out / "captioner" / "checkpoint1.pt"


def test_a_checkpoint_that_only_captions_is_small_evaluated_and_not_resumed(trained, tmp_path, capsys):
    data, path = trained
    small = tmp_path / "captioner.pt"
    export.main(["-c", str(path), "--checkpoint", str(small)])
    state = checkpoints.load(small, "captioner")
    weights = {w.data_ptr(): w for w in state["model"].values()}.values()
    assert {w.dtype for w in weights} == {torch.float16}
    values = sum(w.numel() for w in load_captioner(path).model.parameters())  # tied ones once
    assert sum(w.nbytes for w in weights) == 2 * values
    assert state["progress"]["history"] == checkpoints.load(path)["progress"]["history"]

    for ours, theirs in zip(
        load_captioner(small).model.parameters(), load_captioner(path).model.parameters()
    ):
        assert ours.dtype is torch.float32
        torch.testing.assert_close(ours, theirs, rtol=HALF_PRECISION, atol=2**-24)
    evaluate_captioner.main(["-c", str(small), "--data", str(data)])
    assert checkpoints.digest(small)[:12] in capsys.readouterr().out
    for more in ([], ["--self-critical"]):
        resume = ("-c", small, "--data", data, "--out", tmp_path / "new", *more)
        code, message = ended(train_captioner.main, *resume, capsys=capsys)
        assert (code, message.count("\n")) == (2, 1), message
        assert "captioner.pt" in message
        assert "optimizer" in message


def test_the_checkpoint_itself_is_never_overwritten(tmp_path, capsys):
    path = tmp_path / "checkpoint1.pt"
    save_random_captioner(path)
    before = path.read_bytes()
    code, message = ended(export.main, "-c", path, "--checkpoint", path, capsys=capsys)
    assert (code, message.count("\n")) == (2, 1)
    assert "itself" in message
    assert path.read_bytes() == before


# --- the folder ---


def extra(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is an extra of export.py's tests")


def exported(folder: Path, *flags: str, **options) -> tuple[Path, Path]:
    """A random captioner's checkpoint, and what export.py made of it."""
    save_random_captioner(folder / "checkpoint1.pt", **options)
    export.main(["-c", str(folder / "checkpoint1.pt"), *flags, str(folder / "taken")])
    return folder / "checkpoint1.pt", folder / "taken"


def drawn(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def code_in(card: Path, package: str) -> str:
    """The block of Python in a card that imports a package."""
    blocks = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    return next(code for code in blocks if f"import {package}" in code or f"from {package}" in code)


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_captions_as_its_checkpoint(tied, tmp_path, capsys):
    extra("safetensors")
    path, folder = exported(tmp_path, tie_embeddings=tied)
    ours, theirs = load_captioner(folder).model.state_dict(), load_captioner(path).model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    for file, picture in zip(files, drawn(3)):
        picture.save(file)
    capsys.readouterr()
    lines = [caption.main(["-c", str(place), *files]) or capsys.readouterr().out for place in (path, folder)]
    assert lines[0] == lines[1]
    assert lines[0].count("\n") == 3


def test_a_card_quotes_the_evaluation_of_this_checkpoint_alone(trained, tmp_path, capsys):
    extra("safetensors")
    data, path = trained
    evaluate_captioner.main(["-c", str(path), "--data", str(data)])
    figures = json.loads(path.with_name("checkpoint1_val_results_metrics.json").read_text())
    export.main(["-c", str(path), "--trained-on", "flickr8k", str(tmp_path / "taken")])
    _, front, text = (tmp_path / "taken" / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["language"], front["pipeline_tag"], front["datasets"]) == (
        "en",
        "image-to-text",
        ["flickr8k"],
    )
    quoted = {m["name"]: m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    assert quoted == {name: round(100 * value, 2) for name, value in figures["metrics"].items()}
    assert figures["signature"] in text
    assert "non-commercial" in text
    assert f"| 1 | {checkpoints.load(path)['progress']['history'][0]['train_loss']:.4f} |" in text

    other, metrics = tmp_path / "other.pt", path.with_name("checkpoint1_val_results_metrics.json")
    save_random_captioner(other)
    code, message = ended(export.main, "-c", other, "--metrics", metrics, tmp_path / "no", capsys=capsys)
    assert (code, message.count("\n")) == (2, 1)


def test_a_card_quotes_the_evaluation_of_a_checkpoint_that_does_not_name_its_data(trained, tmp_path):
    """The names of its results say on which they were made."""
    extra("safetensors")
    data, path = trained
    state = checkpoints.load(path)
    del state["root"]
    checkpoints.save(tmp_path / "old.pt", state)
    evaluate_captioner.main(["-c", str(tmp_path / "old.pt"), "--data", str(data)])
    export.main(["-c", str(tmp_path / "old.pt"), str(tmp_path / "taken")])
    assert "| val2017 of root-" in (tmp_path / "taken" / "README.md").read_text()


def test_no_folder_is_replaced_by_another_kind_of_model_or_by_itself(trained, tmp_path, capsys):
    extra("safetensors")
    _, path = trained
    taken, vit = tmp_path / "taken", tmp_path / "vit"
    export.main(["-c", str(path), str(taken)])
    export.main(["-c", str(path), "--encoder", str(vit)])
    export.main(["-c", str(path), "--encoder", str(vit)])  # the same kind: anew
    before = {file: file.read_bytes() for folder in (taken, vit) for file in folder.iterdir()}
    for options, message in {
        ("-c", taken, "--encoder", taken): "is itself what is to be exported",
        ("-c", path, "--encoder", taken): "holds a captioner, which a vision transformer would replace",
        ("-c", path, vit): "holds a vision transformer, which a captioner would replace",
    }.items():
        code, said = ended(export.main, *options, capsys=capsys)
        assert (code, said.count("\n")) == (2, 1)
        assert message in said
    assert before == {file: file.read_bytes() for folder in (taken, vit) for file in folder.iterdir()}


def test_onnx_that_is_not_installed_is_told_before_a_file_is_replaced(trained, tmp_path, capsys, monkeypatch):
    extra("safetensors")
    _, path = trained
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, said = ended(export.main, "-c", path, "--onnx", tmp_path / "taken", capsys=capsys)
    assert (code, said.count("\n")) == (2, 1)
    assert "pip install -r requirements-export.txt" in said
    assert not list((tmp_path / "taken").glob("*"))


def test_an_encoder_is_exported_of_a_captioner_of_before(trained, tmp_path):
    """Whose configuration lacks keys that came later: every other mode took it."""
    extra("safetensors")
    _, path = trained
    state = checkpoints.load(path)
    del state["config"]["consensus_samples"]
    checkpoints.save(tmp_path / "old.pt", state)
    export.main(["-c", str(tmp_path / "old.pt"), "--encoder", str(tmp_path / "vit")])
    assert (tmp_path / "vit" / "model.safetensors").is_file()


def test_a_card_gives_no_more_license_than_the_data_do():
    licenses = [yaml.safe_load(front_matter("t", data, None)).get("license") for data in (*TERMS, None)]
    assert dict(zip([*TERMS, None], licenses)) == {
        "coco": "mit", "flickr8k": "other", "sample": "mit", None: None,
    }  # fmt: skip


def test_an_export_replaces_no_card_that_somebody_has_changed_and_leaves_no_older_onnx(tmp_path, capsys):
    """It replaced any README.md, that of a repository too, and left ONNX files of the weights before."""
    extra("safetensors")
    path, folder = exported(tmp_path)
    card, again = folder / "README.md", ["-c", str(path), str(folder)]
    written = card.read_text()
    for name in (ENCODER, STEP):
        (folder / name).write_bytes(b"of other weights")
    export.main(again)
    assert "stays as it was" not in capsys.readouterr().err
    assert not list(folder.glob("*.onnx"))
    card.write_text(written.replace("before you publish", "") + "Our own photographs.")
    before = card.read_bytes()
    export.main(again)
    assert f"note: {card} stays as it was" in capsys.readouterr().err
    assert card.read_bytes() == before
    card.unlink()
    export.main(again)
    assert card.read_text() == written


def test_without_safetensors_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    save_random_captioner(tmp_path / "checkpoint1.pt")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    calls = (
        (export.main, "-c", tmp_path / "checkpoint1.pt", tmp_path / "new"),
        (caption.main, "-c", tmp_path / "taken", tmp_path / "picture.png"),
    )
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    for call in calls:
        code, message = ended(*call, capsys=capsys)
        assert (code, message.count("\n")) == (2, 1), message
        assert "requirements-export.txt" in message


def test_a_hostile_folder_is_one_line(tmp_path, capsys):
    extra("safetensors")
    from safetensors.torch import load_file, save_file

    _, folder = exported(tmp_path)
    drawn(1)[0].save(tmp_path / "picture.png")
    weights, config = (
        load_file(folder / "model.safetensors"),
        json.loads((folder / "config.json").read_text()),
    )
    name, good = next(iter(weights)), {file.name: file.read_bytes() for file in folder.iterdir()}

    def with_weight(value: torch.Tensor) -> bytes:
        save_file(weights | {name: value}, tmp_path / "bad")
        return (tmp_path / "bad").read_bytes()

    def with_config(*keys: str, value: object) -> bytes:
        changed = json.loads(json.dumps(config))
        part = changed
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        return json.dumps(changed).encode()

    whole = good["model.safetensors"]
    header = b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
    bad = {
        "model.safetensors": [
            b"", whole[:-9], whole[:50], b"\xff" * 8 + whole[8:], None,
            len(header).to_bytes(8, "little") + header + b"0000",
            with_weight(torch.zeros(7)),
            with_weight(weights[name].to(torch.int64)),
            with_weight(weights[name].to(torch.float8_e4m3fn)),
        ],
        "config.json": [
            b"{", b"[]", b"{}", b"[" * 100_000, b"\xff", b" " * (1 << 26) + good["config.json"],
            with_config("schema", value=2), with_config("schema", value=[1]),
            with_config("stage", value="encoder"), with_config("config", value=7),
            with_config("config", "decoder", "num_layers", value=10**9),
            with_config("config", "context_length", value=10**9),
            with_config("encoder", "image_size", value=10**9),
            with_config("progress", value={}),
            with_config("split_file", value={"train": [10**30]}),
            with_config("split_file", value="mine.json"),
        ],
        "tokenizer.json": [b"", b"{}", b"\xff", None],
    }  # fmt: skip
    for file, contents in bad.items():
        for number, content in enumerate(contents):
            for each, data in good.items():
                (folder / each).write_bytes(data)
            (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
            call = (caption.main, "-c", folder, tmp_path / "picture.png")
            code, message = ended(*call, capsys=capsys)
            assert (code, message.count("\n")) == (2, 1), (file, number, message)
            assert "taken" in message, (file, number, message)


# --- other libraries ---


def test_transformers_reads_the_tokenizer(tmp_path):
    extra("safetensors")
    transformers = pytest.importorskip("transformers", reason="transformers is an extra of this test")
    from tokenizers import Tokenizer

    path, folder = exported(tmp_path)
    ours = load_captioner(path).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert isinstance(theirs, transformers.PreTrainedTokenizerFast)
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (
        0,
        1,
        2,
        3,
    )
    for text in {*TEXTS, "A Café, naïve!", "  two   blanks ", "日本語 🐕"}:
        ids = ours.encode(text).ids
        assert alone.encode(text).ids == ids
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == alone.decode(ids) == ours.decode(ids)


def test_timm_computes_the_same_features_by_the_code_in_the_card(tmp_path, monkeypatch):
    extra("safetensors")
    extra("timm")
    path, folder = exported(tmp_path, "--encoder", pre_norm=True)
    encoder = load_captioner(path).model.encoder.eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # no norm and no bias at its start
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save = {name: weight.contiguous() for name, weight in encoder.state_dict().items()}
    export.hub_folder.save_weights(folder / "model.safetensors", save)
    monkeypatch.chdir(folder)
    scope: dict = {}
    exec(code_in(folder / "README.md", "timm"), scope)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        features = scope["model"].forward_features(images)
        torch.testing.assert_close(features, encoder(images), rtol=1e-5, atol=1e-5)


@pytest.mark.timeout(600)  # the exporter alone takes half a minute
def test_onnxruntime_captions_word_for_word_by_the_code_in_the_card(tmp_path, monkeypatch):
    extra("safetensors")
    extra("onnxscript")
    extra("onnxruntime")
    path, folder = exported(tmp_path, "--onnx", pre_norm=True, tie_embeddings=True, value_size=6)
    captioner = load_captioner(path)
    captioner.options = type(captioner.options)(24, 1, 0.8)
    pictures = drawn(10)
    monkeypatch.chdir(folder)
    scope: dict = {}
    exec(code_in(folder / "README.md", "onnxruntime"), scope)
    written = [scope["caption"](captioner.transform(picture)[None].numpy()) for picture in pictures]
    decoded = captioner.decode(torch.stack([captioner.transform(picture) for picture in pictures]))
    assert written == [captioner.tokenizer.decode(best.tokens) for (best,) in decoded]
    assert len(set(written)) > 1

    # Several sequences at once, as a beam search has them.
    images = torch.stack([captioner.transform(picture) for picture in pictures])
    memory = scope["encoder"].run(None, {"images": images.numpy()})
    with torch.no_grad():
        model = captioner.model
        wanted = model(normalize(images), torch.full((10, 1), scope["START"]))[:, 0]
    past = [np.zeros((*m.shape[:3], 0, m.shape[4]), m.dtype) for m in memory]
    inputs = dict(zip(["past_keys", "past_values", "memory_keys", "memory_values"], [*past, *memory]))
    logits, *_ = scope["decoder"].run(None, inputs | {"token": np.full((10, 1), scope["START"])})
    torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-4, atol=1e-4)
