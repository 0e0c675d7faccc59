"""The readers of a stream's sources: opened when first asked for, and kept while they are used now and then."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mmcl.datamodules.cache import ShardCache
from mmcl.datamodules.packed import PackedReader
from mmcl.datamodules.reader import SourceReader
from mmcl.datamodules.stream_source import StreamReader
from mmcl.errors import ConfigError, near
from mmcl.outputs import Packing
from mmcl.stream import Source, Stream

KEPT = 256

Indexed = SourceReader | PackedReader


class Readers:
    """Opens sources.

    Args:
        cache: where remote shards are kept.
        allow_pipe: whether ``pipe:`` may run commands.
    """

    def __init__(self, cache: ShardCache, allow_pipe: bool) -> None:
        self._cache, self._allow_pipe = cache, allow_pipe
        self._packing: Packing | None = None
        self._opened: OrderedDict[int, tuple[Source, Indexed | StreamReader]] = OrderedDict()

    def pack(self, packing: Packing | None) -> None:
        """Say how documents become samples; None takes the samples of the shards as they are."""
        if packing is not self._packing:
            self._packing = packing
            self._opened.clear()

    def open(self, source: Source) -> Indexed | StreamReader:
        """The reader of a source.

        Raises:
            ConfigError: the source cannot be read.
        """
        if id(source) not in self._opened:
            self._opened[id(source)] = (source, self._new(source))
            if len(self._opened) > KEPT:
                self._opened.popitem(last=False)
        self._opened.move_to_end(id(source))
        return self._opened[id(source)][1]

    def indexed(self, source: Source, what: str) -> Indexed:
        """The same, for what no stream can do.

        Raises:
            ConfigError: the source is a stream.
        """
        reader = self.open(source)
        if isinstance(reader, StreamReader):
            raise ConfigError(f"source '{source.name}' is a stream, and {what} takes an index; fetch its shards")
        return reader

    def labelled(self, source: Source) -> bool:
        """Whether a source's samples have labels, or the documents that are packed into them."""
        reader = self.open(source)
        return "labels" in (reader.documents if isinstance(reader, PackedReader) else reader).present

    def double_key(self, source: Source) -> str | None:
        """A key that two samples of a source have, or of the documents that are packed into them.

        Raises:
            ConfigError: it is a stream.
        """
        reader = self.indexed(source, "telling samples apart")
        return (reader.documents if isinstance(reader, PackedReader) else reader).double_key()

    def _new(self, source: Source) -> Indexed | StreamReader:
        if not source.is_stream:
            packing = self._packing
            return SourceReader(source, self._cache) if packing is None else PackedReader(source, packing, self._cache)
        if self._packing is not None:
            raise ConfigError(f"source '{source.name}' is a stream, and packing documents takes an index")
        return StreamReader(source, self._allow_pipe)


@contextmanager
def named(place: str) -> Iterator[None]:
    """Say where in the stream a source is: many are called alike."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


def check_sources(stream: Stream, readers: Readers) -> None:
    """Open every source of a stream, with the parts of those that are drawn as one, and refuse what cannot work.

    Raises:
        ConfigError: see `mmcl.datamodules.StreamDataModule.check`.
    """
    for task in stream.tasks:
        where = f"task '{task.name}'"
        for part in _parts(task.train, stream, where):
            with named(where):
                reader = readers.open(part)
                reader.check_captions()
            if task.class_names is not None:
                reader.check_labels(task.class_names, where)
        for part in _parts(task.mix, stream, where):
            with named(where):
                readers.open(part).check_captions()
    for evalset in stream.evals:
        where = f"evaluation set '{evalset.name}'"
        for part in _parts([evalset.source], stream, where):
            with named(where):
                indexed = readers.indexed(part, "an evaluation")
                indexed.check_captions()
                indexed.check_readable()
            if evalset.class_names is not None:
                indexed.check_labels(evalset.class_names, where)
    for name, source in stream.sources.items():
        where = f"stream source '{name}'"
        for part in _parts([source], stream, where):
            with named(where):
                readers.open(part).check_captions()


def _parts(sources: Sequence[Source], stream: Stream, where: str) -> Iterator[Source]:
    """The sources and their parts, each of data that are nobody's or some task's of the stream."""
    tasks = [task.name for task in stream.tasks]
    for part in (part for source in sources for part in source.all):
        if part.task not in (None, *tasks):
            raise ConfigError(
                f"{where}: source '{part.name}' is of task '{part.task}', which the stream lacks; "
                f"{near(str(part.task), tasks)}"
            )
        yield part
