"""P9D and streams like it: pairs of one industry after another, measured by retrieval.

Zhu et al., "CTP: Towards Vision-Language Continual Pretraining via Compatible Momentum Contrast and Topology
Preservation", ICCV 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmcl.benchmarks.folders import DataFolder, joined
from mmcl.errors import ConfigError
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

INDUSTRIES = (
    *("household", "furnishings", "food", "beauty", "clothing"),
    *("auto", "parenting", "outdoor", "electronics"),
)
"""The nine industries of P9D, in the default order."""
PROTOCOL = (
    "Image-text pairs of {count} domains one after another, {epochs:g} epochs each. Retrieval in both directions on "
    "the test pairs of each domain alone, and on pools that grow: the column so-far-K holds the test pairs of the "
    "first K domains. The paper's table 'so far' is the diagonal of the pools, its table 'final' their last row; pools "
    "of different size are not comparable with one another. Its BWT has the opposite sign of GEM's."
)


def p9d(
    root: str = "data/p9d", domains: Sequence[str] = INDUSTRIES, reverse: bool = False, epochs: float = 5
) -> Stream:
    """A stream of pairs by domain, with retrieval per domain and on growing pools.

    Args:
        root: holds a folder for each domain, as `mmcl shards write` leaves it: ``train-*.tar`` and ``test-*.tar`` with
            pictures and texts.
        domains: the folders, in the order of the tasks; the nine industries of P9D by default.
        reverse: take them from the last to the first, the paper's other order.
        epochs: passes over each task's pairs; 5 in the paper, with batches of 512.

    Raises:
        ConfigError: no domain, or a folder that is missing or incomplete.
    """
    if not domains:
        raise ConfigError("p9d: `domains` is empty; name at least one folder")
    names = list(reversed(domains)) if reverse else list(domains)
    folders = {name: DataFolder(Path(root).expanduser() / name, "p9d") for name in names}
    tasks = [
        Task(name, [Source(folder.shards("train"), name=name)], Budget(epochs=epochs), name, domain=name)
        for name, folder in folders.items()
    ]
    tests = [Source(folder.shards("test"), name=name, augment=False) for name, folder in folders.items()]
    columns = [EvalSet(source.name, source, "retrieval", group="domain") for source in tests]
    columns += [
        EvalSet(f"so-far-{i}", joined(f"so-far-{i}", tests[:i]), "retrieval", group="pool")
        for i in range(2, len(tests) + 1)
    ]
    return Stream("p9d", tasks, columns, protocol=PROTOCOL.format(count=len(tasks), epochs=epochs))
