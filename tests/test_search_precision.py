"""A search under autocast sorts logits in float32; training projects in the format of autocast."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.devices import autocast
from tests.captioner_cases import random_model
from transformer_components.beam_search import BeamSearchOptions

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [False, True])
def test_a_search_in_bfloat16_sorts_logits_in_float32(tied):
    """The oracle projects what the decoder's stack gives by itself, in float64; a second one decodes so."""
    torch.manual_seed(0)
    model = random_model(3000, 12, tie_embeddings=tied).eval()
    projection, features, logits = model.decoder.to_vocabulary, [], []
    model.decoder.transformer.register_forward_hook(lambda _, __, out: features.append(out))
    model.decoder.register_forward_hook(lambda _, __, out: logits.append(out))
    search = (torch.randn(8, 3, 32, 32), BeamSearchOptions(10, 6), 1, 2, [0, 1, 3])
    with autocast(CPU, torch.bfloat16):
        found_captions = model.generate(*search)
    weight, bias = projection.weight.double(), projection.bias.double()
    rows = ties = 0
    for hidden, found in zip(features, logits, strict=True):
        assert found.dtype is torch.float32
        torch.testing.assert_close(found.double(), hidden.double() @ weight.t() + bias, rtol=1e-5, atol=1e-5)
        best = found.flatten(0, 1).topk(7).values
        rows += len(best)
        ties += int((best[:, 1:] == best[:, :-1]).any(dim=1).sum())
    assert rows == 8 + 9 * 8 * 6
    assert ties == 0

    def project(x: torch.Tensor) -> torch.Tensor:
        return (x.double() @ weight.t() + bias).float()

    projection.forward = project
    with autocast(CPU, torch.bfloat16):
        expected = model.generate(*search)
    assert [best.tokens for best, *_ in found_captions] == [best.tokens for best, *_ in expected]


def test_training_under_autocast_projects_in_bfloat16_as_before():
    model = random_model(50, 12)
    with autocast(CPU, torch.bfloat16):
        logits = model(torch.randn(2, 3, 32, 32), torch.randint(50, (2, 9)))
    assert logits.dtype is torch.bfloat16


class Casts(TorchDispatchMode):
    """Counts what is cast to bfloat16, by shape."""

    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function is torch.ops.aten._to_copy.default and result.dtype is torch.bfloat16:
            self.shapes[tuple(result.shape)] += 1
        return result


def test_a_search_casts_each_weight_once_and_not_for_each_token():
    """In inference mode autocast keeps no casts, and they were 45 % of a search on a CPU."""
    model = random_model(50, 12).eval()
    options = BeamSearchOptions(10, 3)
    with Casts() as casts, autocast(CPU, torch.bfloat16):
        model.generate(torch.randn(2, 3, 32, 32), options, 1, 2)
    layers = len(model.encoder.transformer.layers) + len(model.decoder.transformer.layers)
    assert casts.shapes[32, 16] == casts.shapes[16, 32] == layers  # those of the feed-forward layers
