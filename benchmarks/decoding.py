"""How fast captions are found: beam search from pixels to token ids, no beam of which ends early.

The end token is out of every contestant's reach, so all do the same number of steps with all their beams.
"""

from collections.abc import Callable, Iterator

import torch

from benchmarks import floor, sizes
from benchmarks.measuring import Contestant, Row, Setting, compare
from benchmarks.peers import huggingface, original
from image_captioner import build_captioner
from image_transforms import normalize
from support import devices
from train_captioner import CaptionerConfig
from train_encoder import MaeConfig
from transformer_components.beam_search import BeamSearchOptions

BEAMS = 6
WHAT = "beam search"


def rows(setting: Setting) -> Iterator[Row]:
    """The search that scores a split, beside the peers'."""
    config, mae = sizes.captioner_config(setting), sizes.mae_config(setting)
    count, length = (64 if setting.on_gpu else 8), config.context_length
    images = sizes.random_images(setting, count)
    work = (config, mae, images, length, BEAMS)
    contestants = [Contestant("ours", lambda: beam_search(setting, *work))]
    if setting.original:
        contestants += original.in_each_precision(setting, lambda chosen: original.beam_search(chosen, *work))
    if setting.transformers:
        contestants.append(huggingface.beam_search(setting, *work))
    yield from compare(
        setting, WHAT, f"{count} images, {BEAMS} beams, {length} tokens", "images/s", count, contestants,
        floor.beam_search(config, mae, count, length, BEAMS),
    )  # fmt: skip


def curves(setting: Setting) -> Iterator[Row]:
    """The cost against batch, beams and length, ours alone."""
    config, mae = sizes.captioner_config(setting), sizes.mae_config(setting)
    usual = (64 if setting.on_gpu else 8, BEAMS, config.context_length)
    batches = (1, 16, 64, 256) if setting.on_gpu else (1, 4, 8, 16)
    points = {
        "the batch": [(count, *usual[1:]) for count in batches],
        "the beams": [(usual[0], beams, usual[2]) for beams in (1, 3, 12)],
        "the length": [(*usual[:2], length) for length in (15, 30)],
    }
    for against, works in points.items():
        for count, beams, length in works:
            work = (setting, config, mae, sizes.random_images(setting, count), length, beams)
            yield from compare(
                setting, f"{WHAT} against {against}", f"{count} images, {beams} beams, {length} tokens",
                "images/s", count, [Contestant("ours", lambda work=work: beam_search(*work))],
                floor.beam_search(config, mae, count, length, beams),
            )  # fmt: skip


def beam_search(
    setting: Setting, config: CaptionerConfig, mae: MaeConfig, images: torch.Tensor, length: int, beams: int,
    execution: str = "auto",
) -> Callable[[], object]:  # fmt: skip
    """The search as caption.py sets it up, or its steps run in another way."""
    model = build_captioner(mae, config).to(setting.device)
    with torch.no_grad():
        model.decoder.to_vocabulary.bias[sizes.END_ID] = -1e9
    options = BeamSearchOptions(length, beams, config.length_alpha)

    def run() -> object:
        with devices.autocast(setting.device, setting.precision):
            found = model.generate(
                normalize(images), options, sizes.START_ID, sizes.END_ID, execution=execution
            )
        assert all(len(best.tokens) == length for best, *_ in found)
        return found

    return run
