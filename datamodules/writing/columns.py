"""Named values, of a table's line or a data set's row, to a `Row`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmcl.datamodules.writing.options import Columns, Options
from mmcl.datamodules.writing.rows import Row
from mmcl.errors import ConfigError, near

FIELDS = ("image", "audio", "text", "label", "key")


class ColumnMap:
    """Which column of this table holds what.

    Args:
        options: the user's.
        known: the columns that there are.
        where: the table, for messages.

    Raises:
        ConfigError: a column that was named is not there, or nothing of a sample is.
    """

    def __init__(self, options: Options, known: Sequence[str], where: str) -> None:
        wanted: Columns = options.columns
        self.identity, self.split, self.json = options.split_by, options.split_from, wanted.json
        chosen = {field: getattr(wanted, field) for field in FIELDS}
        named = {**chosen, "split_by": self.identity, "split_from": self.split}
        flags = [(flag, name) for flag, name in named.items() if name is not None]
        for flag, name in [*flags, *(("json", name) for name in self.json)]:
            if name not in known:
                raise ConfigError(f"{where}: --{flag}: there is no column '{name}'; {near(name, known)}")
        self.of = {f: name or f for f, name in chosen.items() if name or f in known}
        if not {"image", "audio", "text"} & self.of.keys():
            raise ConfigError(
                f"{where}: none of its columns is called image, audio or text; say which ones hold what with --image, "
                f"--audio or --text (columns: {', '.join(known)})"
            )
        self.used = {*self.of.values(), *self.json, *(n for n in (self.identity, self.split) if n is not None)}
        self.unused = Counter({f"column '{name}'": 1 for name in known if name not in self.used})

    def row(self, values: Mapping[str, Any], members: Mapping[str, Any], place: str, name: str) -> Row:
        """The row of one line.

        Args:
            values: the cells.
            members: picture and recording.
            place: for messages.
            name: the key where no column holds keys.
        """
        fault, found = "", dict(members)
        extra = {column: values[column] for column in self.json}
        if "text" in self.of:
            text = values[self.of["text"]]
            if isinstance(text, (list, tuple)):
                extra["captions"] = list(text)
                if not text or not all(isinstance(t, str) and t.strip() for t in text):
                    fault = "one of its captions is empty"
            elif isinstance(text, str) and text.strip():
                found["txt"] = text.strip()
            else:
                fault = "its caption is empty" if text is None or isinstance(text, str) else "its caption is no text"
        if extra:
            found["json"] = extra
        key, label = self._text(values, "key"), values[self.of["label"]] if "label" in self.of else None
        if "key" in self.of and not key:
            fault = fault or "its key is empty"
        if "label" in self.of and _empty(label):
            fault = fault or "its label is empty"
        identity = None if self.identity is None else _plain(values[self.identity])
        if identity == "":
            fault = fault or f"its column '{self.identity}' is empty, so that it belongs on no side of the split"
        split = None if self.split is None else _plain(values[self.split])
        return Row(key or name, place, found, None if _empty(label) else _label(label), identity, split, fault)

    def _text(self, values: Mapping[str, Any], field: str) -> str:
        return _plain(values[self.of[field]]) if field in self.of else ""


def _empty(value: Any) -> bool:
    return value is None or _plain(value) == "" or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _label(value: Any) -> str | int:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # numbers of a column with gaps
        return int(value)
    return value if isinstance(value, int) else _plain(value)
