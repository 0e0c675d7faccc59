"""The few collectives that the core needs, each an identity in a single process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather  # differentiable


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def leave() -> None:
    """End the process group on all ranks together: one that ends first closes connections that others still watch."""
    if world_size() > 1:
        dist.barrier()
        dist.destroy_process_group()


def lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone."""
    return world_size() > 1 and (isinstance(error, dist.DistBackendError) or "gloo/transport" in str(error))


def total(tensor: Tensor) -> Tensor:
    """Sum over ranks."""
    if world_size() == 1:
        return tensor
    on_gpu = dist.get_backend() == "nccl"
    summed = tensor.cuda() if on_gpu and not tensor.is_cuda else tensor.clone()  # nccl knows no CPU
    dist.all_reduce(summed)
    return summed.to(tensor.device)


def mean(tensor: Tensor) -> Tensor:
    """Mean over ranks."""
    return total(tensor) / world_size()


def agree(flag: int) -> int:
    """The largest value of a small number over all ranks."""
    if world_size() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(flag, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def gather(tensor: Tensor) -> Tensor:
    """Rows of all ranks in rank order; the first dimension may differ, and gradients flow back to their owners."""
    if world_size() == 1:
        return tensor
    rows = torch.tensor(tensor.shape[0], device=tensor.device)
    counts = [torch.zeros_like(rows) for _ in range(world_size())]
    dist.all_gather(counts, rows)
    sizes = [int(c.item()) for c in counts]
    most = max(sizes)
    padded = (
        torch.cat([tensor, tensor.new_zeros((most - tensor.shape[0], *tensor.shape[1:]))])
        if most > tensor.shape[0]
        else tensor
    )
    if padded.requires_grad:
        parts = list(all_gather(padded.contiguous()))  # type: ignore[no-untyped-call]
    else:
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
