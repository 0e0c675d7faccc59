"""One of two processes that compute the objectives' gradients; run by test_objectives.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mmcl import distributed
from mmcl.modules.contrastive_losses import ClassTextCrossEntropy, Contrastive
from mmcl.outputs import Batch, Outputs

CASES = ["clip", "siglip", "classes", "unlabelled"]


def gradients(case: str, padded: bool, rank: int, world: int) -> list[Tensor]:
    """The loss and its gradients, averaged over processes, on this process's part of one fixed batch of 8."""
    generator = torch.Generator().manual_seed(0)
    data = {name: torch.randn(8, 5, generator=generator) for name in ("image", "text")}
    weights = [torch.randn(5, 4, generator=generator).requires_grad_() for _ in range(2)]
    scalars = [torch.tensor(value, requires_grad=True) for value in (3.0, -1.0)]
    labels, classes = torch.randint(3, (8,), generator=generator), torch.randn(3, 4, generator=generator)
    if case == "unlabelled":  # all of them in the second process
        labels[5:7] = -100
    valid = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0], dtype=torch.bool)
    if world == 1 and padded:  # the truth: no padding at all
        data, labels, padded = {k: v[:6] for k, v in data.items()}, labels[:6], False
    part = slice(rank * len(labels) // world, (rank + 1) * len(labels) // world)
    features = {name: data[name][part] @ w for name, w in zip(("image", "text"), weights, strict=True)}
    outputs = Outputs(features, logit_scale=scalars[0], targets=labels[part], extra={"logit_bias": scalars[1]})
    outputs.logits = scalars[0] * features["image"] @ classes.T + scalars[1] * features["text"][:, :3]
    batch: Batch = {"valid": valid[part]} if padded else {}
    objective = Contrastive(case) if case in ("clip", "siglip") else ClassTextCrossEntropy()  # type: ignore[arg-type]
    [loss] = objective.terms(outputs, batch).values()
    found = torch.autograd.grad(loss, [*weights, *scalars])
    return [distributed.mean(x) for x in (loss.detach(), *found)]


if __name__ == "__main__":
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    found = {f"{case} {padded}": gradients(case, padded, rank, world) for case in CASES for padded in (False, True)}
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
