"""Two processes under torchrun train and evaluate as one does."""

import dataclasses
import functools
import json
import os
import socket
import subprocess

import pytest
import torch
from torch import distributed, nn

import evaluate_captioner
import train_captioner
from coco.data import CocoData
from coco_loader import LoaderOptions, get_coco_loader
from image_captioner import ImageAutoEncoder, build_captioner, visible_patches
from image_transforms import TrainingTransform
from support.configuration import load_config
from tests.process_cases import TORCHRUN
from tests.training_cases import ROOT, STACK, state_of, train_captions, train_mae, write_config
from train_captioner import CaptionerConfig, caption_loss
from train_encoder import MaeConfig, reconstruction_loss
from training.optimizer import new_optimizer, warmup_then_cosine
from training.step import Stepper, gradient_scaler


def torchrun(script: str, *options: object) -> str:
    """Runs a script in two processes, on the CPU and over gloo; returns what they print."""
    command = [*TORCHRUN, "--nproc_per_node=2", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *map(str, options)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PATIENT = f"""
import sys, time
from datetime import timedelta
sys.path.insert(0, {str(ROOT)!r})
from support import distributed
distributed.TIMEOUT = timedelta(seconds=2)
def work():
    time.sleep(6 * distributed.is_main())
    return {{"rank": distributed.rank()}}
with distributed.process_group():
    found = distributed.gathered_results(work)
    distributed.wait_for_all()
    print(f"{{[item['rank'] for item in found]}}\\n", end="")
"""


@pytest.mark.timeout(120)
def test_what_may_take_one_process_hours_is_waited_for(tmp_path):
    """Decoding all images into memory, say: the others failed after ten minutes."""
    script = tmp_path / "patient.py"
    script.write_text(PATIENT)
    assert torchrun(str(script)).splitlines() == ["[0, 1]"] * 2


@pytest.mark.timeout(300)
def test_two_ranks_train_as_one_process_does(make_tiny_coco, tmp_path):
    """Captions of uneven length, a last batch of one sample, and a validation split that does not divide."""
    paths = make_tiny_coco(
        train=5, val=3, unlabeled=2
    )  # 25 pairs: the last batch of 6 leaves a rank without one
    mae = write_config(tmp_path, "mae_config.yaml", total_epochs=2)
    train_mae(paths["data"], tmp_path / "one", mae, "--epochs", "1")
    encoder = tmp_path / "one" / "encoder" / "checkpoint1.pt"
    config = write_config(
        tmp_path, "captioner_config.yaml", decoder=STACK, eval_freq=1, unfreeze_start_epoch=1, total_epochs=2
    )
    options = ("-p", str(encoder), "--epochs", "2")
    train_captions(paths["data"], tmp_path / "one", config, *options)
    torchrun(
        "train_captioner.py", "--data", paths["data"], "--out", tmp_path / "two", "--config", config, *options
    )
    one, two = state_of(tmp_path / "one", "captioner"), state_of(tmp_path / "two", "captioner")
    assert one["progress"]["updates"] == two["progress"]["updates"] == 10
    for first, second in zip(one["progress"]["history"], two["progress"]["history"], strict=True):
        assert first == pytest.approx(second, rel=1e-5)
    for name, weight in one["model"].items():
        if name.endswith("key_projection.bias"):
            continue  # softmax does not see it: its gradient is rounding noise, which Adam blows up
        assert torch.allclose(weight, two["model"][name], rtol=1e-3, atol=1e-5), name


@pytest.mark.timeout(300)
def test_two_ranks_caption_and_score_as_one_process_does(make_tiny_coco, tmp_path):
    """45 pictures: the ranks have 23 and 22, and enough are captioned to measure a confidence."""
    paths = make_tiny_coco(train=5, val=45, unlabeled=2)
    train_mae(paths["data"], tmp_path, write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    config = write_config(tmp_path, "captioner_config.yaml", decoder=STACK)
    train_captions(paths["data"], tmp_path, config, "-p", "last", "--epochs", "1")
    checkpoint = tmp_path / "captioner" / "checkpoint1.pt"
    options = ("-c", str(checkpoint), "--data", str(paths["data"]), "--out")
    evaluate_captioner.main([*options, str(tmp_path / "one.json")])
    calibration = checkpoint.with_name("checkpoint1_calibration.json").read_bytes()
    torchrun("evaluate_captioner.py", *options, tmp_path / "two.json")
    assert len(json.loads((tmp_path / "one.json").read_text())) == 45
    for name in ("{}.json", "{}_metrics.json"):
        one, two = ((tmp_path / name.format(who)).read_text() for who in ("one", "two"))
        assert one == two
    assert checkpoint.with_name("checkpoint1_calibration.json").read_bytes() == calibration


@pytest.mark.timeout(180)
def test_two_ranks_with_one_image_end_and_learn_what_one_process_does(make_tiny_coco, tmp_path, monkeypatch):
    """In both stages one rank has nothing to train on, to validate on or to caption."""
    paths = make_tiny_coco(train=1, val=1, unlabeled=0, captions=1)
    mae = write_config(tmp_path, "mae_config.yaml", splits=["train"], total_epochs=2, num_workers=1)
    captions = write_config(
        tmp_path, "captioner_config.yaml", decoder=STACK, total_epochs=2, eval_freq=1, num_workers=1
    )
    # A forked process need not import torch again, but must not be forked where torch has used a GPU.
    context = torch.multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ports = free_ports(2)
    ranks = [
        context.Process(target=both_stages, args=(paths, tmp_path / "two", mae, captions, rank, ports))
        for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=60)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]
    both_stages(paths, tmp_path / "one", mae, captions)
    for stage in ("encoder", "captioner"):
        one, two = state_of(tmp_path / "one", stage), state_of(tmp_path / "two", stage)
        assert one["progress"]["updates"] == two["progress"]["updates"] == 2
        for first, second in zip(one["progress"]["history"], two["progress"]["history"], strict=True):
            assert first == pytest.approx(second, rel=1e-4)


def both_stages(paths: dict, out, mae, captions, rank: int = 0, ports: tuple[int, ...] = ()) -> None:
    """Trains both stages, as one of two ranks that meet at these ports, or alone."""
    stages = ((train_mae, mae, ()), (train_captions, captions, ("-p", "last")))
    for number, (train, config, options) in enumerate(stages):
        if ports:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[number])}
        train(paths["data"], out, config, *options)


def free_ports(count: int) -> tuple[int, ...]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(listening.getsockname()[1] for listening in sockets)
    for listening in sockets:
        listening.close()
    return ports


def test_each_rank_decodes_eval_batch_size_images_at_once(make_tiny_coco, tmp_path, monkeypatch):
    """So that two ranks take half as many searches, and not as many of half the size."""
    paths = make_tiny_coco(train=2, val=8, unlabeled=1)
    made = []

    def stop_at_the_images(*arguments, **options):
        loader = get_coco_loader(*arguments, **options)
        if options.get("mode") == "image_first":
            made.append(loader)
            raise KeyboardInterrupt
        return loader

    monkeypatch.setattr(train_captioner, "get_coco_loader", stop_at_the_images)
    monkeypatch.setattr("support.distributed.world_size", lambda: 2)
    monkeypatch.setattr("support.distributed.gathered", lambda item: [item, item])
    config = write_config(tmp_path, "captioner_config.yaml", eval_batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        train_captions(paths["data"], tmp_path, config, "--from-scratch")
    assert [len(batch) for batch in made[0].batch_sampler] == [3, 1]  # of the four that are this rank's


@pytest.mark.timeout(300)
def test_two_ranks_that_accumulate_give_the_gradients_of_one_process(make_tiny_coco, tmp_path):
    """In float64, of both stages: captions of uneven length, and a last batch that leaves a rank without one.

    A mean over ranks of their means would weight the tokens of short captions too high.
    """
    paths = make_tiny_coco(train=5, val=3, unlabeled=2)
    configs = {
        accumulation: {
            "encoder": write_config(tmp_path, "mae_config.yaml", accumulation_steps=accumulation),
            "captioner": write_config(
                tmp_path, "captioner_config.yaml", accumulation_steps=accumulation, decoder=STACK
            ),
        }
        for accumulation in (1, 2)
    }
    whole = save_gradients(0, 1, paths, configs[1], tmp_path)
    torch.multiprocessing.spawn(save_gradients, (2, paths, configs[2], tmp_path), nprocs=2)
    shared = torch.load(tmp_path / "gradients2.pt", weights_only=True)
    assert {stage: len(steps) for stage, steps in whole.items()} == {"encoder": 2, "captioner": 5}
    for stage, steps in whole.items():
        for one, two in zip(steps, shared[stage], strict=True):
            assert one.keys() == two.keys()
            for name, gradient in one.items():
                difference = (gradient - two[name]).abs().max()
                assert difference <= 1e-10 * gradient.abs().max().clamp(min=1), (stage, name)


def save_gradients(rank: int, world_size: int, paths: dict, configs: dict, folder) -> dict:
    """The mean gradient of each step of an epoch, by parameter, for both stages; rank 0 saves it."""
    torch.set_num_threads(1)
    if world_size > 1:
        where = f"file://{folder / 'rendezvous'}"
        distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=world_size)
    mae = load_config(configs["encoder"], MaeConfig)
    captioner = load_config(configs["captioner"], CaptionerConfig)
    transform = TrainingTransform(mae.image_size, mae.crop_scale)
    torch.manual_seed(0)
    models = {
        "encoder": ImageAutoEncoder(mae),
        "captioner": build_captioner(mae, dataclasses.replace(captioner, vocabulary_size=40)),
    }
    half = functools.partial(visible_patches, num_patches=mae.num_patches, dropout=0.5)
    losses = {
        "encoder": lambda network, batch: reconstruction_loss(network, batch, mae),
        "captioner": lambda network, batch: caption_loss(network, batch, 0, 0.1, half),
    }
    gradients: dict[str, list] = {}
    for stage, config in (("encoder", mae), ("captioner", captioner)):
        mode = {"encoder": "image_only", "captioner": "caption_first"}[stage]
        split = ("train", "unlabeled") if stage == "encoder" else "train"
        options = LoaderOptions(accumulation=config.accumulation_steps, pad_id=0)
        loader = get_coco_loader(
            split,
            config.batch_size,
            transform,
            mode=mode,
            shuffle=True,
            data=CocoData(paths),
            options=options,
        )
        gradients[stage] = gradients_of(models[stage], losses[stage], loader, config)
    if world_size > 1:
        distributed.destroy_process_group()
    if rank == 0:
        torch.save(gradients, folder / f"gradients{world_size}.pt")
    return gradients


def gradients_of(model: nn.Module, loss, loader, config) -> list[dict[str, torch.Tensor]]:
    model.double().register_forward_pre_hook(lambda _, given: (given[0].double(), *given[1:]))
    network = nn.parallel.DistributedDataParallel(model) if distributed.is_initialized() else model
    groups = [{"params": list(model.parameters()), "base_lr": 1.0}]
    device = torch.device("cpu")
    schedule, scaler = warmup_then_cosine(config), gradient_scaler(config, device)
    stepper = Stepper(loss, new_optimizer(model, groups, config), schedule, scaler, config, device)
    taken = []

    def keep(*_):
        taken.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()

    stepper._update = keep
    batches = iter(loader)
    for number in range(loader.batch_sampler.steps):
        plan = loader.batch_sampler.micro_batches(number)
        stepper.step(network, [next(batches) for _ in plan], plan, seed=0, epochs=0.0)
    return taken
