"""Checks of MOSS in a host that start two processes, one of which has an image alone."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from host_models import attach, fresh, inputs_of, loss_of, wake, with_lora
from tiny_hosts import TINY_HOSTS, TinyHost
from torch import Tensor, nn


def ddp(tiny: TinyHost, folder: Path) -> None:
    """DDP with two processes, the second of which has an image alone: each has the mean gradient."""
    _in_two_processes(_ddp_process, tiny, folder, tolerance=1e-6)


def zero2(tiny: TinyHost, folder: Path) -> None:
    """DeepSpeed ZeRO-2 likewise: each process makes the step of the mean gradient."""
    _in_two_processes(_zero2_process, tiny, folder, tolerance=1e-5)


def _in_two_processes(process: Callable[..., None], tiny: TinyHost, folder: Path, tolerance: float) -> None:
    torch.multiprocessing.spawn(process, (tiny.name, str(folder)), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = [_gradients(_process_model(tiny), tiny, rank) for rank in range(2)]
    assert first.keys() == second.keys() == alone[0].keys() == alone[1].keys()
    for name, found in first.items():
        torch.testing.assert_close(second[name], found, atol=0, rtol=0)
        mean = (alone[0][name] + alone[1][name]) / 2
        torch.testing.assert_close(found, mean, atol=tolerance, rtol=1e-3)


def _process_model(tiny: TinyHost) -> Any:
    torch.manual_seed(3)  # of LoRA
    return wake(with_lora(attach(fresh(tiny)))).train()


def _process_loss(model: Any, tiny: TinyHost, rank: int) -> Tensor:
    """On a clip in the first process, on an image in the second."""
    _, rows, columns = tiny.sizes[0]
    return loss_of(model, inputs_of(tiny, tiny.sizes[0] if rank == 0 else (1, rows, columns)))


def _gradients(model: Any, tiny: TinyHost, rank: int, wrapped: Any = None) -> dict[str, Tensor]:
    _process_loss(model if wrapped is None else wrapped, tiny, rank).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def _join(rank: int, name: str, folder: str) -> TinyHost:
    """Join the other process, by a file instead of a port."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    return next(tiny for tiny in TINY_HOSTS if tiny.name == name)


def _ddp_process(rank: int, name: str, folder: str) -> None:
    tiny = _join(rank, name, folder)
    model = _process_model(tiny)
    wrapped = nn.parallel.DistributedDataParallel(model)
    torch.save(_gradients(model, tiny, rank, wrapped), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _zero2_process(rank: int, name: str, folder: str) -> None:
    import deepspeed

    tiny = _join(rank, name, folder)
    model = _process_model(tiny)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "overlap_comm": False}}
    settings |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    settings["gradient_clipping"] = 0.0  # DeepSpeed's default would scale the step to length 1
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.backward(_process_loss(engine, tiny, rank))
    engine.step()
    torch.save(
        {name: before[name] - weight.detach() for name, weight in trained.items()}, f"{folder}/{rank}.pt"
    )
    torch.distributed.destroy_process_group()


PROCESS_CHECKS: dict[str, Callable[[TinyHost, Path], None]] = {"ddp": ddp, "zero2": zero2}


if __name__ == "__main__":
    raise SystemExit("experiments/host_processes.py is a part of other commands, not a command")
