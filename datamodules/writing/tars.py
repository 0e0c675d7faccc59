"""Another WebDataset: its samples, under their keys."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator

from mmcl.datamodules.index import load_index
from mmcl.datamodules.shards import expand_shards
from mmcl.datamodules.writing.options import Options
from mmcl.datamodules.writing.rows import Row, Slice


class TarSource:
    """The samples of tar files, found through their byte index, so that a damaged archive is refused and not cut short.

    A ``./`` before a key is left out.

    Args:
        options: whose sources are tar files and patterns.

    Raises:
        ConfigError: a shard is not there, damaged, or compressed.
    """

    kind = "shards"

    def __init__(self, options: Options) -> None:
        self._shards = expand_shards(options.sources, "mmcl shards write")
        self.class_names: tuple[str, ...] = ()
        self.unused: Counter[str] = Counter()
        for shard in self._shards:
            known = load_index(shard).extensions
            with tarfile.open(shard, "r:") as tar:
                names = (member.name.rpartition("/")[2] for member in tar if member.isfile())
                extensions = (name.partition(".")[2].lower() for name in names)
                self.unused.update(f".{extension}" for extension in extensions if extension not in known)

    def rows(self) -> Iterator[Row]:
        """One for each sample."""
        for shard in self._shards:
            index = load_index(shard)
            for sample in range(len(index)):
                members = {m.extension: Slice(shard, m.offset, m.size) for m in index.members(sample)}
                # `tar -C FOLDER .` puts it before every name.
                yield Row(index.key(sample).removeprefix("./"), shard, members)
