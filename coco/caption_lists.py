"""Making the lists that `process_coco.py` leaves in `processed/`: images, their captions, the tokens."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from coco.annotations import Captions, read_captions
from support.errors import UsageError
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

    Raises:
        UsageError: no caption is left.
    """
    from coco.tokenizer import load_tokenizer, losing_accents

    read = read_captions(where[f"{split}_captions"])
    pictures = pictures or read.image_ids
    im2capts: dict[int, list[str]] = {image_id: [] for image_id in pictures}
    kept = [(image_id, caption) for image_id, caption in read.captions if image_id in im2capts]
    if not kept:
        raise UsageError(_why_none(split, where, read))
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


def _why_none(split: str, where: Mapping[str, Path], read: Captions) -> str:
    captions, folder = where[f"{split}_captions"], where[f"{split}_images"]
    if not read.captions:
        return f"{captions} holds no caption: add some, or leave {split} out with --splits"
    ids = ", ".join(str(image_id) for image_id, _ in read.captions[:5]) + " ..." * (len(read.captions) > 5)
    return (
        f"none of the {len(read.captions):,} captions in {captions} is of an image in {folder}: they are of "
        f"images {ids}, and the file of image 7 is 000000000007.jpg: rename the files, or let "
        "`python process_coco.py --own DIR` make a data root"
    )


def report_losses(split: str, read: Captions, im2capts: dict[int, list[str]]) -> None:
    """Says what the caption file holds that is not used."""
    missing = [image_id for image_id in read.image_ids if image_id not in im2capts]
    losses = {
        "captions are blank; they are of the pictures": read.blank,
        "captions are of pictures that are not there": [i for i, _ in read.captions if i not in im2capts],
        "pictures are listed but not there": missing,
    }
    for what, ids in losses.items():
        if ids:
            print(f"{split}: {len(ids):,} {what}: {', '.join(map(str, ids[:5]))}{' ...' * (len(ids) > 5)}")
    if missing:
        names = ", ".join(f"{image_id:012d}.jpg" for image_id in missing[:5]) + " ..." * (len(missing) > 5)
        print(
            f"warning: {split}: {len(missing):,} of {len(read.image_ids):,} images that the captions list "
            f"are not there: {names}: training goes on without them; put them there, or remove their entries",
            file=sys.stderr,
        )


def require_ours(structures: Sequence[list], files: Sequence[Path], lengths: Sequence[int] | None) -> None:
    """Looks, before lists are written, whether files of these names are somebody else's.

    Args:
        structures: what is to be written.
        files: where.
        lengths: of the files as we left them, bytes; None where we were about to write them.

    Raises:
        UsageError: a file of another length holds something else.
    """
    for structure, file, length in zip(structures, files, lengths or []):
        if file.exists() and file.stat().st_size not in (0, length) and not _holds(file, structure):
            raise UsageError(
                f"{file} was not made here, and is not replaced: move it away, and run this again"
            )


def _holds(file: Path, structure: list) -> bool:
    import torch

    try:
        return torch.load(file, weights_only=True) == structure
    except Exception:  # of whatever kind: a damaged archive breaks its reader in many ways
        return False


def save(structure: list, path: Path) -> None:
    import torch  # here, because it takes seconds to import and a second run need not wait for them

    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save(structure, file)
