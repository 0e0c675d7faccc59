"""Tables with a header: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mmcl.datamodules.remote import scheme
from mmcl.datamodules.writing.columns import ColumnMap
from mmcl.datamodules.writing.options import Options
from mmcl.datamodules.writing.rows import File, Row
from mmcl.errors import ConfigError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
FAULT = "\0fault"
"""Entry of a line that has the wrong form: why. No column can be called so."""

Line = tuple[int, Mapping[str, Any]]
"""Number of a line (from 1, the header of a CSV is 1) and its cells."""


class TableSource:
    """The rows of one or several tables with the same columns, in their order.

    Args:
        options: the tables and their columns.

    Raises:
        ConfigError: a file is not there or is no such table, or columns are missing.
    """

    kind = "table"

    def __init__(self, options: Options) -> None:
        self._paths = [Path(source) for source in options.sources]
        self._quoted = options.columns.tsv_quotes
        headers = [self._header(path) for path in self._paths]
        for path, header in zip(self._paths, headers, strict=True):
            if sorted(header) != sorted(headers[0]):
                differ = ", ".join(sorted(set(header) ^ set(headers[0])))
                raise ConfigError(
                    f"{path} and {self._paths[0]} have different columns ({differ}); write them one by one"
                )
        self._columns = ColumnMap(options, headers[0], str(self._paths[0]))
        self._blank = dict.fromkeys(headers[0])  # lines of JSON may leave keys out
        self._check_parquet()
        self._root = None if options.columns.root is None else Path(options.columns.root)
        self.class_names: tuple[str, ...] = ()
        self.unused = Counter(self._columns.unused)

    def _check_parquet(self) -> None:
        for path in (path for path in self._paths if path.suffix == ".parquet"):
            schema = _open_parquet(path).schema_arrow
            for field in {"image", "audio"} & self._columns.of.keys():
                form = str(schema.field(self._columns.of[field]).type)
                if "string" not in form:
                    raise ConfigError(
                        f"{path}: column '{self._columns.of[field]}' holds no paths but {form}; a table with "
                        f"the {field} inside is read by `datasets`: load_dataset('parquet', data_files=[...])"
                        ".save_to_disk(FOLDER), then write that folder"
                    )

    def rows(self) -> Iterator[Row]:
        """One for each line."""
        number = 0
        for path in self._paths:
            for line, values in self._lines(path):
                place, name = f"{path} line {line}", f"row-{number:08d}"
                number += 1
                if FAULT in values:
                    yield Row(name, place, fault=str(values[FAULT]))
                else:
                    yield self._row(path, {**self._blank, **values}, place, name)

    def _row(self, table: Path, values: Mapping[str, Any], place: str, name: str) -> Row:
        members: dict[str, File] = {}
        for field in ("image", "audio"):
            if field in self._columns.of:
                path = values[self._columns.of[field]]
                if not isinstance(path, str) or not path.strip():
                    return Row(name, place, fault=f"its column '{self._columns.of[field]}' holds no path")
                if scheme(path) is not None:
                    return Row(name, place, fault=f"'{path}' is no path of a local file; download it first")
                members[field] = File(os.path.normpath((self._root or table.parent) / path.strip()))
        return self._columns.row(values, members, place, name)

    def _lines(self, path: Path) -> Iterator[Line]:
        if path.suffix == ".parquet":
            return _parquet(path, sorted(self._columns.used))
        return _jsonl(path) if path.suffix == ".jsonl" else _csv(path, path.suffix == ".csv" or self._quoted)

    def _header(self, path: Path) -> list[str]:
        if not path.is_file() or path.suffix not in SUFFIXES:
            what = f"is no table ({', '.join(SUFFIXES)})" if path.exists() else "does not exist"
            raise ConfigError(f"{path} {what}")
        if path.suffix == ".parquet":
            return [str(name) for name in _open_parquet(path).schema_arrow.names]
        rows = (values for _, values in self._lines(path) if FAULT not in values)
        found = list(
            dict.fromkeys(key for values in (rows if path.suffix == ".jsonl" else islice(rows, 1)) for key in values)
        )
        if not found:
            raise ConfigError(f"the table {path} has no rows")
        return found


def _csv(path: Path, quoted: bool) -> Iterator[Line]:
    """Lines of a table with a header. A line with too many or too few cells has a fault, and is not cut to fit."""
    csv.field_size_limit(1 << 30)
    delimiter = "," if path.suffix == ".csv" else "\t"
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with open(path, encoding="utf-8-sig", newline="") as file:
        # Strict: a quote that is never closed would swallow the rest of the table.
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header) or "" in header:
                raise ConfigError(
                    f"the first line of {path} must name the columns, each once: {', '.join(header)[:200]}"
                )
            for cells in reader:
                if len(cells) == len(header):
                    yield reader.line_num, dict(zip(header, cells, strict=True))
                elif cells:
                    yield reader.line_num, {FAULT: f"it has {len(cells)} cells, and the header has {len(header)}"}
        except csv.Error as error:
            raise ConfigError(
                f"{path} line {reader.line_num}: {error}; is a quote not closed, or not doubled?"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} after line {reader.line_num}: {error.reason}; save it as UTF-8") from error


def _jsonl(path: Path) -> Iterator[Line]:
    """Objects, one a line. A line that is none has a fault."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield number, {FAULT: f"it is no JSON: {error}"}
                continue
            kind = type(values).__name__
            yield number, values if isinstance(values, dict) else {FAULT: f"it is no JSON object, but a {kind}"}


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Line]:
    number = 0
    for batch in _open_parquet(path).iter_batches(batch_size=4096, columns=columns):
        for values in batch.to_pylist():
            number += 1
            yield number, values


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading Parquet needs pyarrow: pip install 'mmcl[tables]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path} is no Parquet file, or a damaged one: {error}") from error
