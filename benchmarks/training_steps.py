"""How fast the full-size models train: whole optimizer steps of both stages, without the loading of pictures.

    python benchmarks/training_steps.py                          the faithful YAMLs on this machine's device
    python benchmarks/training_steps.py --batch-size 256 --compile on --steps 50

Each step is the training scripts' own (`Trainer`), on random pixels and on tokens of COCO's mean length.
Prints a table and one JSON line a row: median milliseconds a step, images or pairs a second, peak memory, and
model FLOP utilisation (MFU): the floating-point operations of the step's matrix products, as torch's
FlopCounterMode counts them, over what the GPU could do in that time by its data sheet.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from coco_loader import CaptionBatch, ImageBatch
from image_captioner import ImageAutoEncoder, build_captioner
from paths import paths
from support import devices
from support.configuration import load_config
from support.optimizer import adamw
from support.sampling import EpochSampler
from support.training import Trainer, to_device
from train_captioner import CaptionerConfig, caption_loss, parameter_groups, unfreeze
from train_encoder import MaeConfig, reconstruction_loss

TOKENS = 14  # of a COCO caption on average, <SOS> and <EOS> included
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, by the data sheets


class Repeated:
    """Stands in for a loader: the same batch on the device, over and over."""

    def __init__(self, batch: NamedTuple, steps: int):
        self.batch, self.steps = batch, steps
        self.dataset = range(steps * len(batch.images))
        self.batch_sampler = EpochSampler(len(self.dataset), len(batch.images), seed=0)

    def __iter__(self) -> Iterator[NamedTuple]:
        return iter([self.batch] * self.steps)


def measure(name: str, trainer: Trainer, device: torch.device, warmup: int, steps: int) -> dict[str, Any]:
    """Times `steps` optimizer steps, each on its own, after `warmup` of them."""
    batch = trainer.train_loader.batch
    trainer.network = trainer.model
    with FlopCounterMode(display=False) as counter, devices.autocast(device, trainer.stepper.precision):
        trainer.stepper.loss_fn(batch)[0].backward()
    trainer.optimizer.zero_grad()
    trainer.prepare_network()
    seconds = []
    started = time.perf_counter()
    for number in range(warmup + steps):
        if number == warmup:
            preparation = time.perf_counter() - started
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        before = time.perf_counter()
        trainer.queue_step(number, [batch])
        trainer._read_reports(0)  # so the device has finished
        seconds.append(time.perf_counter() - before)
    middle = statistics.median(seconds[warmup:])
    peak = next(
        (
            value
            for key, value in PEAK_FLOPS.items()
            if key in devices.describe(device, trainer.stepper.precision)
        ),
        None,
    )
    return {
        "what": name,
        "device": devices.describe(device, trainer.stepper.precision),
        "torch": torch.__version__,
        "batch_size": len(batch.images),
        "compiled": trainer.config.compile and device.type == "cuda",
        "ms_a_step": round(1000 * middle, 2),
        "spread_ms": [round(1000 * min(seconds[warmup:]), 2), round(1000 * max(seconds[warmup:]), 2)],
        "samples_per_second": round(len(batch.images) / middle, 1),
        "tflop_a_step": round(counter.get_total_flops() / 1e12, 3),
        "mfu": round(counter.get_total_flops() / middle / peak, 3) if peak else None,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None,
        "warmup_seconds": round(preparation, 1),
    }


def mae_trainer(config: MaeConfig, device: torch.device, steps: int, folder: Path) -> Trainer:
    """The first stage as train_encoder.py sets it up, on random pixels."""
    model = ImageAutoEncoder(config.image_size, config.patch_size, config.encoder, config.decoder).to(device)
    side, count = config.image_size, config.batch_size
    batch = ImageBatch(
        torch.randint(256, (count, 3, side, side), dtype=torch.uint8),
        torch.arange(count),
        torch.arange(count),
    )
    groups = [{"params": list(model.parameters()), "base_lr": config.learning_rate}]
    trainer = new_trainer("encoder", model, groups, batch, config, device, steps, folder)
    trainer.stepper.loss_fn = lambda batch: reconstruction_loss(trainer.network, batch, config)
    return trainer


def captioner_trainer(
    config: CaptionerConfig, mae: MaeConfig, thawed: int, device: torch.device, steps: int, folder: Path
) -> Trainer:
    """The second stage as train_captioner.py sets it up, its first `thawed` groups learning."""
    model = build_captioner(
        mae.image_size, mae.patch_size, mae.encoder, config.decoder, config.vocabulary_size,
        config.context_length, config.tie_embeddings,
    ).to(device)  # fmt: skip
    side, count = mae.image_size, config.batch_size
    batch = CaptionBatch(
        torch.randint(256, (count, 3, side, side), dtype=torch.uint8),
        torch.randint(4, config.vocabulary_size, (count, TOKENS)),
        torch.arange(count),
        torch.arange(count),
    )
    groups = parameter_groups(model, config.learning_rate, config.layer_decay)
    unfreeze(groups, thawed)
    trainer = new_trainer("captioner", model, groups, batch, config, device, steps, folder)
    trainer.stepper.loss_fn = lambda batch: caption_loss(trainer.network, batch, 0, config.label_smoothing)
    return trainer


def new_trainer(
    stage: str, model: nn.Module, groups: list[dict], batch: NamedTuple, config: Any,
    device: torch.device, steps: int, folder: Path,
) -> Trainer:  # fmt: skip
    loader = Repeated(to_device(batch, device), steps)
    return Trainer(
        stage=stage, model=model, loss_fn=None, optimizer=adamw(model, groups, config), config=config,
        train_loader=loader, val_loader=loader, folder=folder, contents={}, device=device,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Time whole optimizer steps of both stages.")
    parser.add_argument("--batch-size", type=int, help="default: the configuration's")
    parser.add_argument("--compile", choices=("on", "off"), help="default: the configuration's")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--only", choices=("mae", "captioner"))
    options = parser.parse_args()
    devices.set_fast_float32()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    changes = {"batch_size": options.batch_size} if options.batch_size else {}
    if options.compile:
        changes["compile"] = options.compile == "on"
    mae = replace(load_config(paths["mae_config"], MaeConfig), **changes)
    captioner = replace(load_config(paths["captioner_config"], CaptionerConfig), **changes)
    total = options.warmup + options.steps
    layers = mae.encoder.num_layers
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "mae": lambda: mae_trainer(mae, device, total, Path(folder)),
            "captioner, encoder frozen": lambda: captioner_trainer(
                captioner, mae, 1, device, total, Path(folder)
            ),
            "captioner, all learning": lambda: captioner_trainer(
                captioner, mae, layers + 2, device, total, Path(folder)
            ),
        }
        for name, make in rows.items():
            if options.only in (None, name.split(",")[0]):
                row = measure(name, make(), device, options.warmup, options.steps)
                print(
                    f"{name:26} {row['ms_a_step']:9.1f} ms {row['samples_per_second']:9.1f}/s "
                    f"MFU {row['mfu']} {row['peak_gib']} GiB",
                )
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
