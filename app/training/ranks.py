"""Several processes on one run: each takes its part of every batch, the sums are added up.

Started by `torchrun`; without it there is one process, and nothing of this is felt. The crops of a
step are the same whatever the number of processes, and the loss is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

from app.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `count`; number 0 speaks, scores and writes."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks."""
        return self.rank == 0

    def wrap(self, net: nn.Module) -> nn.Module:
        """A net whose gradients are the mean over processes."""
        if self.count == 1:
            return net
        if self.device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
            return DistributedDataParallel(net, device_ids=[self.device.index])
        return DistributedDataParallel(net)

    def together(self, sums: torch.Tensor) -> torch.Tensor:
        """The sum over all processes; gradients pass."""
        if self.count == 1:
            return sums
        found: torch.Tensor = _Sum.apply(sums)
        return found

    def same(self, value: bool) -> bool:
        """Whether every process says the same."""
        if self.count == 1:
            return True
        said = torch.tensor([value, not value], dtype=torch.int64, device=self.device)
        dist.all_reduce(said)
        return 0 in said.tolist()

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the others."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """Every process has the whole loss, so each passes back what all of them ask of its part; the
    mean that DistributedDataParallel takes of gradients then gives that of the one loss."""

    @staticmethod
    def forward(ctx: Any, sums: torch.Tensor) -> torch.Tensor:
        total = sums.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def own_device() -> torch.device:
    """Where a process that is alone trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def join_ranks(batch: int) -> Ranks:
    """Meet the other processes that `torchrun` started, if it did.

    Raises TrainingError where the batch cannot be shared out evenly.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return Ranks(0, 1, own_device())
    cuda = torch.cuda.is_available()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    if batch % count:
        dist.destroy_process_group()
        raise TrainingError(f"a batch of {batch} cannot be shared by {count} processes evenly")
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return Ranks(rank, count, device)


class Share(Sampler[int]):
    """Indices of this process from crop `start` on: its part of each batch, in order."""

    def __init__(self, start: int, end: int, *, batch: int, rank: int, count: int) -> None:
        self._batches = range(start, end, batch)
        self._own = range(rank * batch // count, (rank + 1) * batch // count)

    def __iter__(self) -> Iterator[int]:
        return (first + offset for first in self._batches for offset in self._own)

    def __len__(self) -> int:
        return len(self._batches) * len(self._own)
