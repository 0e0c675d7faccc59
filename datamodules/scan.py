"""One pass over a tar shard that finds every sample, or says what is wrong with the archive."""

from __future__ import annotations

import re
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field

from mmcl.datamodules.content import content
from mmcl.datamodules.decode import AUDIO, DECODERS, IMAGES, captions, decode, kind
from mmcl.datamodules.faults import Finding, Report, refuse, shown
from mmcl.datamodules.tar import walk

UNREADABLE = -(2**31)
"""Value of a member whose bytes are not what its extension says."""
NO_CAPTION = -1
"""Value of a ``json`` member that holds no captions."""
MISNAMED = 1
"""Value of a picture or recording whose content is of another format than its extension says."""
CODE = ("pkl", "pickle", "pyd", "pth", "pt", "ckpt", "joblib", "dill", "py", "pyc", "so", "sh", "exe")
"""Formats that run code where a careless reader opens them; `webdataset`'s default decoder does with some."""

# As WebDataset names samples: the key ends at the first dot of the file name.
_NAME = re.compile(r"^((?:.*/|)[^./]+)[.]([^/]*)$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_META = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstandard"}


@dataclass
class Scan:
    """What a pass found: keys, for each the number of its first member, and the members.

    A row is (position in `names`, block of the data, bytes, CRC-32, value); see `mmcl.datamodules.index.ShardIndex`.
    `unused` are the key and extension of members that are never read; files without a key or an extension among them.
    """

    shard: str
    report: Report = refuse
    names: list[str] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _key: str = ""
    _extensions: set[str] = field(default_factory=set)
    _again: bool = False

    def say(self, kind: str, text: str, key: str = "", member: str = "") -> None:
        """Report a fault of this shard."""
        self.report(Finding(kind, self.shard, text, key, member))

    def add(self, key: str, extension: str, block: int, data: bytes) -> None:
        """Take one member of sample `key`."""
        if key != self._key:
            self._begin(key, extension)
        if self._again:
            return
        if extension in self._extensions:
            return self.say("duplicate", f"sample '{key}' has two members '{extension}'", key, extension)
        self._extensions.add(extension)
        form = kind(extension)
        if form not in DECODERS:
            return self.unused.append((key, extension))
        if not data and form != "txt":
            return self.say("empty", f"member '{key}.{extension}' is empty", key, extension)
        if extension not in self.names:
            self.names.append(extension)
        position = self.names.index(extension)
        self.rows.append((position, block, len(data), zlib.crc32(data), member_value(extension, data)))

    def _begin(self, key: str, extension: str) -> None:
        """Another key than the member before."""
        self._key, self._extensions, self._again = key, set(), key in self.keys
        if not self._again:
            self.keys[key] = len(self.rows)
            self._starts.append(len(self.rows))
            return
        first = self.keys[key]
        after = bisect_right(self._starts, first)
        end = self._starts[after] if after < len(self._starts) else len(self.rows)
        if extension in {self.names[row[0]] for row in self.rows[first:end]}:
            self.say("duplicate", f"sample '{key}' comes twice", key, extension)
        else:
            self.say("scattered", f"the members of sample '{key}' do not stand together", key, extension)


def scan(shard: str, report: Report = refuse) -> Scan:
    """Read a whole shard.

    Args:
        shard: path of the tar file.
        report: takes what is wrong; without it the first fault is an error.

    Returns:
        What can be read. What was reported as damaged, double or empty is not among it.

    Raises:
        ConfigError: the archive cannot be opened, is empty, compressed, cut off or overwritten, or holds a duplicate,
            scattered or empty member, a link, or a name that leads out of it.
    """
    found = Scan(shard, report)
    try:
        with open(shard, "rb") as file:
            magic = file.read(2)
            if magic in _COMPRESSED:
                found.say("compressed", f"it is compressed ({_COMPRESSED[magic]})")
                return found
            file.seek(0)
            said: list[str] = []

            def say(kind: str, text: str) -> None:
                said.append(kind)
                found.say(kind, text)

            for name, block, data in walk(file, say):
                _take(found, name, block, data)
    except OSError as error:
        found.say("unreadable", f"it cannot be read: {error.strerror}")
        return found
    if not found.keys and not said:
        found.say("empty", "it holds no samples")
    return found


def _take(found: Scan, name: str, block: int, data: bytes) -> None:
    """A regular file of the archive, which is a member of a sample or none."""
    if name.startswith("/") or ".." in name.split("/"):
        return found.say("name", f"member '{shown(name)}' leads out of the archive")
    if _CONTROL.search(name):
        return found.say("name", f"member '{shown(name)}' has control characters in its name")
    if _META.match(name):
        return None
    key, extension = split_name(name)
    if key is None:
        found.unused.append((name, ""))
    else:
        found.add(key, extension, block, data)
    return None


def split_name(name: str) -> tuple[str | None, str]:
    """Key and extension of a member; no key for a file that belongs to no sample, such as a hidden one."""
    match = None if _META.match(name) else _NAME.match(name)
    return (None, "") if match is None else (match.group(1), match.group(2).lower())


def member_value(extension: str, data: bytes) -> int:
    """What the index remembers of a member's content, so that start-up checks need not read it again.

    Returns:
        The label of a ``cls``; the captions that are not blank in a ``txt`` or ``json`` (0 where one is blank or there
        are none), or `NO_CAPTION`; `MISNAMED` or 0 for pictures and recordings; 0 for other members; `UNREADABLE`.
    """
    form = kind(extension)
    if form in IMAGES or form in AUDIO:
        found = content(data)
        return MISNAMED if found and found != ("jpg" if form == "jpeg" else form) else 0
    if form not in ("cls", "txt", "json"):
        return 0
    try:
        value = decode(extension, data)
        if form == "cls":
            return value if abs(value) < -UNREADABLE else UNREADABLE
        texts = [value] if form == "txt" else captions(value)
    except (ValueError, RecursionError):
        return UNREADABLE
    if texts is None:
        return NO_CAPTION
    return len(texts) if all(texts) else 0
