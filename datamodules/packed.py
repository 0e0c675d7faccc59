"""Documents of a source as fixed blocks of tokens.

The tokens are made once and kept under ``tokens`` in mmcl's cache, by what the documents and the tokenizer are.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmcl import assets
from mmcl.datamodules.cache import ShardCache
from mmcl.datamodules.files import read_bytes
from mmcl.datamodules.reader import BadSample, SourceReader
from mmcl.errors import ConfigError
from mmcl.outputs import Packing
from mmcl.stream import Source

logger = logging.getLogger("mmcl")

FORMAT = 1
TOKENS, DOCUMENTS = "tokens.bin", "documents.npy"
"""Pairs of uint32, a token and its bytes; and (2, D) int64, where each document ends and whose sample it is."""
_ROW = 8
_AT_ONCE = 256


class PackedReader:
    """The blocks of a source, by position, with the interface of `SourceReader`.

    The documents are joined in the order of the shards, an end token after each. Block i holds tokens i * block to
    (i + 1) * block, both included: it shares one token with the next block, so that every token but the first one of
    the source is predicted exactly once. The last block may be shorter; nothing is dropped. Several texts of one
    sample are several documents.

    Args:
        source: what to read.
        packing: of the module.
        cache: where remote shards are kept; None takes the default folder and bound.

    Raises:
        ConfigError: whatever `SourceReader` refuses; no texts, an empty document, one that is not UTF-8; a single
            token.
    """

    def __init__(self, source: Source, packing: Packing, cache: ShardCache | None = None) -> None:
        self.source = source
        self.name = source.name
        self.documents = SourceReader(source, cache)
        if "text" not in self.documents.present:
            raise ConfigError(
                f"source '{self.name}': its samples have no text (txt, json); a language model reads documents"
            )
        self.documents.check_captions()
        self.documents.check_readable()
        self._block = packing.block
        self._place = _tokens(self.documents, packing)
        self._ends, self._owners = np.load(self._place / DOCUMENTS)
        self._total = int(self._ends[-1])
        if self._total < 2:
            raise ConfigError(f"source '{self.name}': its documents make one token; there is nothing to predict")
        self.paths = self.documents.paths
        self.present = ["tokens"]
        self.shard_sizes = self._sizes()

    def __len__(self) -> int:
        return -(-(self._total - 1) // self._block)

    def where(self, index: int) -> str:
        """Where a block begins, for messages."""
        owner, offset = self._begin(index)
        return f"the block from token {offset} of {self.documents.where(owner)}"

    def read(self, index: int, as_pixels: bool = False) -> dict[str, Any]:
        """``tokens`` and ``bytes`` (up to block + 1,), and a ``__key__``: the first document's with the token in it.

        There are no pictures in a block of text, whatever `as_pixels` says.

        Raises:
            RunError: the kept tokens are gone.
        """
        begin = index * self._block
        count = min(self._block + 1, self._total - begin)
        data = read_bytes(str(self._place / TOKENS), begin * _ROW, count * _ROW)
        rows = np.frombuffer(data, np.uint32).reshape(-1, 2).astype(np.int64)
        owner, offset = self._begin(index)
        return {"__key__": f"{self.documents.key(owner)}+{offset}", "tokens": rows[:, 0], "bytes": rows[:, 1]}

    def fetched_sizes(self) -> list[int]:
        """None: blocks are read from the kept tokens."""
        return []

    def sizes(self) -> npt.NDArray[np.int64]:
        """(N,) all alike: blocks are of one length."""
        return np.zeros(len(self), np.int64)

    def labels(self) -> npt.NDArray[np.int64] | None:
        """None: a block has no label."""
        return None

    def texts(self) -> Iterator[str]:
        """All documents, in the order of the samples."""
        return self.documents.texts()

    def check_captions(self) -> None:
        """Empty documents were refused when it was opened."""

    def check_readable(self) -> None:
        """So were documents that are not UTF-8."""

    def check_labels(self, class_names: Sequence[str], where: str) -> None:
        """Refuse class names.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{where}: `class_names` are given, but blocks of text have no classes; drop them")

    def _begin(self, index: int) -> tuple[int, int]:
        """The sample in which a block begins, and the token of it."""
        begin = index * self._block
        owner = int(self._owners[np.searchsorted(self._ends, begin, side="right")])
        first = int(np.searchsorted(self._owners, owner))
        return owner, begin - (int(self._ends[first - 1]) if first else 0)

    def _sizes(self) -> list[int]:
        """Blocks that begin in each shard."""
        documents = np.searchsorted(self._ends, np.arange(len(self)) * self._block, side="right")
        shards = np.searchsorted(np.cumsum(self.documents.shard_sizes), self._owners[documents], side="right")
        return [int(n) for n in np.bincount(shards, minlength=len(self.documents.shard_sizes))]


def _tokens(reader: SourceReader, packing: Packing) -> Path:
    """The folder with a source's tokens, made where it is not there yet. Processes wait for one another."""
    made_of = f"{FORMAT} {packing.fingerprint} {reader.content('text')}"
    home = assets.cache() / "tokens"
    place = home / hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()
    if _whole(place):
        return place
    work = ""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(home, place.name):
            if not _whole(place):  # another process may have made it while this one waited
                shutil.rmtree(place, ignore_errors=True)
                work = tempfile.mkdtemp(prefix=f".{place.name}.", dir=home)
                _write(reader, packing, Path(work))
                os.chmod(work, 0o755)
                os.rename(work, place)
    except OSError as error:
        raise ConfigError(
            f"source '{reader.name}': its tokens cannot be kept in {home}: {error.strerror}; "
            "make room, or set MMCL_CACHE to another folder"
        ) from error
    finally:
        if work:
            shutil.rmtree(work, ignore_errors=True)
    return place


def _whole(place: Path) -> bool:
    """Whether the tokens are there, as many as the documents say."""
    try:
        ends = np.load(place / DOCUMENTS)[0]
        return os.path.getsize(place / TOKENS) == int(ends[-1]) * _ROW
    except (OSError, ValueError, IndexError, EOFError):
        return False


def _write(reader: SourceReader, packing: Packing, folder: Path) -> None:
    logger.info("source '%s': making tokens of %d documents", reader.name, len(reader))
    lengths: list[int] = []
    owners: list[int] = []
    with (folder / TOKENS).open("wb") as file:
        for begin in range(0, len(reader), _AT_ONCE):
            documents = [d for i in range(begin, min(begin + _AT_ONCE, len(reader))) for d in _documents(reader, i)]
            for (owner, _), (ids, sizes) in zip(documents, packing.encode([t for _, t in documents]), strict=True):
                np.array([ids, sizes], np.uint32).T.tofile(file)
                lengths.append(len(ids))
                owners.append(owner)
    np.save(folder / DOCUMENTS, np.array([np.cumsum(lengths), owners], np.int64))


def _documents(reader: SourceReader, index: int) -> Iterator[tuple[int, str]]:
    """The texts of a sample."""
    try:
        found = reader.text(index)
    except BadSample as error:  # those that are no text were refused: its shard changed
        raise ConfigError(f"source '{reader.name}': {error}") from error
    for text in [found] if isinstance(found, str) else found:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"source '{reader.name}': {reader.where(index)}: its text holds half a character (a lone surrogate); "
                "mend it, or leave the sample out through `keys`"
            ) from error
        yield index, text


@contextmanager
def _alone(home: Path, name: str) -> Iterator[None]:
    """One process at a time for each source; the lock ends with the process."""
    with (home / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
