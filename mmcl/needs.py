"""Whether samples have what a module trains on and what its evaluation sets measure, before anything is written."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mmcl.errors import ConfigError
from mmcl.outputs import MEMBERS
from mmcl.stream import Source, Stream


def check_samples(stream: Stream, module: Any, data: Any, trains: bool = True) -> None:
    """Refuse sources whose samples lack a field that they are read for.

    Args:
        stream: its tasks and evaluation sets.
        module: says with `needed` which fields those are.
        data: says with `fields` which ones there are, and with `title` where.
        trains: False where strategies let nothing train, so that no objective reads a sample.

    Raises:
        ConfigError: names the task or evaluation set, the source and the field.
    """
    for task in stream.tasks if trains else ():
        if not data.plan(task, task.mix).steps:
            continue
        where, needed = f"task '{task.name}'", module.needed()
        who = f"{type(module).__name__} with {type(module.objective).__name__}"
        for source in task.train:
            _check(where, source, needed, data, who)
        for source in task.mix:  # a row without a label takes no part in what is learned from labels
            _check(where, source, needed - {"labels"}, data, who)
    for evalset in stream.evals:
        needed = module.needed(evalset.probe)
        _check(f"evaluation set '{evalset.name}'", evalset.source, needed, data, f"probe '{evalset.probe}'")


def _check(where: str, source: Source, needed: Collection[str], data: Any, who: str) -> None:
    for part in source.all if needed else ():
        there = data.fields(part)
        for field in sorted(set(needed) - set(there)):
            raise ConfigError(
                f"{where}: the samples of {data.title(part)} have no {field}, which {who} needs; "
                f"they have {', '.join(sorted(there))}: add a member such as {MEMBERS[field]}, or choose `fields`"
            )
