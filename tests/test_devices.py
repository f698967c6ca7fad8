"""What a checkpoint runs on: a float16 one on a CPU, an Apple GPU, and what is chosen where."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import caption
import evaluate_captioner
import image_description
from captioner import load_captioner
from support import devices, distributed
from support.devices import choose_device, choose_precision, cpu_is_fast_in_bfloat16, decoding_precision
from support.errors import UsageError
from tests.captioner_cases import random_captioner
from tests.training_cases import train_captions, train_mae, write_config
from training import checkpoints
from transformer_components.attention import MultiHeadAttention
from transformer_components.beam_search import BeamSearchOptions

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def float16_run(make_tiny_coco, tmp_path) -> dict:
    """A captioner trained a step on a CPU whose checkpoint says that it was trained in float16 on a GPU."""
    paths = make_tiny_coco(train=2, val=2, unlabeled=1, captions=2)
    train_mae(paths["data"], tmp_path, write_config(tmp_path, "mae_config.yaml"), "--epochs", "1")
    config = write_config(tmp_path, "captioner_config.yaml")
    train_captions(paths["data"], tmp_path, config, "-p", "last", "--epochs", "1")
    path, state = checkpoints.load_named(tmp_path / "captioner", "last")
    state = {**state, "model": {name: weight.clone() for name, weight in state["model"].items()}}
    as_trained = load_captioner(path)
    checkpoints.save(path, {**state, "config": {**state["config"], "precision": "float16"}})
    return {"paths": paths, "checkpoint": path, "as_trained": as_trained, "out": tmp_path}


def test_a_float16_checkpoint_is_captioned_and_evaluated_on_a_cpu_in_float32(float16_run, capsys):
    picture = next(float16_run["paths"]["val_images"].iterdir())
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    captioner = load_captioner(float16_run["checkpoint"])
    assert captioner.precision is torch.float32
    assert captioner.decode(images) == float16_run["as_trained"].decode(images)
    caption.main(["-c", str(float16_run["checkpoint"]), str(picture)])
    assert str(picture) in capsys.readouterr().out
    options = ["-c", str(float16_run["checkpoint"]), "--data", str(float16_run["paths"]["data"])]
    evaluate_captioner.main([*options, "--out", str(float16_run["out"] / "results.json")])
    assert "BLEU-4" in capsys.readouterr().out.splitlines()[-1]


def test_training_in_float16_on_a_cpu_stays_an_error(float16_run):
    config = write_config(float16_run["out"], "captioner_config.yaml", precision="float16")
    with pytest.raises(UsageError, match="precision float16 needs a GPU"):
        train_captions(float16_run["paths"]["data"], float16_run["out"], config, "-p", "last")


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("float16", CPU, torch.float32),
        ("bfloat16", CPU, torch.bfloat16),
        ("float16", CUDA, torch.float16),
        *((name, MPS, torch.float32) for name in ("auto", "float16", "bfloat16", "float32")),
    ],
)
def test_decoding_takes_the_precision_of_training_or_float32(name, device, expected):
    assert decoding_precision(name, device) is expected


AMX = {"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_bf16": True, "amx_bf16": True}
ZEN5 = {"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (AMX, torch.bfloat16),
        ({**AMX, "amx_bf16": False}, torch.float32),
        (ZEN5, torch.bfloat16),
        ({**ZEN5, "avx512_bf16": False}, torch.float32),
        ({"architecture": "aarch64", "bf16": True}, torch.float32),
    ],
)
def test_auto_on_a_cpu_is_bfloat16_where_that_was_measured_to_be_faster(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", CPU) is expected
    assert decoding_precision("auto", CPU) is expected
    assert decoding_precision("auto", MPS) is torch.float32


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the oracle is Linux")
def test_what_this_cpu_can_do_is_what_the_kernel_lists():
    lines = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", lines, re.MULTILINE)[1].split()
    needed = "avx512_bf16" if "AuthenticAMD" in lines else "amx_bf16"
    assert cpu_is_fast_in_bfloat16() == (needed in flags)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_training_takes_what_it_is_told(name):
    assert choose_precision("bfloat16", torch.device(name)) is torch.bfloat16


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_trains_in_float16(monkeypatch, has_bfloat16, expected):
    """A T4, say: torch would emulate bfloat16 there, slower than float32."""

    def is_supported(including_emulation: bool = True) -> bool:
        return has_bfloat16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert choose_precision("auto", CUDA) is decoding_precision("auto", CUDA) is expected


# --- an Apple GPU; there is none here, so what torch says of one is made up ---


def made_up(monkeypatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "decoding", "training"),
    [
        (True, False, "cuda:1", "cuda:1"),
        (True, True, "cuda:1", "cuda:1"),
        (False, True, "mps", "cpu"),
        (False, False, "cpu", "cpu"),
    ],
)
def test_a_device_is_chosen_in_one_place(monkeypatch, cuda, mps, decoding, training):
    made_up(monkeypatch, cuda, mps)
    assert choose_device(local_rank=1) == torch.device(decoding)
    assert choose_device(training=True, local_rank=1) == torch.device(training)


def test_captioning_and_evaluation_take_the_apple_gpu_and_training_says_why_not(
    monkeypatch, capsys, tmp_path
):
    made_up(monkeypatch, cuda=False, mps=True)
    with distributed.process_group() as device:
        assert device == MPS
    assert capsys.readouterr().err == ""
    with distributed.process_group(training=True) as device:
        assert device == CPU
    assert capsys.readouterr().err == "note: training runs on the CPU: an Apple GPU has no float64\n"
    asked = []
    spy = lambda _, device, *__, **___: asked.append(device) or 1 / 0  # noqa: E731
    monkeypatch.setattr(image_description, "captioner_from_state", spy)
    monkeypatch.setattr(checkpoints, "load_named", lambda *_: (tmp_path, {}))
    picture = tmp_path / "picture.jpg"
    picture.touch()
    with pytest.raises(ZeroDivisionError):
        caption.main(["-c", "last", str(picture)])
    assert asked == [MPS]
    assert devices.describe(MPS, torch.float32) == "Apple GPU, float32"


class Watch(TorchDispatchMode):
    """Notes the types of all numbers that operations take and give."""

    def __init__(self):
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        found = pytree.tree_leaves((args, kwargs, result))
        self.types |= {item.dtype for item in found if isinstance(item, torch.Tensor)}
        return result


def test_a_search_runs_on_a_device_that_it_was_not_written_for_and_needs_no_float64(monkeypatch):
    """On "meta", which computes nothing but refuses, as a GPU does, tensors that lie elsewhere."""
    module = importlib.import_module("transformer_components.beam_search")  # a function has this name, too
    monkeypatch.setattr(module, "hypotheses_of", lambda beams, _: [[] for _ in beams.tokens])  # reads numbers
    captioner = random_captioner()
    captioner.model.to("meta")
    captioner.device, captioner.options = torch.device("meta"), BeamSearchOptions(7, 3)
    with Watch() as watch:
        assert captioner.decode(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)) == [[]] * 4
    assert torch.float32 in watch.types
    assert torch.float64 not in watch.types


def test_attention_does_without_the_fused_kernel_where_that_is_not_to_be_relied_on(monkeypatch):
    module = importlib.import_module("transformer_components.attention")
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 2, 8, 8).double()
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    mask = torch.rand(3, 1, 5, 5) > 0.4
    mask[..., 0] = True
    fused = [layer(*layer.project_all(x), mask), layer(*layer.project_all(x), is_causal=True)]
    assert not module.fused_kernel_is_right(MPS)
    assert module.fused_kernel_is_right(CPU)
    monkeypatch.setattr(module, "fused_kernel_is_right", lambda _: False)
    monkeypatch.setattr(module.F, "scaled_dot_product_attention", None)
    plain = [layer(*layer.project_all(x), mask), layer(*layer.project_all(x), is_causal=True)]
    torch.testing.assert_close(plain, fused, rtol=0, atol=1e-14)
