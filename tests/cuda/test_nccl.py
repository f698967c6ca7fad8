"""The exchange between processes over NCCL, with one process: all that one GPU can show of it."""

import pytest
import torch
from torch import distributed as torch_distributed
from torch import nn

from support import distributed
from training.network import wrap

pytestmark = pytest.mark.gpu_only


@pytest.fixture
def group(tmp_path):
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    torch_distributed.init_process_group("nccl", init_method=rendezvous, rank=0, world_size=1)
    yield
    torch_distributed.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_two_micro_batches_come_through_the_exchange(group, device, compiled, monkeypatch):
    """With one process the mean over processes is its own gradient; sums of reports are float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(device)
    first, second = torch.randn(2, 3, 8, device=device)
    (model(first).sum() + model(second).sum()).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # what one process alone would leave out
    network = wrap(model, compiled, device, uneven=False)
    assert isinstance(network, nn.parallel.DistributedDataParallel)
    with network.no_sync():
        network(first).sum().backward()
    network(second).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)
    sums = distributed.total(torch.tensor([1.5, 2.0**40 + 1], dtype=torch.float64, device=device))
    assert sums.tolist() == [1.5, 2.0**40 + 1]
    distributed.wait_for_all()


def test_objects_are_gathered(group):
    """What every process is asked for goes through the GPU's memory, pickled."""
    found: list = [None]
    torch_distributed.all_gather_object(found, {"size": 256})
    assert found == [{"size": 256}] == distributed.gathered({"size": 256})
