"""torch.compile as on a GPU, tried on a CPU: all of it but the making of kernels."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from tests.training_cases import STACK, state_of, train_captions, train_mae, write_config
from training import checkpoints, network
from transformer_components.sublayers import Linear

ONE_LAYER = STACK | {"num_layers": 1}  # a graph takes a second to compile


@pytest.fixture
def run(make_tiny_coco, tmp_path):
    """How to run a stage: run(stage, out, compiled).

    There are 35 pairs to train on: the last batch of 6 is never full, and captions differ in length.
    """
    paths = make_tiny_coco(train=7, val=4, unlabeled=2)
    encoder = {"encoder": ONE_LAYER | {}, "decoder": ONE_LAYER, "batch_size": 4, "total_epochs": 2}
    captioner = {"decoder": ONE_LAYER, "unfreeze_start_epoch": 3, "total_epochs": 3, "patch_dropout": 0.5}

    def start(stage: str, out: Path, compiled: bool, train: Callable = train_here) -> None:
        if stage == "encoder":
            config = write_config(tmp_path, "mae_config.yaml", compile=compiled, **encoder)
            return train(train_mae, paths["data"], out, config)
        pretrained = tmp_path / "first" / "encoder" / "checkpoint2.pt"
        if not pretrained.exists():
            start("encoder", tmp_path / "first", compiled=False)
        config = write_config(tmp_path, "captioner_config.yaml", compile=compiled, **captioner)
        return train(train_captions, paths["data"], out, config, "-p", str(pretrained))

    return start


def train_here(main: Callable, *arguments: object) -> None:
    main(*arguments)


def train_on_two_ranks(main: Callable, *arguments: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(compiled_rank, (Path(folder, "rendezvous"), main, arguments), nprocs=2)


def compiled_rank(rank: int, rendezvous: Path, main: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        graphs = compile_here(patch)
        # A model of usual size fills several buckets; with Dynamo's cuts between them no captioner compiled.
        patch.setattr(distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 2_000)
        buckets = partial(nn.parallel.DistributedDataParallel, bucket_cap_mb=0.02)
        patch.setattr(nn.parallel, "DistributedDataParallel", buckets)
        main(*arguments)
    assert len(graphs) == 2, graphs


def compile_here(patch: pytest.MonkeyPatch) -> list[int]:
    """From here on a CPU compiles, too; returns the graphs to come: of each, the size of the batch."""
    graphs = []
    aot_eager = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        (images,) = (value for value in inputs if torch.is_tensor(value) and value.dim() == 4)
        graphs.append(int(images.shape[0]))
        return aot_eager(graph, inputs)

    patch.setitem(network.BACKENDS, "cpu", backend)
    patch.delattr(Linear, "forward")  # what is left is nn.Linear's, which ours comes down to on a GPU
    return graphs


@pytest.fixture
def graphs(monkeypatch):
    yield compile_here(monkeypatch)
    torch.compiler.reset()


def assert_learned_alike(one: Path, other: Path, stage: str) -> None:
    """The same weights and figures after each epoch, up to rounding."""
    for epoch in range(1, 1 + len(checkpoints.existing(one / stage))):
        first, second = (state_of(out, stage, f"checkpoint{epoch}.pt") for out in (one, other))
        for name, weight in first["model"].items():
            if not name.endswith("key_projection.bias"):  # softmax does not see it: it follows rounding noise
                assert torch.allclose(weight, second["model"][name], rtol=1e-3, atol=1e-5), (epoch, name)
        figures = (state["progress"]["history"][-1] for state in (first, second))
        assert next(figures) == pytest.approx(next(figures), rel=1e-4)


@pytest.mark.timeout(300)
def test_the_compiled_encoder_learns_as_the_plain_one(run, tmp_path, graphs):
    for name in ("plain", "compiled"):
        run("encoder", tmp_path / name, compiled=name == "compiled")
    assert_learned_alike(tmp_path / "plain", tmp_path / "compiled", "encoder")
    assert graphs == [4, 1], "full batches, and the last one"


@pytest.mark.timeout(300)
def test_the_compiled_captioner_learns_as_the_plain_one_also_what_gets_unfrozen(run, tmp_path, graphs):
    """Dynamo 2.11 went on with the graph of the frozen encoder, which so learned nothing.

    Another epoch, the lengths of captions, the last batch and the search for captions must not add graphs:
    at a limit Dynamo compiles no more.
    """
    for name in ("plain", "compiled"):
        run("captioner", tmp_path / name, compiled=name == "compiled")
    assert_learned_alike(tmp_path / "plain", tmp_path / "compiled", "captioner")
    assert graphs == [6, 6], "frozen, and unfrozen"


@pytest.mark.parametrize(("capability", "compiles"), [((7, 5), True), ((6, 1), False)])
def test_a_gpu_for_which_there_are_no_kernels_runs_the_plain_model(capability, compiles, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model = nn.Linear(2, 2)
    assert (network.wrap(model, True, torch.device("cuda"), uneven=False) is model) != compiles
    assert network.wrap(model, False, torch.device("cuda"), uneven=False) is model


@pytest.mark.timeout(300)
def test_two_compiled_ranks_learn_as_one_plain_process(run, tmp_path):
    run("captioner", tmp_path / "one", compiled=False)
    run("captioner", tmp_path / "two", compiled=True, train=train_on_two_ranks)
    assert_learned_alike(tmp_path / "one", tmp_path / "two", "captioner")
