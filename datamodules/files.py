"""Reading bytes out of many files, in any process."""

from __future__ import annotations

import os
from collections import OrderedDict

from mmcl.errors import RunError


class _OpenFiles:
    """File descriptors of this process, opened when first read and closed when long unused."""

    limit = 64

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def get(self, path: str) -> int:
        descriptor = self._descriptors.get(path)
        if descriptor is not None:
            self._descriptors.move_to_end(path)
            return descriptor
        descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if len(self._descriptors) > self.limit:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def forget(self, path: str) -> None:
        """Close a file, so that the next read finds what is under its name then."""
        if path in self._descriptors:
            os.close(self._descriptors.pop(path))

    def abandon(self) -> None:
        """Forget all files without closing them: after a fork they are the parent's to close."""
        self._descriptors.clear()


_open_files = _OpenFiles()
os.register_at_fork(after_in_child=_open_files.abandon)


def forget(path: str) -> None:
    """Read a file anew: another one may have taken its name since it was first read."""
    _open_files.forget(path)


def read_bytes(path: str, offset: int, size: int) -> bytes:
    """Bytes of a file.

    Raises:
        RunError: the file is gone or shorter than it was when it was indexed.
    """
    try:
        data = os.pread(_open_files.get(path), size, offset)
    except OSError as error:
        raise RunError(f"shard {path} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise RunError(f"shard {path} ends at byte {offset + len(data)}, inside a member: it was cut while in use")
    return data
