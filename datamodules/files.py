"""Reading bytes out of many files, in any process."""

from __future__ import annotations

import os
from collections import OrderedDict

from mmcl.errors import RunError


class _OpenFiles:
    """File descriptors of this process, opened when first read and closed when long unused."""

    limit = 64

    def __init__(self) -> None:
        self._process = os.getpid()
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def get(self, path: str) -> int:
        if self._process != os.getpid():
            # After a fork the descriptors are the parent's to close.
            self.__init__()  # type: ignore[misc]
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._descriptors) > self.limit:
                os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors.move_to_end(path)
        return self._descriptors[path]

    def forget(self, path: str) -> None:
        """Close a file, so that the next read finds what is under its name then."""
        if self._process == os.getpid() and path in self._descriptors:
            os.close(self._descriptors.pop(path))


_open_files = _OpenFiles()


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
