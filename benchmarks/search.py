"""The ways to run the steps of a beam search: as they come, compiled, recorded as CUDA graphs."""

from collections.abc import Iterator

from benchmarks import decoding, floor, sizes
from benchmarks.measuring import Contestant, Row, Setting, compare

ORDER = ("eager", "graphs", "static", "compiled")  # what takes a minute to compile comes last


def rows(setting: Setting) -> Iterator[Row]:
    """Batches of 64 and 256, each way on its own, so that one that fails leaves the others their figures."""
    config, mae = sizes.captioner_config(setting), sizes.mae_config(setting)
    length, beams = config.context_length, decoding.BEAMS
    for execution in executions(setting):
        for count in (2, 4) if setting.quick else (64, 256):
            images = sizes.random_images(setting, count)
            work = (setting, config, mae, images, length, beams, execution)
            yield from compare(
                setting, f"{decoding.WHAT}, {execution}", f"{count} images, {beams} beams, {length} tokens",
                "images/s", count, [Contestant("ours", lambda work=work: decoding.beam_search(*work))],
                floor.beam_search(config, mae, count, length, beams),
            )  # fmt: skip


def executions(setting: Setting) -> tuple[str, ...]:
    """The ways that `generate` knows; on a CPU those without a GPU's graphs."""
    return ORDER if setting.on_gpu else ("eager", "static")


def curves(setting: Setting) -> Iterator[Row]:
    """None."""
    yield from ()
