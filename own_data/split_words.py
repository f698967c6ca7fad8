"""The words by which data sets name their splits, in a column, in a file's name and in a folder's."""

import re

SPLIT_NAMES = {
    "train": "train", "training": "train", "restval": "train", "val": "val", "valid": "val",
    "validation": "val", "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
IN_NAME = re.compile(
    r"(?<![a-z])(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?))"
    r"(?:images?)?(?![a-z])"
)


def split_of_word(word: str) -> str | None:
    """train, val or test, for any of the words in use; None for another word."""
    return SPLIT_NAMES.get(word.strip().lower())


def split_of_name(name: str) -> str | None:
    """The split that a file's name speaks of: `captions_val2014.json`, `Flickr_8k.trainImages.txt`, ..."""
    found = {match.lastgroup for match in IN_NAME.finditer(name.lower())}
    return found.pop() if len(found) == 1 else None


def split_of_folder(path: str) -> str | None:
    """The split whose folder a relative path leads through: `train/`, `validation/`, `val2014/`, ..."""
    for folder in reversed(path.split("/")[:-1]):
        split = split_of_word(re.sub(r"[_-]?\d{4}$", "", folder))
        if split:
            return split
    return None
