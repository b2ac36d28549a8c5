"""Two processes with half a batch each must be one process with the whole batch."""

import copy
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from steps import tiny
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from segrow.errors import UserError
from segrow.model.fused import folded
from segrow.model.norm import CrossRankBatchNorm2d, synchronise_norms

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Tanh(),
        BatchNormAct2d(4, momentum=None),  # timm's: carries its ReLU; cumulative average
        nn.Conv2d(4, 2, 1),
        nn.BatchNorm2d(2, affine=False),
    ).double()


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 3, 6, 7, generator=generator, dtype=torch.float64) * 4 + 100


def two_updates(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, input gradient, parameter gradients and state after two passes in training mode."""
    net.train()
    net(x.detach())
    x = x.detach().requires_grad_()
    out = net(x)
    weights = torch.linspace(-1, 1, out[0].numel(), dtype=out.dtype).view(out[0].shape)
    (out * weights).sum().backward()
    assert x.grad is not None
    grads = {f"grad {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "grad x": x.grad} | grads | net.state_dict()


SPLITS = (2, 4)  # 2 + 3 and 4 + 1 images


def worker(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results: dict[str, dict[str, Tensor] | str] = {}
    for first in SPLITS:
        net = network()
        synchronise_norms(net, "cpu")
        mine = batch()[:first] if rank == 0 else batch()[first:]
        results[str(first)] = two_updates(net, mine)
        results[str(first)] |= {"eval": net.eval()(mine).detach()}
    norm = CrossRankBatchNorm2d(nn.BatchNorm2d(3)).train()
    pair = norm(torch.full((1, 3, 1, 1), float(rank)))  # one value here, but two over both
    results["pair"] = {"out": pair.detach()}
    try:
        norm(torch.zeros(1 - rank, 3, 1, 1))  # the second process has no image
    except UserError as error:
        results["single"] = str(error)
    torch.save(results, Path(out) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes got."""
    out = tmp_path_factory.mktemp("norm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(out)), nprocs=2)
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("first", SPLITS)
def test_two_processes_equal_one(processes: list[dict[str, dict[str, Tensor]]], first: int) -> None:
    net = network()
    whole = two_updates(net, batch())
    whole["eval"] = net.eval()(batch()).detach()
    parts = [process[str(first)] for process in processes]
    for name, value in whole.items():
        if name in ("out", "eval", "grad x"):
            together = torch.cat([part[name] for part in parts])
        elif name.startswith("grad "):
            together = parts[0][name] + parts[1][name]
        else:
            together = parts[0][name]
            assert torch.equal(together, parts[1][name])
        torch.testing.assert_close(together, value, rtol=1e-10, atol=1e-10, msg=f"{name} differs")


def test_one_value_in_each_process_is_enough(processes: list[dict[str, dict[str, Tensor]]]) -> None:
    outs = [process["pair"]["out"].flatten().tolist() for process in processes]
    assert outs[0] == pytest.approx([-1.0] * 3, abs=1e-4)
    assert outs[1] == pytest.approx([1.0] * 3, abs=1e-4)


def test_a_single_value_over_all_processes_is_an_error(processes: list[dict[str, str]]) -> None:
    assert all("batch size of at least 2" in process["single"] for process in processes)


def test_exchange_keeps_parameters_names_and_modes() -> None:
    net = network()
    net[1].eval()
    parameters = [id(p) for p in net.parameters()]
    buffers = [id(b) for b in net.buffers()]
    names = list(net.state_dict())
    synchronise_norms(net, "cpu")
    assert [id(p) for p in net.parameters()] == parameters
    assert [id(b) for b in net.buffers()] == buffers
    assert list(net.state_dict()) == names
    assert [isinstance(m, CrossRankBatchNorm2d) for m in net] == [False, True, False, True, False, True]
    assert [net[1].training, net[3].training] == [False, True]
    again = net[1]
    again = net[1]
    synchronise_norms(net, "cpu")
    assert net[1] is again


def test_alone_it_is_an_ordinary_norm() -> None:
    plain = network()
    ours = copy.deepcopy(plain)
    synchronise_norms(ours, "cpu")
    expected, got = two_updates(plain, batch()), two_updates(ours, batch())
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_unknown_norms_are_refused() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(TypeError, match="cannot synchronise Odd"):
        synchronise_norms(nn.Sequential(Odd(2)), "cpu")


def test_on_cuda_it_is_torchs_own() -> None:
    net = network()
    synchronise_norms(net, "cuda")
    assert all(isinstance(net[i], nn.SyncBatchNorm) for i in (1, 3, 5))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_frozen_norms_stay_what_they_are(device: str) -> None:
    net = network()
    synchronise_norms(net, device, frozenset({"1", "3"}))
    assert [type(net[k]) for k in (1, 3)] == [nn.BatchNorm2d, BatchNormAct2d]
    assert type(net[5]) is not nn.BatchNorm2d


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_frozen_trunk_folds_on_several_devices(device: str) -> None:
    """However large it is: SyncBatchNorm could not be folded."""
    model = tiny(unknown=True)
    model.freeze(model.trunk)
    synchronise_norms(model, device, model.frozen_norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded(model.trunk, large=True).backbone.modules())
    assert type(model.heads[0].body[1]) is not nn.BatchNorm2d  # a head trains
