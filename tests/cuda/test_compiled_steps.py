"""torch.compile with inductor, on real kernels: the same learning, also of what is unfrozen later."""

import pytest
import torch

from tests.training_cases import STACK, record_steps, stage_runner, state_of
from training import network

ONE_LAYER = STACK | {"num_layers": 1}


@pytest.fixture
def graphs(device, monkeypatch):
    """The batch size of each graph that is compiled from here on."""
    found = []
    inductor = torch._dynamo.lookup_backend("inductor")

    def backend(graph, inputs, **options):
        (images,) = (value for value in inputs if torch.is_tensor(value) and value.dim() == 4)
        found.append(int(images.shape[0]))
        mode = options.pop("mode", "default")  # a backend of one's own is given it, and has to see to it
        return inductor(graph, inputs, config_patches=torch._inductor.list_mode_options(mode), **options)

    monkeypatch.setitem(network.BACKENDS, device.type, backend)
    yield found
    torch.compiler.reset()


@pytest.mark.gpu_only
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["encoder", "captioner"])
def test_a_compiled_run_learns_as_a_plain_one(
    make_tiny_coco, tmp_path, stage, precision, graphs, monkeypatch
):
    """Uneven captions and last batches add no graphs; the top layer, unfrozen in epoch 3, learns."""
    paths = make_tiny_coco(train=7, val=4, unlabeled=2)
    run = stage_runner(
        paths["data"], tmp_path,
        encoder={"encoder": {**ONE_LAYER}, "decoder": {**ONE_LAYER}, "batch_size": 4},
        captioner={"decoder": {**ONE_LAYER}, "unfreeze_start_epoch": 3},
    )  # fmt: skip
    losses = {}
    for compiled in (False, True):
        with monkeypatch.context() as patch:
            losses[compiled] = record_steps(patch)
            run(stage, f"compiled{compiled}", "--epochs", "3", compile=compiled, precision=precision)
    tolerance = 1e-3 if precision == "float32" else 0.02
    assert losses[True] == pytest.approx(losses[False], rel=tolerance)
    assert graphs == ([4, 1] if stage == "encoder" else [6, 6])
    if stage == "captioner":
        before, after = (
            state_of(tmp_path / "compiledTrue", stage, f"checkpoint{n}.pt")["model"] for n in (2, 3)
        )
        layer = [name for name in before if name.startswith("encoder.transformer.layers.0")]
        assert layer
        assert not all(torch.equal(before[name], after[name]) for name in layer)
