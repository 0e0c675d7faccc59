"""Shards that are read once, from their beginning to their end: opened, and passed through `webdataset`'s pipeline."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from itertools import islice
from typing import Any, BinaryIO, NoReturn, cast
from urllib.request import urlopen

import numpy as np
from webdataset import DataPipeline, SimpleShardList
from webdataset.filters import shuffle
from webdataset.tariterators import group_by_keys

from mmcl.datamodules.faults import shown
from mmcl.datamodules.order import mix, shuffled
from mmcl.datamodules.remote import WEB, is_remote, public, scheme, store
from mmcl.datamodules.scan import split_name
from mmcl.datamodules.tar import walk
from mmcl.datamodules.transfer import TIMEOUT
from mmcl.errors import RunError

Raw = dict[str, Any]
"""Extension -> bytes of one sample, with ``__key__`` and ``__url__``."""

_PIECE = 1 << 20


@dataclass(frozen=True)
class Turn:
    """One of those who read a stream together, and the pass that it is at.

    With fewer shards than readers every reader reads all shards and takes its part of the samples.
    """

    seed: int
    epoch: int
    reader: int
    readers: int


def one_pass(
    shards: Sequence[str], turn: Turn, wanted: Mapping[str, Collection[str]], ordered: bool, buffer: int
) -> Iterator[Raw]:
    """What one reader takes of one pass over the shards. The readers together take every sample once.

    Args:
        shards: paths, URLs and commands.
        turn: whose part.
        wanted: shard -> extensions to keep the content of; of other members the name alone is kept.
        ordered: take the shards, and the samples in them, as they lie; else both are shuffled by the seed.
        buffer: samples that are shuffled together.

    Raises:
        RunError: a shard cannot be read, or is damaged.
    """
    order = np.arange(len(shards))
    if not ordered:
        order = shuffled(order, mix(turn.seed, turn.epoch, 0))
    few = len(shards) < turn.readers
    mine = order if few else order[turn.reader :: turn.readers]
    stages: list[Any] = [SimpleShardList([shards[i] for i in mine]), partial(_members, wanted=wanted)]
    stages.append(partial(group_by_keys, keys=split_name))
    if few:
        stages.append(lambda samples: islice(samples, turn.reader, None, turn.readers))
    if not ordered:
        stages.append(shuffle(buffer, rng=random.Random(mix(turn.seed, turn.epoch, 1, turn.reader))))
    yield from DataPipeline(*stages)


def _members(shards: Iterator[dict[str, str]], wanted: Mapping[str, Collection[str]]) -> Iterator[dict[str, Any]]:
    """A stage of the pipeline: the members of the shards. `webdataset`'s own takes a damaged header for the end."""
    for shard in shards:
        address = shard["url"]
        last, extensions = "", set[str]()
        with _opened(address) as file:
            for entry in walk(cast(BinaryIO, _Forward(file)), partial(_refuse, address), sys.maxsize):
                key, extension = split_name(entry.name)
                if key is None:
                    continue
                if key != last:
                    last, extensions = key, set()
                if extension in extensions:
                    _refuse(address, "duplicate", f"sample '{shown(key)}' has two members '{shown(extension)}'")
                extensions.add(extension)
                data = entry.data if extension in wanted[address] else b""
                yield {"fname": entry.name, "data": data, "__url__": address}
        yield {}  # where a shard ends, its last sample does


def _refuse(address: str, kind: str, text: str) -> NoReturn:
    raise RunError(
        f"shard {public(address)}: {text}; a stream is not read past damage: mend the shard, or leave it out"
    )


class _Forward:
    """As much of a file as `walk` needs, over one that only goes forward."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._place = file, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._place += len(data)
        return data

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> None:
        """Forward only: when `walk` looks back for a header, behind the end mark, all has been read."""
        left = offset if whence == os.SEEK_CUR else offset - self._place
        while left > 0 and (data := self.read(min(left, _PIECE))):
            left -= len(data)


@contextmanager
def _opened(address: str) -> Iterator[BinaryIO]:
    kind = scheme(address)
    try:
        if kind == "pipe":
            with _output(address) as file:
                yield file
        elif kind in WEB:
            with urlopen(address, timeout=TIMEOUT) as answer:
                yield answer
        elif is_remote(address):
            files, path = store(address)
            with files.open(path, "rb") as file:
                yield file
        else:
            with open(address, "rb") as file:
                yield file
    except (OSError, HTTPException) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise RunError(f"{public(address)} cannot be read: {reason}; the same command goes on") from error


@contextmanager
def _output(address: str) -> Iterator[BinaryIO]:
    """What a command writes."""
    command = address.partition(":")[2]
    with subprocess.Popen(command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield cast(BinaryIO, process.stdout)
        except RunError as error:
            # A command that failed wrote too little, which is the lesser news.
            if not process.stdout.read(1) and (code := process.wait()):
                raise RunError(f"'{public(address)}' ended with exit code {code}") from error
            raise
        else:
            if code := process.wait():
                raise RunError(f"'{public(address)}' ended with exit code {code}")
        finally:
            process.kill()
