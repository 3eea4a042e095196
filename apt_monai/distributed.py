"""Several processes that share one piece of work: torchrun starts them, each is a rank.

A run without torchrun is rank 0 of 1, and nothing here does anything. With more ranks, what is written is written by
rank 0 alone (the lead) or by the rank that the item belongs to, in folders that every rank sees; random numbers are
drawn as if there were one rank. So a result does not depend on the number of ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")


def start_ranks(device: str | torch.device, timeout_hours: float = 48.0) -> None:
    """Join the other processes that torchrun started; without torchrun, do nothing.

    Those that have joined already only take their GPUs: a command that joins on the CPU may run a bundle on GPUs.

    Args:
        device: where this run computes. On ``"cuda"``, each rank takes the GPU of its number on its machine.
        timeout_hours: so long a rank waits for the others, such as for the last study of a cohort. A rank that dies
            ends the others at once, whatever this is: torchrun sees to it.

    Raises:
        ValueError: more ranks on a machine than it has GPUs, or all ranks on one GPU.

    Example::

        >>> start_ranks("cpu")
        >>> is_lead()
        True
    """
    if not dist.is_torchelastic_launched():
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if torch.device(device).index is not None:
            raise ValueError(f"device is '{device}', one GPU for all processes: give 'cuda', and each takes its own")
        if local_rank >= gpus:
            raise ValueError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on this machine, which has {gpus} GPUs: "
                "start one for each GPU at most (--nproc_per_node of torchrun, --gpus of apt_monai), or give 'cpu' as "
                "the device"
            )
        torch.cuda.set_device(local_rank)
    if dist.is_initialized():
        return
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=timeout_hours))
    idist.sync()  # ignite takes notice: a collective call, and here all ranks are at the same place


def shared(network: nn.Module) -> nn.Module:
    """A network in training whose gradients are the means over all ranks; with one rank, the network itself.

    Example::

        >>> network = nn.Linear(1, 1)
        >>> shared(network) is network
        True
    """
    if idist.get_world_size() == 1:
        return network
    partly = getattr(network, "partly_trained", False)  # some parameters get no gradient at times
    return DistributedDataParallel(network, gradient_as_bucket_view=True, find_unused_parameters=partly)


def average_gradients(module: nn.Module) -> None:
    """The gradients become the means over all ranks, where no :func:`shared` network does so.

    Example::

        >>> average_gradients(nn.Linear(1, 1))
    """
    for parameter in module.parameters() if idist.get_world_size() > 1 else ():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= idist.get_world_size()


def stop_ranks() -> None:
    """Leave what :func:`start_ranks` joined.

    Example::

        >>> stop_ranks()
    """
    if dist.is_initialized():
        idist.barrier()  # torchrun gives up on several machines when one of them is through long before the others
        idist.finalize()


def is_lead() -> bool:
    """Whether this is rank 0, which writes what all ranks made together.

    Example::

        >>> is_lead()
        True
    """
    return idist.get_rank() == 0


def lead_first() -> AbstractContextManager[None]:
    """A block that rank 0 goes through first, and the others when it is through: they find what it made.

    Example::

        >>> with lead_first():
        ...     pass
    """
    return idist.one_rank_first()


def own_share(items: Iterable[Item]) -> list[Item]:
    """What of the lead's ``items`` is this rank's: every n-th from its own on. All ranks reach this together.

    The ranks may have listed other items, where one of them saw a file before the others did.

    Example::

        >>> own_share("abc")  # of one rank
        ['a', 'b', 'c']
    """
    return gather(list(items))[0][idist.get_rank() :: idist.get_world_size()]


def own_rows(rows: int, draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """This rank's share ``(rows, ...)`` of what is drawn for the samples of all ranks at once.

    The order is that of :class:`torch.utils.data.DistributedSampler`: the ranks take samples in turn.

    Args:
        rows: how many samples this rank has, and each other one.
        draw: gives a tensor ``(n, ...)`` for n samples.

    Example::

        >>> own_rows(3, torch.arange)  # of one rank
        tensor([0, 1, 2])
    """
    ranks = idist.get_world_size()
    return draw(rows * ranks)[idist.get_rank() :: ranks]


def rank_batch_size(name: str, batch_size: int, samples: int) -> int:
    """How many samples a rank takes at a time, so that all ranks together take ``batch_size``.

    Args:
        name: what the config calls this batch size.
        batch_size: of all ranks together.
        samples: how many there are; a batch is never larger.

    Raises:
        ValueError: the ranks cannot have equally many, or there are fewer samples than ranks.

    Example::

        >>> [rank_batch_size("batch_size", 16, samples) for samples in (1000, 10)]  # of one rank
        [16, 10]
    """
    ranks = idist.get_world_size()
    if batch_size % ranks or samples < ranks:
        raise ValueError(
            f"{ranks} ranks cannot share batches of {batch_size} of {samples} samples: "
            f"give a {name} that is a multiple of {ranks}, or start fewer ranks"
        )
    return min(batch_size, samples) // ranks


def gather(item: Item) -> list[Item]:
    """Every rank's item, by rank. Plain values and CPU tensors; all ranks reach this together.

    Example::

        >>> gather("a")
        ['a']
    """
    if idist.get_world_size() == 1:
        return [item]
    items: list[Any] = [None] * idist.get_world_size()
    dist.all_gather_object(items, item)
    return items
