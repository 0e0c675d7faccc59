"""FoMo-in-Flux: classes of many data sets in a published order, cut into equal tasks, with held-out data sets.

Roth et al., "A Practitioner's Guide to Continual Multimodal Pretraining", NeurIPS 2024.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from mmcl.benchmarks.folders import DataFolder, joined
from mmcl.errors import ConfigError
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

SEPARATOR = "+++"
POOL = 0.33
"""Share of a batch that is pretraining data, and again earlier tasks' data."""
TEMPLATE = "a photo of a {}."
PROTOCOL = (
    "FoMo-in-Flux: {items} classes of {sets} data sets in the order of {file}, cut into {tasks} tasks of {steps} "
    "steps. Earlier tasks' pairs take 0.33 of a batch from the second task on, pretraining pairs {pretraining}; the "
    "task's own take the rest. A_KA is the mean over the columns of the group 'adaptation', A_ZS over the held-out "
    "ones, each over all classes of a data set and with its own template."
)


def fomo_in_flux(
    sequence: str,
    root: str = "data/fomo",
    held_out: Sequence[str] = (),
    tasks: int = 20,
    steps: int = 1420,
    pretraining: Sequence[str] = (),
    subset: int | None = 300,
) -> Stream:
    """A stream of (data set, class) pairs out of folders of shards.

    Args:
        sequence: JSON file with a list of ``"dataset+++class"`` in the order of the stream, as the benchmark ships it.
        root: holds a folder for each data set, as `mmcl shards write` leaves it: ``train-*.tar`` with pictures,
            captions and labels, ``test-*.tar``, ``classes.txt``; and ``template.txt`` where "a photo of a {}." does
            not fit.
        held_out: folders of data sets that no task trains.
        tasks: how many tasks the sequence is cut into; the first ones are longer by one where it does not divide.
        steps: optimizer steps of each task. 1,420 is the published budget of full fine-tuning of a ViT-B/16 with 20
            tasks and batches of 512; `mmcl.functional.budgets.steps_within_budget` gives that of other methods.
        pretraining: shards of pretraining pairs.
        subset: samples of each set that evaluations within tasks use.

    Raises:
        ConfigError: a sequence that cannot be read, a pair that is there twice, a class that a data set lacks, or a
            folder that is missing.
    """
    items = _items(sequence)
    if not 1 <= tasks <= len(items):
        raise ConfigError(f"fomo_in_flux: {tasks} tasks out of {len(items)} classes; take 1 to {len(items)}")
    base = Path(root).expanduser()
    folders = {name: DataFolder(base / name, "fomo_in_flux") for name in dict.fromkeys(name for name, _ in items)}
    places = {name: {c: i for i, c in enumerate(folder.class_names())} for name, folder in folders.items()}
    for name, what in items:
        if what not in places[name]:
            raise ConfigError(f"fomo_in_flux: '{name}' has no class '{what}' (see {base / name / 'classes.txt'})")
    ends = list(accumulate(len(items) // tasks + (i < len(items) % tasks) for i in range(tasks)))
    own: list[list[Source]] = []
    for first, end in zip([0, *ends], ends, strict=False):
        chosen: dict[str, dict[int, int]] = {}
        for name, what in items[first:end]:
            chosen.setdefault(name, {})[places[name][what]] = places[name][what]
        own.append([Source(folders[name].shards("train"), name=name, labels=own) for name, own in chosen.items()])
    stages = [
        Task(f"task-{i + 1}", sources, Budget(steps=steps), mix=_mix(own[:i], pretraining))
        for i, sources in enumerate(own)
    ]
    columns = [_column(folder, "adaptation", subset) for folder in folders.values()]
    columns += [_column(DataFolder(base / name, "fomo_in_flux"), "held_out", subset) for name in held_out]
    facts = {"items": len(items), "sets": len(folders), "file": Path(sequence).name, "tasks": tasks, "steps": steps}
    protocol = PROTOCOL.format(
        **facts, pretraining="0.33 (half of what is left in the first)" if pretraining else "none"
    )
    return Stream("fomo_in_flux", stages, columns, protocol=protocol)


def _items(sequence: str) -> list[tuple[str, str]]:
    path = Path(sequence).expanduser()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"fomo_in_flux: the sequence '{path}' cannot be read: {error}") from error
    if not isinstance(found, list) or not all(isinstance(item, str) and SEPARATOR in item for item in found):
        raise ConfigError(f"fomo_in_flux: '{path}' is no list of \"dataset{SEPARATOR}class\"")
    items = [(name, what) for name, _, what in (item.partition(SEPARATOR) for item in found)]
    if double := next((item for item, times in Counter(items).items() if times > 1), None):
        raise ConfigError(f"fomo_in_flux: '{path}' has {SEPARATOR.join(double)} twice")
    if not items:
        raise ConfigError(f"fomo_in_flux: '{path}' is empty")
    return items


def _mix(earlier: Sequence[Sequence[Source]], pretraining: Sequence[str]) -> list[Source]:
    """Pretraining and earlier pairs; in the first task pretraining pairs get half of what earlier ones would take."""
    found = []
    if pretraining:
        share = POOL if earlier else POOL + POOL / 2
        found.append(Source(list(pretraining), name="pretraining", share=share))
    if earlier:
        found.append(joined("earlier", [source for sources in earlier for source in sources], share=POOL))
    return found


def _column(folder: DataFolder, group: str, subset: int | None) -> EvalSet:
    file = folder.path / "template.txt"
    template = file.read_text(encoding="utf-8").strip() if file.is_file() else TEMPLATE
    source = Source(folder.shards("test"), name=folder.path.name, augment=False)
    names = folder.class_names()
    return EvalSet(folder.path.name, source, "zero_shot", names, [template], group=group, subset=subset)
