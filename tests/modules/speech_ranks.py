"""One of two processes that compute the speech objectives' gradients; run by test_speech_pretraining.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import tiny_speech

from mmcl import distributed
from mmcl.outputs import Batch

CASES = ("wav2vec2", "hubert")


def gradients(case: str, folder: Path, rank: int, world: int) -> dict[str, Tensor]:
    """Losses and their gradients, averaged over processes, on this process's part of one fixed batch of 8."""
    torch.manual_seed(0)
    module = tiny_speech.CASES[case][0](folder / case)  # type: ignore[call-arg]
    module.eval()  # the Gumbel noise of training differs between processes
    if case == "wav2vec2":  # hard choices have no gradient, so that the codebooks would be left out
        module.network.quantizer.train()
        torch.nn.functional.gumbel_softmax = lambda logits, tau, hard: logits.div(tau).softmax(-1)  # type: ignore
    whole = tiny_speech.batch_of(module, count=8)
    whole["valid"] = torch.tensor([1, 1, 1, 1, 1, 1, 1, 0], dtype=torch.bool)
    part = slice(rank * 8 // world, (rank + 1) * 8 // world)
    batch: Batch = {k: v[part] for k, v in whole.items()}
    terms = module.loss(module(batch), batch)
    torch.stack(list(terms.values())).sum().backward()
    found = {n: p.grad for n, p in module.network.named_parameters() if p.grad is not None}
    return {n: distributed.mean(t.detach()) for n, t in (terms | found).items()}


if __name__ == "__main__":
    folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    found = {case: gradients(case, folder / str(rank), rank, world) for case in CASES}
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
