"""What can be wrong with a shard: kinds, and the one place where a fault becomes an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mmcl.errors import ConfigError

REMAKE = "make or fetch the shard again"

FAULTS: dict[str, str] = {
    "unreadable": "the file cannot be opened or read",
    "empty": "a file, an archive or a member without content",
    "compressed": "the archive is compressed, which forbids random access",
    "cut": "the archive ends too early",
    "header": "a header inside the archive is broken",
    "trailing": "data follow the end of the archive: a header was lost, or archives were joined",
    "link": "a member that is no regular file",
    "name": "a member's name leads out of the archive, holds control characters, or has a key with a dot",
    "duplicate": "a sample or a member comes twice",
    "scattered": "the members of one sample do not stand together",
    "missing": "a member that other samples have, any member that is read, or a shard of the manifest is not there",
    "undecodable": "a member is not what its extension says",
    "caption": "an empty caption",
    "code": "a pickle or another file that could run code; it is never read",
    "changed": "the bytes are not those that the index was made of",
    "manifest": "the shard is not the one that manifest.json describes",
    "copy": "two shards hold the same samples",
}
"""Kind -> meaning of what training refuses, replaces or never reads. The command ends with exit code 1."""

NOTICES: dict[str, str] = {
    "stale": "the index is older than the shard; it is made anew on first use",
    "unused": "members with an extension that is never read",
    "extension": "the content is of another format than the extension says; it is read as what it is",
    "uneven": "a member that most samples of the shard have",
    "label": "a negative label",
    "names": "two shards of one name in different folders",
    "keys": "one key in two shards",
    "twin": "the same picture or recording under two keys",
    "blank": "all pixels are equal",
    "shape": "a side under 8 pixels, or one side more than 20 times the other",
    "zeros": "256 zero bytes in a row in a JPEG, WebP or MP3: perhaps overwritten, and decoders do not always notice",
    "text": "control or replacement characters in a text",
    "short": "a recording of less than 10 milliseconds",
    "unlisted": "the manifest beside the shard does not name it",
}
"""Kind -> meaning of what is allowed but looks wrong."""

_ADVICE = {
    "compressed": "unpack it to a plain tar",
    "unreadable": "mend the permissions, or leave it out",
}


class Finding(NamedTuple):
    """Something that is wrong or suspicious, and where.

    Args:
        kind: of `FAULTS` or `NOTICES`.
        shard: path.
        text: what is wrong, for the user, with the names of sample and member.
        key: of the sample, where there is one.
        member: its extension.
    """

    kind: str
    shard: str
    text: str
    key: str = ""
    member: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong, not merely suspicious."""
        return self.kind in FAULTS


Report = Callable[[Finding], None]
"""Takes what is found. It may raise; where it returns, the search goes on."""


def refuse(finding: Finding) -> None:
    """The report of training: the first fault is an error.

    Raises:
        ConfigError: always.
    """
    advice = _ADVICE.get(finding.kind, REMAKE)
    raise ConfigError(f"shard {finding.shard}: {finding.text}; {advice}")


def shown(name: str) -> str:
    """A name out of an archive as it may stand in a message: on one line, without control characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
