"""One process or many: the same training code under `python` and under `torchrun`.

Rank 0 alone writes files and speaks. Data are assigned by global sequence number, so the losses do not depend on how
many processes share a step (apart from the order of floating-point sums).
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp

from .errors import UserError
from .model import GPT


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Average of a scalar over the processes."""
        if self.size == 1:
            return value
        total = value.detach().to(torch.float64).clone() if self.device.type == "cpu" else value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def largest(self, value: float) -> float:
        """The largest of every process's number, so that all take the same decision."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], device=self.device, dtype=torch.float32)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return shared.item()

    def barrier(self) -> None:
        """Waits for every process."""
        if self.size > 1:
            dist.barrier()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` is the local GPU where there is one. UserError for a device that is not there."""
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("only cpu and cuda are supported")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


@contextlib.contextmanager
def world(device_name: str) -> Iterator[World]:
    """The process group that torchrun asked for, or a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = pick_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


class Parallel:
    """A model prepared for training in this world: `forward` computes the loss, `accumulate` delays gradient sums."""

    def __init__(self, model: GPT, where: World, mode: str, compile_model: bool):
        self.model, self.mode = model.to(where.device), mode if where.size > 1 else "single"
        self._ddp: nn.Module | None = None
        if self.mode == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(where.device.type, (where.size,))
            for block in model.transformer.h:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        forward: Any = torch.compile(model) if compile_model else model
        if self.mode == "ddp":
            devices = [where.device] if where.device.type == "cuda" else None
            forward = self._ddp = nn.parallel.DistributedDataParallel(forward, device_ids=devices)
        self.forward = forward

    @contextlib.contextmanager
    def accumulate(self, more_to_come: bool) -> Iterator[None]:
        """Gradients are exchanged only on the last micro-batch of a step."""
        if self.mode == "fsdp":
            self.model.set_requires_gradient_sync(not more_to_come)  # type: ignore[operator]
        skip = self._ddp is not None and more_to_come
        with self._ddp.no_sync() if skip else contextlib.nullcontext():  # type: ignore[union-attr,operator]
            yield

    def state(self, optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
        """Full (model, optimizer) states by parameter name, equal whatever the number of processes; on rank 0."""
        options = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
        if self.mode != "fsdp":
            options = dcp.StateDictOptions()
        model_state = dcp.get_model_state_dict(self.model, options=options)
        return model_state, dcp.get_optimizer_state_dict(self.model, optimizer, options=options)

    def load(self, optimizer: torch.optim.Optimizer, model_state: dict, optimizer_state: dict) -> None:
        """The inverse of `state`; every rank has read the same checkpoint."""
        options = dcp.StateDictOptions(full_state_dict=self.mode == "fsdp")
        dcp.set_model_state_dict(self.model, model_state, options=options)
        dcp.set_optimizer_state_dict(self.model, optimizer, optim_state_dict=optimizer_state, options=options)
