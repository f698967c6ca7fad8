"""With a split file, the tokenizer too learns from the split's training captions only."""

import json
import re
import shlex
from pathlib import Path

import pytest

import process_coco
import train_captioner
from coco.caption_files import read_captions
from coco.data import CocoData
from coco.tokenizer import load_tokenizer, train_tokenizer
from coco.tokenizer_choice import require_tokenizer_of
from support.errors import UsageError
from tests.conftest import tiny_tokenizer
from tests.test_split_file import dealt_anew
from tests.training_cases import ended, train_captions, train_mae, write_config


@pytest.fixture
def raw(tiny_coco: dict[str, Path]) -> dict[str, Path]:
    """A processed data root, with a word of its own in the captions of each image."""
    for split, first in (("train", 0), ("val", 10)):
        content = json.loads(tiny_coco[f"{split}_captions"].read_text())
        words = {image["id"]: "abcdefghijklmn"[first + n] * 7 for n, image in enumerate(content["images"])}
        for annotation in content["annotations"]:
            annotation["caption"] += f" {words[annotation['image_id']]}"
        tiny_coco[f"{split}_captions"].write_text(json.dumps(content))
    for path in tiny_coco["processed"].iterdir():
        path.unlink()
    process(tiny_coco)
    return tiny_coco


def process(where: dict[str, Path], *flags: object) -> None:
    process_coco.main(["--captions-only", "--data", str(where["data"]), *map(str, flags)])


def text_of(where: dict[str, Path]) -> str:
    return load_tokenizer(where["tokenizer"]).to_str()


def trained_on(where: dict[str, Path], image_ids: list[int] | None, size: int = 5000) -> str:
    """The tokenizer of these images' captions; None: of all in train2017."""
    files = [read_captions(where[f"{split}_captions"]) for split in ("train", "val")]
    if image_ids is None:
        texts = [caption for _, caption in files[0].captions]
    else:
        texts = [caption for file in files for image_id, caption in file.captions if image_id in image_ids]
    return train_tokenizer(texts, size).to_str()


@pytest.mark.parametrize("kind", ["lists of ids", "Karpathy's"])
def test_the_tokenizer_learns_from_the_split_s_training_captions_only(
    raw: dict[str, Path], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture
) -> None:
    path, ids = dealt_anew(raw, tmp_path, kind)
    assert text_of(raw) == trained_on(raw, None)
    process(raw, "--split-file", path)
    assert text_of(raw) == trained_on(raw, ids["train"]) != trained_on(raw, None)
    capsys.readouterr()
    process(raw)  # what it was made from stays, until other words are said
    process(raw, "--split-file", path)
    assert capsys.readouterr().out.count("nothing to do") == 2
    process(raw, "--vocabulary-size", 270)
    assert text_of(raw) == trained_on(raw, ids["train"], 270)
    process(raw, "--split-file", "coco")
    assert text_of(raw) == trained_on(raw, None, 270)


def test_a_split_file_that_is_gone_is_missed_only_where_it_is_needed(
    raw: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, _ = dealt_anew(raw, tmp_path)
    process(raw, "--split-file", path)
    path.unlink()
    capsys.readouterr()
    process(raw)
    assert "nothing to do" in capsys.readouterr().out
    raw["val_captions"].write_text(raw["val_captions"].read_text().replace("square", "circle"))
    before = raw["tokenizer"].read_bytes()
    with pytest.raises(UsageError, match=r"its split file .*splits\.json is gone .*--split-file coco"):
        process(raw)
    assert raw["tokenizer"].read_bytes() == before
    process(raw, "--split-file", "coco")
    assert text_of(raw) == trained_on(raw, None)


def test_a_split_file_of_other_data_or_without_training_captions_is_named(
    raw: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "splits.json"
    train, val = (read_captions(raw[f"{split}_captions"]).image_ids for split in ("train", "val"))
    path.write_text(json.dumps({"train": [12345], "val": val}))
    with pytest.raises(UsageError, match=r"splits\.json: 1 of its 5 pictures are in neither"):
        process(raw, "--split-file", path)
    content = json.loads(raw["train_captions"].read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != train[0]]
    raw["train_captions"].write_text(json.dumps(content))
    path.write_text(json.dumps({"train": train[:1], "val": val}))
    with pytest.raises(UsageError, match=r"no image that .*splits\.json gives to train has a caption"):
        process(raw, "--split-file", path)


def options_named(message: str) -> list[str]:
    (command,) = re.findall(r"`python process_coco\.py ([^`]*)`", message)
    return shlex.split(command)


def test_a_run_with_another_split_than_the_tokenizer_s_is_refused_with_the_command_that_helps(
    raw: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Karpathy's test captions, most of which lie in train2017, had taught the tokenizer."""
    path, _ = dealt_anew(raw, tmp_path)
    train_mae(raw["data"], tmp_path / "out", write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    config = write_config(tmp_path, "captioner_config.yaml")
    options = ["-p", "last", "--data", raw["data"], "--out", tmp_path / "out", "--config", config]
    for flags, of, run in (
        (["--split-file", path], "COCO's 2017 split", "the split file splits.json"),
        ([], "the split file splits.json", "COCO's 2017 split"),
    ):
        code, message = ended(train_captioner.main, *options, *flags, capsys=capsys)
        assert code == 2
        assert f"trained on the training captions of {of}, and this run is on {run}: run `python" in message
        process_coco.main(options_named(message))
        split_file = CocoData.open(raw, path if flags else None).split_file
        require_tokenizer_of(split_file, path if flags else None, raw)


def test_a_run_goes_on_with_its_own_tokenizer(raw: dict[str, Path], tmp_path: Path) -> None:
    """One that was begun with the tokenizer of all of train2017 is not stopped in its middle."""
    path, _ = dealt_anew(raw, tmp_path)
    ours = raw["record"].read_text()
    raw["record"].unlink()  # as an older version left it: nothing says of what captions
    out, config = tmp_path / "out", write_config(tmp_path, "captioner_config.yaml", context_length=90)
    split = ["--epochs", "1", "--split-file", str(path)]
    train_mae(raw["data"], out, write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    train_captions(raw["data"], out, config, "-p", "last", *split)
    raw["record"].write_text(ours)
    train_captions(raw["data"], out, config, "-c", "last", *split, "--epochs", "2")


def test_beside_a_tokenizer_of_one_s_own_a_split_file_is_worth_a_note(
    raw: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, _ = dealt_anew(raw, tmp_path)
    raw["tokenizer"].write_text(tiny_tokenizer().to_str())
    process(raw)
    capsys.readouterr()
    require_tokenizer_of(CocoData.open(raw, path).split_file, path, raw)
    assert "tokenizer.json was not made here; to be strict, " in capsys.readouterr().err
    require_tokenizer_of(None, None, raw)
    assert capsys.readouterr().err == ""
    with pytest.raises(UsageError, match=r"tokenizer\.json was not made here, and is not replaced"):
        process(raw, "--split-file", path)
