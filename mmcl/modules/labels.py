"""The label space of a stream: which column of a classifier stands for which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mmcl.errors import ConfigError, RunError, near
from mmcl.modules.objectives import IGNORED
from mmcl.stream import Stream


@dataclass(frozen=True)
class LabelSpace:
    """The ordered union of the tasks' class names. A name in two tasks is one class (domain-incremental streams).

    The classes of the first k tasks are the first columns, so that a head only ever grows at its end.

    Attributes:
        tasks: the class names of each task, in the order of its labels.
        titles: the tasks' names.
    """

    tasks: tuple[tuple[str, ...], ...] = ()
    titles: tuple[str, ...] = ()

    @classmethod
    def of(cls, stream: Stream) -> LabelSpace:
        """The label space of a stream.

        Raises:
            ConfigError: a task without class names, a name twice in a task, or two names that differ by case or by
                spaces alone.
        """
        tasks = []
        spelling: dict[str, tuple[str, str]] = {}
        for task in stream.tasks:
            if task.class_names is None:
                raise ConfigError(f"task '{task.name}' has no class names, and a classifier needs them (`class_names`)")
            names = tuple(task.class_names)
            for i, name in enumerate(names):
                if name in names[:i]:
                    raise ConfigError(f"task '{task.name}': class '{name}' is labels {names.index(name)} and {i}")
                known, where = spelling.setdefault(" ".join(name.casefold().split()), (name, task.name))
                if known != name:
                    raise ConfigError(
                        f"class '{name}' of task '{task.name}' and '{known}' of task '{where}' differ by case or "
                        "spaces alone; write one class alike everywhere, or rename one"
                    )
            tasks.append(names)
        return cls(tuple(tasks), tuple(task.name for task in stream.tasks))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The class of each column."""
        return tuple(dict.fromkeys(name for names in self.tasks for name in names))

    @cached_property
    def table(self) -> tuple[tuple[int, ...], ...]:
        """(task, label) -> column."""
        place = {name: i for i, name in enumerate(self.names)}
        return tuple(tuple(place[name] for name in names) for names in self.tasks)

    def position(self, title: str) -> int:
        """The place of a task in the stream.

        Raises:
            ConfigError: the stream has no such task.
        """
        if title not in self.titles:
            raise ConfigError(f"task '{title}' is not of the stream that the label space was made for")
        return self.titles.index(title)

    def seen(self, position: int) -> int:
        """How many classes the tasks up to this one have, this one included: they are the first columns."""
        return 1 + max((column for columns in self.table[: position + 1] for column in columns), default=-1)

    def column(self, position: int, label: int, key: str = "?") -> int:
        """The column of a sample's label.

        Args:
            position: of the task in the stream whose class names the label counts in.
            label: -100 (no label) stays what it is.
            key: of the sample, for messages.

        Raises:
            RunError: the label is outside the task's class names.
        """
        if label == IGNORED:
            return IGNORED
        columns = self.table[position]
        if not 0 <= label < len(columns):
            raise RunError(
                f"sample '{key}' has label {label}, but its task has {len(columns)} classes (labels 0.."
                f"{len(columns) - 1}); map the source's labels (`labels`), or leave them out of its `fields`"
            )
        return columns[label]

    def columns(self, names: Sequence[str], where: str) -> list[int]:
        """The columns of class names, for instance those of an evaluation set.

        Raises:
            ConfigError: no task has such a class.
        """
        place = {name: i for i, name in enumerate(self.names)}
        for name in names:
            if name not in place:
                raise ConfigError(f"{where}: no task has the class '{name}'; {near(name, place)}")
        return [place[name] for name in names]
