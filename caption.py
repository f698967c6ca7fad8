"""Captions your own pictures with a trained captioner.

    python caption.py -c last my_picture.jpg              one picture, or many, or folders of them
    python caption.py -c checkpoint30.pt --beams 1 photos/
    python caption.py -c last --n-best 3 - < my_picture.jpg
    python caption.py -c last --explain sheets/ photos/   draws where it looked for each word
    python caption.py -c last --json photos/ > captions.json

A checkpoint alone is enough: model, tokenizer and picture transform are rebuilt from it.  How sure it is of a
caption it can say once evaluate_captioner.py has measured that on val, in a file beside the checkpoint.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from tokenizers import Tokenizer
from torchvision.transforms.v2.functional import to_pil_image

from coco_loader import ImgFirstDataset, load_image
from image_captioner import build_captioner
from image_transforms import EvaluationTransform, central_square, normalize
from paths import chosen, image_name
from support import calibration as calibrations
from support import checkpoints, command_line, interrupts
from support.attention_sheet import PICTURE_SIDE, attention_sheet
from support.calibration import Calibration
from support.configuration import at_least, bounded, config_from_dict, positive
from support.contents import require_weights
from support.devices import autocast, choose_precision
from support.errors import RunError, UsageError
from support.files import replacing, require_place
from support.tokenizer import EOS, PAD, SOS, UNK, parse_tokenizer, words_of
from transformer_components import BeamSearchOptions, Hypothesis, StackConfig, TransformerEncoderDecoder

BATCH_SIZE = 16  # pictures captioned at once
STDIN = Path("/dev/stdin")
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class Attention(NamedTuple):
    """Where a captioner looked as it wrote each word."""

    words: list[str]
    maps: torch.Tensor  # (words, h, w) over the patches of the picture's central square; each sums to 1


@dataclass
class Captioner:
    """A model with all that it takes to caption a picture."""

    model: TransformerEncoderDecoder
    tokenizer: Tokenizer
    transform: EvaluationTransform
    options: BeamSearchOptions
    device: torch.device
    precision: torch.dtype

    @property
    def pad_id(self) -> int:
        return self.tokenizer.token_to_id(PAD)

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The best caption of each picture, of whatever size and mode."""
        images = torch.stack([self.transform(picture) for picture in pictures])  # (B, 3, H, W) uint8
        return [self.text(best) for best, *_ in self.decode(images)]

    def decode(self, images: torch.Tensor) -> list[list[Hypothesis]]:
        """Beam search on transformed pictures (B, 3, H, W) uint8; each one's best hypothesis first.

        Pictures that do not fit in the GPU's memory together are decoded in two halves, and a note says so.
        """
        try:
            return self._search(images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        # Out here the error is gone, and with it the hold that its traceback has on what filled the memory.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        first, second = images.tensor_split(2)
        print(
            f"note: no memory to decode {len(images)} pictures at once, so it goes on with {len(first)}",
            file=sys.stderr,
        )
        return self.decode(first) + self.decode(second)

    def _search(self, images: torch.Tensor) -> list[list[Hypothesis]]:
        images = normalize(images.to(self.device))
        # A search can take longer than a scheduler waits, so it looks for signals at every token.
        hook = self.model.decoder.register_forward_pre_hook(lambda *_: interrupts.check())
        try:
            with autocast(self.device, self.precision):
                return self.model.generate(
                    images,
                    self.options,
                    start_token=self.tokenizer.token_to_id(SOS),
                    end_token=self.tokenizer.token_to_id(EOS),
                    forbidden_tokens=[self.tokenizer.token_to_id(token) for token in (PAD, SOS, UNK)],
                )
        finally:
            hook.remove()

    def text(self, hypothesis: Hypothesis) -> str:
        """The words of a hypothesis."""
        return self.tokenizer.decode(hypothesis.tokens)

    @torch.inference_mode()
    def attention(self, picture: Image.Image | torch.Tensor, caption: str | Hypothesis) -> Attention:
        """Where the decoder looked in a picture as it wrote each word of a caption.

        The picture and the whole caption go through the model once more, and the weights of the last
        layer's attention to the picture are averaged over heads.  The layers below look about more: in the
        sample model the best patches that hold half of a word's weight are 25 % of all in the last
        layer, 29 % in the mean of all layers.  Of a word in several pieces it is the mean over the pieces.

        Raises:
            ValueError: the caption is longer than the decoder's context.
        """
        text = isinstance(caption, str)
        tokens = self.tokenizer.encode(caption).ids[1:] if text else caption.tokens  # without <SOS>
        inputs = torch.tensor([[self.tokenizer.token_to_id(SOS), *tokens[:-1]]], device=self.device)
        weights: list[torch.Tensor] = []
        with autocast(self.device, self.precision):
            image = normalize(self.transform(picture)[None].to(self.device))
            self.model(image, inputs, weights)  # row t of the weights is of the step that wrote token t
        looked = weights[-1][0].float().mean(dim=0).cpu()  # (T, N)
        words = words_of(self.tokenizer, tokens)
        side = math.isqrt(looked.shape[1])
        maps = [looked[places].mean(dim=0).view(side, side) for _, places in words]
        return Attention(
            [word for word, _ in words], torch.stack(maps) if maps else looked.new_empty(0, side, side)
        )


def new_captioner(contents: dict[str, Any], device: torch.device) -> Captioner:
    """A captioner of the shape that a checkpoint's contents describe, its weights still random."""
    config, shape = contents["config"], contents["encoder"]
    tokenizer = parse_tokenizer(contents["tokenizer"], "the checkpoint's tokenizer")
    model = build_captioner(
        image_size=shape["image_size"],
        patch_size=shape["patch_size"],
        encoder=config_from_dict(shape["encoder"], StackConfig, "the checkpoint's encoder"),
        decoder=config_from_dict(config["decoder"], StackConfig, "the checkpoint's decoder"),
        vocabulary_size=tokenizer.get_vocab_size(),
        context_length=config["context_length"],
        tie_embeddings=config["tie_embeddings"],
    )
    return Captioner(
        model=model.to(device),
        tokenizer=tokenizer,
        transform=EvaluationTransform(shape["image_size"]),
        options=BeamSearchOptions(
            max_length=config["context_length"],
            num_beams=config["num_beams"],
            length_alpha=config["length_alpha"],
        ),
        device=device,
        precision=choose_precision(config["precision"], device),
    )


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """The sizes of the ViT, as a captioner's checkpoint keeps them."""

    image_size: int = positive()
    patch_size: int = positive()
    encoder: StackConfig


@dataclass(frozen=True, kw_only=True)
class CaptioningConfig:
    """The keys of a captioner's configuration without which it cannot caption."""

    decoder: StackConfig
    context_length: int = positive()
    tie_embeddings: bool
    num_beams: int = bounded(at_least=1, at_most=command_line.MOST_BEAMS)
    length_alpha: float = at_least(0)
    precision: Literal["auto", "float32", "bfloat16", "float16"]


def require_captioner(path: Path, state: dict[str, Any]) -> None:
    """Raises UsageError unless a checkpoint's sizes, tokenizer and weights are of one captioner."""
    needed = {field.name for field in fields(CaptioningConfig)}
    values = {key: value for key, value in state["config"].items() if key in needed}
    config = config_from_dict(values, CaptioningConfig, f"{path}: config")
    shape = config_from_dict(state["encoder"], EncoderShape, f"{path}: encoder")
    tokenizer = parse_tokenizer(state["tokenizer"], f"{path}: its tokenizer")
    require_weights(
        path,
        state["model"],
        shape.encoder.num_layers + config.decoder.num_layers,
        lambda: build_captioner(
            shape.image_size, shape.patch_size, shape.encoder, config.decoder,
            tokenizer.get_vocab_size(), config.context_length, config.tie_embeddings,
        ),
    )  # fmt: skip


def captioner_from_state(
    state: dict[str, Any], device: torch.device, num_beams: int | None = None
) -> Captioner:
    """The captioner whose checkpoint holds `state`, ready to use; `num_beams` replaces the checkpoint's."""
    try:
        captioner = new_captioner(state, device)
        captioner.model.load_state_dict(state["model"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"the checkpoint holds no captioner that fits together: {error}") from error
    if num_beams is not None:
        captioner.options = replace(captioner.options, num_beams=num_beams)
    captioner.model.eval()
    return captioner


def load_captioner(checkpoint: str | Path, device: str | torch.device = "cpu") -> Captioner:
    """Rebuilds a captioner from its checkpoint file alone.

    Raises:
        UsageError: there is no such file, it is damaged, or it is not a captioner's.
    """
    path = Path(checkpoint)
    state = checkpoints.load(path, "captioner")
    require_captioner(path, state)
    return captioner_from_state(state, torch.device(device))


def first_captions(captioner: Captioner, dataset: ImgFirstDataset, count: int = 4) -> dict[str, str]:
    """The captions of a data set's first pictures, by name: always the same ones, to watch them change."""
    items = [dataset[index] for index in range(min(count, len(dataset)))]
    decoded = captioner.decode(torch.stack([item.image for item in items]))
    return {image_name(item.image_id): captioner.text(best) for item, (best, *_) in zip(items, decoded)}


def calibration_path(checkpoint: Path) -> Path:
    """Where it stands how sure a captioner may be."""
    return checkpoint.with_name(f"{checkpoint.stem}_calibration.json")


def calibrated_for(checkpoint: Path, options: BeamSearchOptions) -> dict[str, Any]:
    """What a calibration holds for: this model, searching like this."""
    search = {"num_beams": options.num_beams, "length_alpha": options.length_alpha}
    return {"sha256": checkpoints.digest(checkpoint), **search}


class Picture(NamedTuple):
    """A picture to caption."""

    place: Path
    image: torch.Tensor  # (3, H, W) uint8, what the model sees
    square: Image.Image  # the same part of the picture, as large as a sheet shows it


def find_pictures(places: Sequence[str]) -> list[Path]:
    """The pictures named, and those lying in the folders named, in order of name."""
    found: list[Path] = []
    for place in places:
        path = STDIN if place == "-" else Path(place)
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
            if not inside:
                suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
                raise UsageError(f"{path}: no pictures in this folder ({suffixes})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path}: no such picture or folder")
    return found


def read_pictures(places: Sequence[Path], transform: EvaluationTransform) -> Iterator[Picture]:
    """Each readable picture; an unreadable one is named on stderr and left out."""
    for place in places:
        try:
            square = to_pil_image(central_square(load_image(place)))
        except (RunError, UsageError) as error:
            print(f"caption.py: {error}", file=sys.stderr)
            continue
        image = transform(square)
        square.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
        yield Picture(place, image, square)


def sheet_paths(out: Path, places: Iterable[Path]) -> dict[Path, Path]:
    """The file for each picture's sheet: `out` itself for one, else files in the folder `out`.

    Raises:
        UsageError: many pictures and one file.
    """
    places = list(dict.fromkeys(places))
    sheets, names = {}, Counter()
    for place in places:
        names[place.name] += 1  # the same name may lie in two folders
        number = f"-{names[place.name]}" if names[place.name] > 1 else ""
        sheets[place] = out / f"{place.name}{number}.png"
    if out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir():
        if len(places) > 1:
            raise UsageError(f"--explain {out}: one file for {len(places)} pictures; name a folder")
        sheets = {places[0]: out}
    for sheet in sheets.values():
        require_place(sheet)
    return sheets


def explain(captioner: Captioner, picture: Picture, best: Hypothesis, path: Path) -> None:
    """Draws where the captioner looked for each word of its caption."""
    sheet = attention_sheet(picture.square, *captioner.attention(picture.image, best))
    with replacing(path) as temporary:
        sheet.save(temporary, format=Image.registered_extensions()[path.suffix.lower()])


def described(
    captioner: Captioner, picture: Picture, hypotheses: list[Hypothesis], calibration: Calibration | None
) -> dict[str, Any]:
    """All that is known of a picture, as plain values."""
    best = hypotheses[0]
    result = {
        "picture": "-" if picture.place == STDIN else str(picture.place),
        "caption": captioner.text(best),
        "score": best.score,
        "mean_log_probability": best.mean_log_probability,
        "confidence": calibration and calibration(best.mean_log_probability),
    }
    if captioner.options.n_best > 1:
        result["n_best"] = [{"caption": captioner.text(h), "score": h.score} for h in hypotheses]
    return result


def as_text(result: dict[str, Any]) -> str:
    """What is printed of a picture: its caption, or its best ones with their scores."""
    sure = "" if result["confidence"] is None else f"  (confidence {result['confidence']:.2f})"
    if "n_best" not in result:
        return f"{result['picture']}: {result['caption']}{sure}"
    ranked = [f"  {entry['score']:8.4f}  {entry['caption']}" for entry in result["n_best"]]
    return "\n".join([f"{result['picture']}:{sure}", *ranked])


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.Parser(description="Caption pictures.")
    parser.add_argument(
        "-c", dest="checkpoint", metavar="CKPT", required=True, help="a path, a name, or `last`"
    )
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE_OR_FOLDER", help="`-` reads a picture from standard input"
    )
    parser.add_argument("--beams", type=command_line.beams, help="1 is greedy; default: the checkpoint's")
    parser.add_argument(
        "--n-best", metavar="K", type=command_line.beams, default=1, help="the K best captions, with scores"
    )
    parser.add_argument(
        "--explain",
        metavar="OUT",
        type=Path,
        help="draw where it looked: a folder, or a file for one picture",
    )
    parser.add_argument("--json", action="store_true", help="one JSON list of {picture, caption, score, ...}")
    command_line.add_place_options(parser)
    options = parser.parse_args(arguments)

    places = find_pictures(options.pictures)
    sheets = sheet_paths(options.explain, places) if options.explain else {}
    folder = chosen(options)["captioner_checkpoints"]
    path, state = checkpoints.load_named(folder, options.checkpoint, "captioner")
    require_captioner(path, state)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    captioner = captioner_from_state(state, device, options.beams)
    if options.n_best > captioner.options.num_beams:
        beams = captioner.options.num_beams
        raise UsageError(f"--n-best {options.n_best} is more than the {beams} beams searched; raise --beams")
    calibration = calibrations.load(calibration_path(path), calibrated_for(path, captioner.options))
    captioner.options = replace(captioner.options, n_best=options.n_best)

    if calibration is None:
        print(
            f"caption.py: no confidence yet: `python evaluate_captioner.py -c {path}` measures it on val",
            file=sys.stderr,
        )

    results = []
    pictures = read_pictures(places, captioner.transform)
    while batch := list(islice(pictures, BATCH_SIZE)):
        interrupts.check()
        decoded = captioner.decode(torch.stack([picture.image for picture in batch]))
        for picture, hypotheses in zip(batch, decoded):
            result = described(captioner, picture, hypotheses, calibration)
            results.append(result)
            if not options.json:
                print(as_text(result), flush=True)
            if sheets:
                explain(captioner, picture, hypotheses[0], sheets[picture.place])
    if options.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
    if len(results) < len(places):
        raise RunError(f"{len(places) - len(results)} of {len(places)} pictures could not be read")


if __name__ == "__main__":
    command_line.run(main)
