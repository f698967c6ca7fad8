"""Making the lists that `process_coco.py` leaves in `processed/`: images, their captions, the tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from support.annotations import Captions, read_captions
from support.files import replacing


def caption_structures(split: str, where: Mapping[str, Path], pictures: list[int]) -> Sequence[list]:
    """A split's three structures.

    Args:
        split: train or val.
        where: the file locations.
        pictures: ids of the pictures that are there, ascending; where none is, the caption file says which.

    Returns:
        The picture ids; `(image_id, [captions])` for each of them; `{"caption": [ids], "image_id": id}` for
        each caption, whole, from <SOS> to <EOS>.
    """
    from support.tokenizer import load_tokenizer, losing_accents

    read = read_captions(where[f"{split}_captions"])
    pictures = pictures or read.image_ids
    im2capts: dict[int, list[str]] = {image_id: [] for image_id in pictures}
    kept = [(image_id, caption) for image_id, caption in read.captions if image_id in im2capts]
    for image_id, caption in kept:
        im2capts[image_id].append(caption)
    tokenizer, tokenized = load_tokenizer(where["tokenizer"]), []
    for start in range(0, len(kept), 10_000):  # an encoding holds far more than the ids that we keep
        batch = kept[start : start + 10_000]
        encodings = tokenizer.encode_batch_fast([caption for _, caption in batch])
        tokenized += [
            {"caption": code.ids, "image_id": image_id} for code, (image_id, _) in zip(encodings, batch)
        ]
    print(f"{split}: {len(pictures):,} pictures, {len(kept):,} captions")
    if losing := losing_accents(tokenizer, [caption for _, caption in kept]):
        print(f"{split}: {len(losing):,} captions lose their accents; with --keep-accents they keep them")
    report_losses(split, read, im2capts)
    return pictures, list(im2capts.items()), tokenized


def report_losses(split: str, read: Captions, im2capts: dict[int, list[str]]) -> None:
    """Says what the caption file holds that is not used."""
    losses = {
        "captions are blank; they are of the pictures": read.blank,
        "captions are of pictures that are not there": [i for i, _ in read.captions if i not in im2capts],
        "pictures are listed but not there": [i for i in read.image_ids if i not in im2capts],
    }
    for what, ids in losses.items():
        if ids:
            print(f"{split}: {len(ids):,} {what}: {', '.join(map(str, ids[:5]))}{' ...' * (len(ids) > 5)}")


def save(structure: list, path: Path) -> None:
    import torch  # here, because it takes seconds to import and a second run need not wait for them

    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(structure, file)
