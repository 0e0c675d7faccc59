"""One training step of any kind of module through the runner against a loop of one's own around the same module."""

from __future__ import annotations

import resource
from argparse import ArgumentParser, Namespace

import torch

from mmcl import seeds
from mmcl.benchmarks.throughput import kinds, networks, pocket
from mmcl.benchmarks.throughput.figures import ratios, show, summary
from mmcl.benchmarks.throughput.turns import Gate, Participant, Plan, measure

HAND, MMCL = "hand-written loop", "mmcl"


def add_arguments(parser: ArgumentParser) -> None:
    """Options of this measurement."""
    parser.add_argument("kind", choices=list(kinds.KINDS), help="kind of module")


def hand_written(setting: kinds.Setting) -> Participant:
    """The module's network and loss in a loop as one writes it without a framework."""

    def work(gate: Gate) -> tuple[str, int]:
        module = setting.module()
        module.check(setting.data(1).stream)
        task = setting.data(1).stream.tasks[0]
        module.grow(task)
        module.objective.start(module, task)
        batches = pocket.preload(setting, module, gate)
        network = module.train().network
        trained = [p for p in network.parameters() if p.requires_grad]
        groups = [[p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]]
        optimizer = torch.optim.AdamW([{"params": g} for g in groups], betas=module.betas, weight_decay=0.0)
        steps = len(batches)
        for step, batch in enumerate(batches):
            seeds.reseed(0, "batch", 0, step, 0, 0)  # the runner's, for equal masks and dropout
            for group in optimizer.param_groups:
                group["lr"] = module.lr * module.schedule(step, steps)
            optimizer.zero_grad()
            batch = module.objective.prepare(batch)
            terms = module.objective.terms(module.compute(network, batch), batch)
            loss = torch.stack(list(terms.values())).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            module.after_step()
        return pocket.digest(network), peak()

    return work


def through_runner(setting: kinds.Setting) -> Participant:
    """The same through `mmcl.runner.Runner`, with the memory that it took."""
    fit = pocket.fit(setting)
    return lambda gate: (fit(gate), peak())


def peak() -> int:
    """Most memory that this process held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(arguments: Namespace, plan: Plan) -> None:
    """Measure and print."""
    setting = kinds.KINDS[arguments.kind]
    networks.place()  # before the processes part
    setting.module()
    setting.data(1)
    participants = {HAND: hand_written(setting), MMCL: through_runner(setting)}
    seconds, found = measure(participants, plan)
    rows = [
        [
            name,
            summary([1000 * s / plan.steps for s in blocks]).show(),
            "1" if name == HAND else ratios(blocks, seconds[HAND]).show(4),
            str(found[name][1]),
        ]
        for name, blocks in seconds.items()
    ]
    parameters = sum(p.numel() for p in setting.module().network.parameters()) / 1e6
    title = (
        f"One training step of {arguments.kind} ({parameters:.1f} M weights), batch {setting.batch_size}, "
        f"{plan.blocks} blocks of {plan.steps} steps each in turn; weights after {plan.total} steps: "
        f"{'bit-equal' if found[HAND][0] == found[MMCL][0] else 'NOT equal'}"
    )
    show(title, ["loop", "CPU ms per step", "ratio", "peak MiB"], rows, plan.threads)
