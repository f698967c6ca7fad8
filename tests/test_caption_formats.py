"""Caption files in the forms in which they are published, with the rows that break simple readers."""

import json
from pathlib import Path

import pytest

from own_data.caption_formats import read_caption_file, read_split_list
from own_data.caption_tables import split_of_folder, split_of_name
from support.errors import UsageError

AWKWARD = (
    "A dog runs .",
    "red, green, and blue kites",
    'a sign that says "STOP, now"',
    '"Hello" says a man, waving',
    "two|three bars",
    "2 birds; 3 cats",
    "Ein Mädchen – 東京",
)


def rows_of(path: Path, column: str | None = None) -> list[tuple[str, str]]:
    file = read_caption_file(path, column)
    assert file is not None
    return [(entry.name, caption.strip()) for entry in file.entries for caption in entry.captions]


def expected(captions: tuple[str, ...] = AWKWARD) -> list[tuple[str, str]]:
    return [(f"{number // 2}_a.jpg", caption) for number, caption in enumerate(captions)]


def written(path: Path, lines: list[str], end: str = "\n", last: str = "", encoding: str = "utf-8") -> Path:
    path.write_bytes((end.join(lines) + last).encode(encoding))
    return path


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in '",;\n') else text


ENDS = [("\n", "\n", "utf-8"), ("\r\n", "", "utf-8-sig"), ("\n", "\n\n\n", "utf-16")]


@pytest.mark.parametrize(("end", "last", "encoding"), ENDS)
def test_tables_with_commas_quoted_and_not(tmp_path, end, last, encoding):
    """Flickr8k's captions.txt quotes captions with commas; copies of it that went through a script do not."""
    rows = expected()
    for number, quote in enumerate((quoted, str)):
        lines = ["image,caption", *(f"{name},{quote(text)}" for name, text in rows)]
        lines.insert(3, "")
        assert rows_of(written(tmp_path / f"{number}.txt", lines, end, last, encoding)) == rows


@pytest.mark.parametrize(("end", "last", "encoding"), ENDS)
def test_lines_with_tabs_and_numbers(tmp_path, end, last, encoding):
    """Flickr8k.token.txt and results_20130124.token; tabs in a caption belong to it."""
    rows = [*expected(), ("9_a.jpg", "one\ttab")]
    lines = [f"{name}#{number % 5}\t{text}" for number, (name, text) in enumerate(rows)]
    lines.insert(2, "  ")
    path = written(tmp_path / "results_20130124.token", lines, end, last, encoding)
    assert rows_of(path) == rows


@pytest.mark.parametrize(
    "header", ["image_name| comment_number| comment", "age_name| comment_number| comment"]
)
@pytest.mark.parametrize(("end", "last", "encoding"), ENDS)
def test_tables_with_bars_and_the_row_that_lacks_one(tmp_path, header, end, last, encoding):
    rows = [*expected(), ("9_a.jpg", "A dog runs across the grass .")]
    lines = [header, *(f"{name}| {number % 5}| {text}" for number, (name, text) in enumerate(rows))]
    lines[-1] = "9_a.jpg| 4   A dog runs across the grass ."
    assert rows_of(written(tmp_path / "results.csv", lines, end, last, encoding)) == rows


def test_a_quotation_mark_that_is_never_closed_swallows_no_rows(tmp_path):
    lines = ["image,caption", '1.jpg,"a man, old', "2.jpg,a cat", '3.jpg,"a dog, red"', '4.jpg,a "bird"']
    rows = rows_of(written(tmp_path / "captions.txt", lines))
    assert rows == [
        ("1.jpg", '"a man, old'),
        ("2.jpg", "a cat"),
        ("3.jpg", "a dog, red"),
        ("4.jpg", 'a "bird"'),
    ]
    lines = ["image,caption", '1.jpg,"a man', '2.jpg,a cat"', "3.jpg,a dog"]
    rows = rows_of(written(tmp_path / "pair.csv", lines))
    assert rows == [("1.jpg", '"a man'), ("2.jpg", 'a cat"'), ("3.jpg", "a dog")]


def test_a_quoted_caption_may_hold_line_ends(tmp_path):
    lines = ["file_name,width,text", '1.jpg,5,"two', 'lines, and ""more"""', "2.jpg,7,one"]
    rows = rows_of(written(tmp_path / "metadata.csv", lines))
    assert rows == [("1.jpg", 'two\nlines, and "more"'), ("2.jpg", "one")]


def test_rows_that_lack_a_field_are_counted(tmp_path):
    file = read_caption_file(written(tmp_path / "c.csv", ["image,caption", "1.jpg", "2.jpg,a cat", "junk"]))
    assert [entry.name for entry in file.entries] == ["2.jpg"]
    assert "2 rows lack a field" in file.notes[0]
    assert "1.jpg" in file.notes[0]


def test_latin_1_is_read_and_said(tmp_path):
    file = read_caption_file(
        written(tmp_path / "c.csv", ["image,caption", "1.jpg,Mädchen"], encoding="latin-1")
    )
    assert file.entries[0].captions == ["Mädchen"]
    assert "not UTF-8" in file.notes[0]


def test_metadata_of_the_hub(tmp_path):
    """One caption or a list, splits in a column, blank lines, and columns that are of no use here."""
    entries = [
        {"file_name": "a/1.png", "text": "one", "label": 3},
        {"file_name": "2.webp", "text": ["two", "and more"], "split": "validation"},
        {"file_name": "3.png", "text": None, "split": ""},
    ]
    path = written(tmp_path / "metadata.jsonl", [json.dumps(entry) for entry in entries] + ["", " "], "\r\n")
    found = read_caption_file(path).entries
    assert [(e.name, e.captions, e.split) for e in found] == [
        ("a/1.png", ["one"], None),
        ("2.webp", ["two", "and more"], "val"),
        ("3.png", [""], None),
    ]
    path = written(
        tmp_path / "list.csv", ["raw,sentids,split,filename", '"[""a, b"", ""c""]","[0, 1]",test,9.jpg']
    )
    assert read_caption_file(path).entries == [("9.jpg", ["a, b", "c"], "test", None)]
    lines = ["caption_0,image,caption_1", "one,1.jpg,two"]
    assert rows_of(written(tmp_path / "numbered.csv", lines)) == [("1.jpg", "one"), ("1.jpg", "two")]


def test_which_column_holds_the_captions_is_asked_for(tmp_path):
    several = written(tmp_path / "metadata.csv", ["file_name,text,description", "1.jpg,one,two"])
    with pytest.raises(UsageError, match="text, description: choose with --caption-column"):
        read_caption_file(several)
    assert rows_of(several, "Description") == [("1.jpg", "two")]
    path = written(
        tmp_path / "metadata.jsonl", [json.dumps({"file_name": "1.jpg", "prompt": "one", "seed": 7})]
    )
    with pytest.raises(UsageError, match="prompt, seed"):
        read_caption_file(path)
    assert rows_of(path, "prompt") == [("1.jpg", "one")]


def test_coco_with_any_names_and_ids(tmp_path):
    content = {
        "annotations": [
            {"image_id": 7.0, "caption": "one"},
            {"image_id": "x1", "caption": "two"},
            {"image_id": 7, "caption": None},
            {"image_id": 99, "caption": "nowhere"},
        ],
        "images": [{"id": 7, "file_name": "sub/a b.png"}, {"id": "x1", "file_name": "c.webp"}],
    }
    path = tmp_path / "my_captions.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert read_caption_file(path).entries == [
        ("sub/a b.png", ["one", ""], None, 7),
        ("c.webp", ["two"], None, None),
        ("image 99", ["nowhere"], None, 99),
    ]


@pytest.mark.parametrize("images", [{}, {"images": None}, {"images": []}])
def test_coco_that_lists_no_images_names_them_by_their_ids(tmp_path, images):
    annotations = [{"image_id": "7", "caption": "a dog"}, {"image_id": 8.0, "caption": "a cat"}]
    path = tmp_path / "captions_train.json"
    path.write_text(json.dumps(images | {"annotations": annotations}))
    entries = read_caption_file(path).entries
    assert [(entry.image_id, entry.captions) for entry in entries] == [(7, ["a dog"]), (8, ["a cat"])]


def test_karpathy_s_json(tmp_path):
    def image(name: str, split: str, **more: object) -> dict:
        return {
            "filename": name,
            "split": split,
            "sentences": [{"raw": f"of {name}", "tokens": ["of"]}],
            **more,
        }

    content = {
        "images": [
            image("1.jpg", "train", imgid=0),
            image("2.jpg", "restval", filepath="val2014", cocoid=22),
            image("3.jpg", "val"),
            image("4.jpg", "test"),
        ]
    }
    path = tmp_path / "dataset_flickr8k.json"
    path.write_text(json.dumps(content))
    assert read_caption_file(path).entries == [
        ("1.jpg", ["of 1.jpg"], "train", None),
        ("val2014/2.jpg", ["of 2.jpg"], "train", 22),
        ("3.jpg", ["of 3.jpg"], "val", None),
        ("4.jpg", ["of 4.jpg"], "test", None),
    ]


def test_what_is_no_caption_file_is_passed_over(tmp_path):
    """What lies beside Flickr8k's and COCO's captions: ratings, lists, word stems, boxes, prose."""
    others = {
        "readme.txt": ["If you use this corpus, please cite:", "", "somebody, 2013"],
        "ExpertAnnotations.txt": ["1_a.jpg\t2_b.jpg#2\t1\t1\t1"],
        "Flickr_8k.trainImages.txt": ["1_a.jpg", "2_b.jpg"],
        "Flickr8k.lemma.token.txt": ["1_a.jpg#0\ta dog run"],
        "instances_train2017.json": [
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 1}]}'
        ],
        "boxes.json": ['{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 1}]}'],
        "labels.csv": ["file_name,label", "1_a.jpg,dog"],
        "empty.txt": [""],
        "package.json": ['{"name": "x"}'],
        "broken.json": ['{"name": '],
        "notes.txt": ["{hello} is how the template begins", "1.jpg"],
    }
    for name, lines in others.items():
        assert read_caption_file(written(tmp_path / name, lines)) is None, name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("captions_train.json", '{"images": [', "not whole"),
        ("metadata.jsonl", '{"file_name": "1.jpg", "text": "a"}\n{"file_name": ', "line 2"),
        ("c.json", '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]}', "file_name"),
        (
            "c.json",
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}],'
            ' "annotations": [{"caption": 1}]}',
            "has the id of",
        ),
        ("c.csv", "image,caption,split\n1.jpg,a dog,holdout\n", "'holdout' is no split"),
        (
            "c.jsonl",
            '{"image": "1.jpg", "caption": {"en": "a dog"}}',
            "a caption is no text: {'en': 'a dog'}",
        ),
        ("c.jsonl", '{"image": "1.jpg", "caption": true}', "a caption is no text: True"),
        ("c.json", '{"image": "1.jpg", "caption": "a"}\n{"image": ', "line 2"),
    ],
)
def test_damage_is_one_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        read_caption_file(path)
    assert str(path) in str(error.value)


def test_lists_in_a_table_as_json_and_as_pandas_writes_them(tmp_path):
    """Of a list that Python has printed, the whole became one caption."""
    lists = [
        '["a dog", "it\'s a cat"]',
        "['a dog', \"it's a cat\"]",
        "[{'raw': 'a dog'}, {'raw': \"it's a cat\"}]",
    ]
    lines = [
        "image,captions",
        *(f"{n}.jpg,{quoted(text)}" for n, text in enumerate(lists)),
        "3.jpg,[sic] a bird",
        "4.jpg,[{[]: 1}]",
    ]
    rows = rows_of(written(tmp_path / "c.csv", lines))
    both = [(f"{n}.jpg", text) for n in range(3) for text in ("a dog", "it's a cat")]
    assert rows == [*both, ("3.jpg", "[sic] a bird"), ("4.jpg", "[{[]: 1}]")]
    (only,) = read_caption_file(
        written(tmp_path / "c.jsonl", ['{"image": "1.jpg", "caption": [{"raw": "a dog"}, NaN, null, 7]}'])
    ).entries
    assert only.captions == ["a dog", "", "", "7"]


@pytest.mark.parametrize("name", ["data.json", "train.json", "captions.json", "metadata.jsonl"])
def test_json_objects_a_line_whatever_the_ending(tmp_path, name):
    """The hub's `to_json` takes any name; one in .json was called damaged, or not seen."""
    lines = ['{"file_name": "1.jpg", "text": "a dog"}', "", '{"file_name": "2.jpg", "text": "a cat"}']
    assert rows_of(written(tmp_path / name, lines, last="\n")) == [("1.jpg", "a dog"), ("2.jpg", "a cat")]


def test_split_lists_and_the_words_for_splits(tmp_path):
    path = written(tmp_path / "Flickr_8k.devImages.txt", ["1_a.jpg", "", " p (0)+b.jpg "], "\r\n")
    assert read_split_list(path) == ("val", ["1_a.jpg", "p (0)+b.jpg"])
    assert read_split_list(written(tmp_path / "notes.txt", ["1_a.jpg"])) is None
    for name, split in {
        "captions_train2017": "train", "captions_val2014": "val", "dataset_test": "test", "validation": "val",
        "evaluation": None, "valley": None, "train_val": None, "Flickr_8k.testImages": "test", "latest": None,
    }.items():  # fmt: skip
        assert split_of_name(name) == split, name
    assert split_of_folder("data/val2014/1.jpg") == "val"
    assert split_of_folder("test.jpg") is None
    assert split_of_folder("latest/1.jpg") is None
