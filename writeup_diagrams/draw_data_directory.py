"""Draws data_directory.svg: what lies where after `process_coco.py`, and which of its sections puts it there.

python writeup_diagrams/draw_data_directory.py
"""

from pathlib import Path

from sheet import HERE, box, element, text, write

SECTIONS = (
    ("1", "download", "blue"),
    ("2", "train the tokenizer", "orange"),
    ("3", "tokenize the captions", "green"),
)
# (depth, name, section, what it is); what is code is a tuple of lines, and goes below the name
ENTRIES = (
    (0, "data/coco/", None, "another root with --data or COCO_ROOT"),
    (1, "train2017/", 0, "118,287 pictures: 000000000009.jpg ..."),
    (1, "val2017/", 0, "5,000 pictures"),
    (1, "test2017/", 0, "40,670 pictures, without captions"),
    (1, "unlabeled2017/", 0, "123,403 pictures, without captions"),
    (1, "annotations/", 0, ""),
    (2, "captions_train2017.json", 0, ""),
    (
        2, "captions_val2017.json", 0,
        ('{"images": [{"id": 9, ...}, ...],', ' "annotations": [{"image_id": 9, "caption": "..."}, ...]}'),
    ),
    (1, "processed/", None, ""),
    (2, "tokenizer.json", 1, "5,000 byte pairs, lower case, no accents"),
    (2, "{train,val}_tokenized.pt", 2, ('[{"caption": [1, 260, ..., 2], "image_id": 9}, ...]',)),
    (2, "{train,val}_im2capts.pt", 2, ('[(9, ["...", "...", "...", "...", "..."]), ...]',)),
    (2, "{train,val,unlabeled}_image_ids.pt", 2, ("[9, 25, 30, ...]",)),
    (2, "record.json", None, "what is done: a second run ends at once"),
)  # fmt: skip
WIDTH, LEFT, TOP, ROW, LINE, INDENT, NOTES = 580, 20, 82, 31, 18, 26, 224


def main(folder: Path = HERE) -> None:
    shapes = []
    x = LEFT
    for number, name, colour in SECTIONS:
        shapes += [box(x, 20, 24, 24, colour), text(x + 12, 37, number, "middle"), text(x + 33, 37, name)]
        x += 33 + 8 * len(name) + 20
    y, last = TOP, {}  # where each depth's folder stands
    for depth, name, section, note in ENTRIES:
        x = LEFT + depth * INDENT
        last[depth] = y
        if depth:
            branch = f"M{x - 16} {last[depth - 1] + 8} V{y - 5} H{x - 4}"
            shapes.append(element("path", class_="line", d=branch))
        width = 8 * len(name) + 16
        shapes.append(box(x, y - 18, width, 25, SECTIONS[section][2] if section is not None else "grey", 5))
        shapes.append(text(x + 8, y - 1, name, "code"))
        if isinstance(note, str):
            shapes.append(text(NOTES, y - 1, note, "soft"))
            y += ROW
        else:
            lines = enumerate(note, 1)
            shapes += [text(x + 8, y + 6 + number * LINE, line, "code soft") for number, line in lines]
            y += ROW + LINE * len(note) + 4
    write(
        folder / "data_directory.svg", WIDTH, y - ROW + 28,
        "The data directory after process_coco.py, coloured by the section that writes each part", *shapes,
    )  # fmt: skip


if __name__ == "__main__":
    main()
