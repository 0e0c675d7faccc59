"""The readers of a stream's sources: opened when first asked for, and kept while they are used now and then."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from mmcl.datamodules.cache import ShardCache
from mmcl.datamodules.packed import PackedReader
from mmcl.datamodules.reader import SourceReader
from mmcl.datamodules.stream_source import StreamReader
from mmcl.errors import ConfigError
from mmcl.outputs import Packing
from mmcl.stream import Source

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
