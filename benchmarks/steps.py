"""Whether a training step pays for not waiting: its report read one step later, or at once.

The first stage's step, of the faithful recipe (batches of 64) and of the modern one (512): as it is,
compiled, and as the script calls it, with CUDA graphs, which spare the host the launching of kernels.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from benchmarks import floor, sizes, training
from benchmarks.measuring import Contestant, Row, Setting, compare
from paths import ROOT

RECIPES = {"faithful": ROOT, "modern": ROOT / "recipes" / "modern"}


def networks(setting: Setting) -> dict[str, training.Network]:
    """The ways to call a model, by name; on a CPU only the plain one."""
    ways: dict[str, training.Network] = {"eager": lambda model: model}
    if setting.on_gpu:
        ways["compiled"] = without_cuda_graphs
        ways["CUDA graphs"] = partial(training.prepared, setting=setting)
    return ways


def without_cuda_graphs(model: nn.Module) -> nn.Module:
    """Compiled, but its kernels are launched one by one: what several processes do."""
    torch.compiler.reset()
    return torch.compile(model)


def rows(setting: Setting) -> Iterator[Row]:
    """For each recipe and each way two rows, of which the second is slower by what waiting costs."""
    for recipe, folder in RECIPES.items():
        config = recipe_of(setting, folder)
        batch = sizes.image_batch(setting, config.batch_size)
        for name, network in networks(setting).items():
            step = cache(partial(training.mae_step, setting, config, batch, network))  # one model for both
            yield from compare(
                setting, f"MAE step, {recipe}, {name}", f"{config.batch_size} images", "images/s",
                config.batch_size,
                [
                    Contestant("read a step later", lambda step=step: partial(step(), lag=1)),
                    Contestant("read at once", lambda step=step: partial(step(), lag=0)),
                ],
                floor.mae_step(config, config.batch_size),
            )  # fmt: skip


def recipe_of(setting: Setting, folder: Path) -> training.MaeConfig:
    config = sizes.mae_config(setting, folder / "mae_config.yaml")
    return replace(config, batch_size=4) if setting.quick else config


def curves(setting: Setting) -> Iterator[Row]:
    """None."""
    yield from ()
