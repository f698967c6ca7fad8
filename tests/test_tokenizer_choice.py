"""The tokenizer of a data root: of a size that is asked for, or the user's own, which nothing replaces."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import pre_tokenizers

import process_coco
import train_captioner
from coco import tokenizer_choice
from coco.tokenizer import SPECIAL_TOKENS, load_tokenizer
from process_coco import main
from support.command_line import VOCABULARY_SIZES
from support.errors import UsageError
from tests.conftest import tiny_tokenizer
from tests.test_process_coco import load, snapshot


@pytest.fixture
def raw(tiny_coco: dict[str, Path]) -> dict[str, Path]:
    """A data root with images and captions, and nothing processed."""
    for path in tiny_coco["processed"].iterdir():
        path.unlink()
    return tiny_coco


def process(where: dict[str, Path], *flags: str) -> None:
    main(["--captions-only", "--data", str(where["data"]), *flags])


def pieces(where: dict[str, Path]) -> int:
    return load_tokenizer(where["tokenizer"]).get_vocab_size()


def require_lists_of(where: dict[str, Path]) -> None:
    """The processed lists are those of the tokenizer that is there, of both splits."""
    tokenizer = load_tokenizer(where["tokenizer"])
    for split in ("train", "val"):
        texts = [text for _, captions in load(where[f"{split}_im2capts"]) for text in captions]
        tokenized = [entry["caption"] for entry in load(where[f"{split}_tokenized"])]
        assert tokenized == [tokenizer.encode(text).ids for text in texts]


def test_the_least_vocabulary_is_all_bytes_and_the_special_tokens() -> None:
    assert VOCABULARY_SIZES[0] == len(pre_tokenizers.ByteLevel.alphabet()) + len(SPECIAL_TOKENS)


def test_a_vocabulary_is_of_the_size_asked_for_and_stays_so(
    raw: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    process(raw)
    assert pieces(raw) > 280
    for size in (270, 260):
        process(
            raw, "--vocabulary-size", str(size), "--splits", "train"
        )  # val is tokenized anew all the same
        assert pieces(raw) == size
        require_lists_of(raw)
    before = snapshot(raw["processed"])
    capsys.readouterr()
    process(raw)  # another run, which says nothing of a size, takes nothing back
    process(raw, "--vocabulary-size", "260")
    assert capsys.readouterr().out.count("nothing to do") == 2
    assert snapshot(raw["processed"]) == before


def test_a_tokenizer_of_one_s_own_is_kept_and_used(
    raw: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    """It was overwritten without a word."""
    own, own_pieces = tiny_tokenizer().to_str(pretty=True), tiny_tokenizer().get_vocab_size()
    for _ in range(2):  # in place of none, and in place of ours
        raw["tokenizer"].write_text(own)
        process(raw)
        assert raw["tokenizer"].read_text() == own
        require_lists_of(raw)
        assert (
            f"{raw['tokenizer']} was not made here: it is kept and used ({own_pieces} pieces)"
            in capsys.readouterr().out
        )
        process(raw)
        assert "nothing to do" in capsys.readouterr().out
        with pytest.raises(
            UsageError, match=r"tokenizer\.json was not made here, and is not replaced: move it"
        ):
            process(raw, "--vocabulary-size", "300")
        assert raw["tokenizer"].read_text() == own
        raw["tokenizer"].unlink()
        process(raw)
        assert pieces(raw) > 280
        require_lists_of(raw)


def without_template(text: str) -> str:
    return json.dumps(json.loads(text) | {"post_processor": None})


def with_special_tokens_as_words(text: str) -> str:
    content = json.loads(text)
    for token in content["added_tokens"]:
        token["special"] = False
    return json.dumps(content)


UNSOUND = {
    "damaged": (lambda text: text[:-9], "is not a tokenizer"),
    "no special token": (lambda text: text.replace("<PAD>", "<pad>"), "lacks <PAD>"),
    "no template": (without_template, "does not put <SOS> before a caption"),
    "special tokens as words": (with_special_tokens_as_words, "does not leave <SOS> and <EOS> out"),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_a_tokenizer_of_one_s_own_that_cannot_be_used_is_named_and_kept(
    raw: dict[str, Path], kind: str
) -> None:
    change, message = UNSOUND[kind]
    content = change(tiny_tokenizer().to_str())
    raw["tokenizer"].write_text(content)
    with pytest.raises(
        UsageError, match=rf"tokenizer\.json {message}.*; it was not made here: mend it, or move"
    ):
        process(raw)
    assert raw["tokenizer"].read_text() == content


@pytest.mark.parametrize("known", [False, True])
def test_processed_lists_of_one_s_own_are_not_replaced(raw: dict[str, Path], known: bool) -> None:
    process(raw)
    whole = raw["val_tokenized"].read_bytes()
    if not known:
        raw["record"].unlink()
    process(raw)  # what is there is what would be written
    raw["val_tokenized"].write_bytes(b"somebody's work")
    if not known:
        raw["record"].unlink()
    with pytest.raises(
        UsageError, match=r"val_tokenized\.pt was not made here, and is not replaced: move it away"
    ):
        process(raw)
    assert raw["val_tokenized"].read_bytes() == b"somebody's work"
    raw["val_tokenized"].unlink()
    process(raw)
    assert raw["val_tokenized"].read_bytes() == whole


@pytest.mark.parametrize("moment", ["before the tokenizer is written", "before the record is"])
def test_what_a_killed_run_left_is_not_taken_for_one_s_own(
    raw: dict[str, Path], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another tokenizer, at first and later."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def killed_afterward(structure: list, path: Path, save: Callable = process_coco.save) -> None:
        save(structure, path)
        if "tokenized" in path.name:
            killed()

    for size in (280, 270):
        with monkeypatch.context() as patch:
            if moment == "before the record is":
                patch.setattr(process_coco, "save", killed_afterward)
            else:
                patch.setattr(tokenizer_choice, "replacing", killed)
            with pytest.raises(KeyboardInterrupt):
                process(raw, "--vocabulary-size", str(size))
        process(raw, "--vocabulary-size", str(size - 5))  # no file is as this run would have written it
        assert pieces(raw) == size - 5
        require_lists_of(raw)


def named_options(message: str) -> list[str]:
    """The options of the process_coco.py that an error names."""
    (command,) = re.findall(r"`python process_coco\.py ([^`]*)`", message)
    return shlex.split(command)


def chosen(where: dict[str, Path], vocabulary_size: int) -> str:
    config = SimpleNamespace(vocabulary_size=vocabulary_size)
    run = SimpleNamespace(paths=where, config=config, checkpoint=None)
    return train_captioner.choose_tokenizer(run).to_str()


@pytest.mark.parametrize("own", [False, True])
def test_a_tokenizer_that_is_too_large_is_refused_with_a_command_that_makes_another(
    raw: dict[str, Path], own: bool
) -> None:
    """It said "train the tokenizer again", for which there was no command."""
    process(raw)
    if own:
        raw["tokenizer"].write_text(raw["tokenizer"].read_text() + "\n")
        process(raw)
    with pytest.raises(
        UsageError, match=r"pieces, and vocabulary_size allows 270: raise it in a YAML"
    ) as error:
        chosen(raw, 270)
    assert ("move this tokenizer, which was not made here, away and run" in str(error.value)) == own
    if own:
        raw["tokenizer"].rename(raw["data"] / "elsewhere.json")
    main(named_options(str(error.value)))
    assert load_tokenizer(raw["tokenizer"]).to_str() == chosen(raw, 270)
    with pytest.raises(UsageError, match=r"allows 99: raise it in a YAML that --config names$"):
        chosen(raw, 99)  # no tokenizer is so small


def test_lists_of_another_tokenizer_are_refused_with_the_command_that_makes_them(
    raw: dict[str, Path],
) -> None:
    process(raw)
    raw["tokenizer"].write_text(tiny_tokenizer().to_str())
    with pytest.raises(
        UsageError, match=r"train_tokenized\.pt was made by another tokenizer than .*"
    ) as error:
        chosen(raw, 5000)
    main(named_options(str(error.value)))
    assert chosen(raw, 5000) == load_tokenizer(raw["tokenizer"]).to_str()
    require_lists_of(raw)
