"""One training step through the runner against a hand-written loop of the same model, batches and precision."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from mmcl.benchmarks.throughput import pocket
from mmcl.benchmarks.throughput.figures import ratios, show, summary
from mmcl.benchmarks.throughput.turns import Gate, Participant, Plan, measure
from mmcl.functional.schedules import warmup_cosine

HAND, MMCL, AGAIN = "hand-written loop", "mmcl", "hand-written loop again"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("--batch_size", type=int, default=20, help="pairs of a step (default: %(default)s)")
    parser.add_argument("--model", default=pocket.MODEL, help="a model of CLIPModule (default: %(default)s)")
    parser.add_argument("--save_every", type=int, default=0, help="steps between checkpoints of mmcl (default: none)")
    parser.add_argument("--control", action="store_true", help="measure the hand-written loop twice")


def hand_written(setting: pocket.Setting) -> Participant:
    """Contrastive training of an open_clip model as one writes it without a framework."""

    def work(gate: Gate) -> str:
        module = setting.module()
        batches = pocket.preload(setting, module, gate)
        model = module.network.train()
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others}], betas=(0.9, 0.98), weight_decay=0.0)
        loss_function = ClipLoss(local_loss=True, gather_with_grad=True)
        steps = len(batches)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = 1e-4 * warmup_cosine(step, steps, round(0.1 * steps))
            optimizer.zero_grad()
            image = F.normalize(model.encode_image(batch["image"]), dim=-1)
            text = F.normalize(model.encode_text(batch["text"]), dim=-1)
            loss = loss_function(image, text, model.logit_scale.exp())
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)
        return pocket.digest(model)

    return work


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print."""
    setting = pocket.Setting(arguments.batch_size, "contrastive", arguments.save_every, arguments.model)
    participants = {HAND: hand_written(setting), MMCL: pocket.fit(setting)}
    if arguments.control:
        participants[AGAIN] = hand_written(setting)
    seconds, digests = measure(participants, plan)
    rows = [
        [
            name,
            summary([1000 * s / plan.steps for s in blocks]).show(),
            "1" if name == HAND else ratios(blocks, seconds[HAND]).show(4),
        ]
        for name, blocks in seconds.items()
    ]
    equal = "bit-equal" if len(set(digests.values())) == 1 else "NOT equal"
    title = (
        f"One training step, batch {setting.batch_size}, {plan.blocks} blocks of {plan.steps} steps each in turn; "
        f"weights after {plan.total} steps: {equal}"
    )
    show(title, ["loop", "CPU ms per step", "ratio"], rows, plan.threads)
