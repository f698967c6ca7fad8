"""What the report of an evaluation shows, chosen and written: reconstructions, best and worst captions.

How the page looks is in `scoring/report.py`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from captioner import Attention, Captioner
from image_transforms import EvaluationTransform, load_image
from reconstruction import reconstructor_from_state
from scoring.assessment import with_references
from scoring.comparison import OFFICIAL, Scoring
from scoring.metrics import image_scores, image_statistics
from scoring.report import page
from support.files import replacing

SHOWN_PICTURES = 4  # reconstructed
SHOWN_SIZE = 320  # pixels, side of an image that is shown beside its caption


class Example(NamedTuple):
    """An image with the caption that the model wrote, and what to judge it by."""

    image_id: int
    picture: Image.Image  # the central square, which is what the model saw, at a size to look at
    caption: str
    references: list[str]
    figures: dict[str, float]  # the metrics of this caption alone, as fractions
    attention: Attention


def examples(
    captioner: Captioner,
    place: Callable[[int], Path],
    references: Mapping[int, list[str]],
    captions: Mapping[int, str],
    count: int = 3,
    scoring: Scoring = OFFICIAL,
) -> dict[str, list[Example]]:
    """The captions of highest CIDEr, those in the middle, and those of lowest: chosen by figure, not by hand.

    Args:
        captioner: the model that wrote them.
        place: where the image of an image id lies.
        references: for each image id, what people wrote; an image without any is passed over.
        captions: for the same ids, what the model wrote.
        count: how many of each kind, fewer where there are not enough.
        scoring: how captions are compared.

    Returns:
        "best", "median" and "worst", each from better to worse.
    """
    known = with_references(references)
    hypotheses = {image_id: captions[image_id] for image_id in known}
    statistics = image_statistics(known, hypotheses, scoring.tokenize)
    figures = image_scores(statistics)
    ranking = sorted(range(len(known)), key=lambda row: (-float(figures["CIDEr"][row]), row))
    count = min(count, len(ranking) // 3) or 1
    middle = (len(ranking) - count) // 2
    chosen = {"best": ranking[:count], "median": ranking[middle : middle + count], "worst": ranking[-count:]}

    def example(row: int) -> Example:
        image_id = statistics.image_ids[row]
        picture = load_image(place(image_id))
        image = captioner.transform(picture)
        # Written once more, token by token: its text alone can take more tokens than the decoder reads.
        [[best, *_]] = captioner.decode(image[None])
        caption = captions[image_id]
        return Example(
            image_id,
            to_pil_image(EvaluationTransform(SHOWN_SIZE)(picture)),
            caption,
            known[image_id],
            {metric: float(values[row]) for metric, values in figures.items()},
            captioner.attention(image, best if captioner.text(best) == caption else caption),
        )

    return {kind: [example(row) for row in rows] for kind, rows in chosen.items()}


def write_report(
    path: Path,
    captioner: Captioner,
    state: Mapping[str, Any],
    encoder: Mapping[str, Any] | None,
    place: Callable[[int], Path],
    references: Mapping[int, list[str]],
    captions: Mapping[int, str],
    assessment: Mapping[str, Any],
    scoring: Scoring = OFFICIAL,
) -> None:
    """Writes the report of one evaluation as a single HTML page.

    Args:
        path: the file.
        captioner: the model that wrote the captions.
        state: what its checkpoint holds.
        encoder: what the encoder's checkpoint holds; None leaves its curves and reconstructions out.
        place: where the image of an image id lies.
        references: for each image id, what people wrote.
        captions: for the same ids, what the model wrote.
        assessment: what the metrics JSON holds.
        scoring: how captions are compared.
    """
    stages = ({"encoder": encoder} if encoder else {}) | {"captioner": state}
    reconstructions = []
    if encoder:
        reconstructor = reconstructor_from_state(encoder, captioner.device)
        pictures = [
            reconstructor.transform(load_image(place(i))) for i in sorted(references)[:SHOWN_PICTURES]
        ]
        views = reconstructor.reconstruct(torch.stack(pictures))[:4]
        reconstructions = [[to_pil_image(view) for view in of_one] for of_one in zip(*views)]
    html = page(
        assessment,
        {stage: contents["progress"]["history"] for stage, contents in stages.items()},
        reconstructions,
        examples(captioner, place, references, captions, scoring=scoring),
        {stage: contents["config"] for stage, contents in stages.items()},
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
