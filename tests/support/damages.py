"""All damages, and the table of them."""

from __future__ import annotations

from damage import (
    REFUSED,
    REPLACED,
    SAID,
    Damage,
    broken_index,
    broken_manifest,
    changed_after_indexing,
    copied,
    forbidden,
    linked,
    manifest,
    older_index,
    one_name,
    samples,
    write,
)
from damaged_archives import ARCHIVE
from damaged_content import CONTENT

S = samples()

FILES = [
    Damage(
        "other bytes than indexed",
        changed_after_indexing,
        "changed",
        "its bytes changed after the shard was indexed",
        REPLACED,
    ),
    Damage("index older than the tar", older_index, "stale", "its index is older than the shard", SAID),
    Damage(
        "index damaged", broken_index, "stale", "its index is older than the shard, damaged or of another version", SAID
    ),
    Damage(
        "SHA-256 not the manifest's",
        lambda f: manifest(f, sha256="0" * 64),
        "manifest",
        "its SHA-256 is not the one in manifest.json",
        REFUSED,
    ),
    Damage(
        "size not the manifest's",
        lambda f: manifest(f, bytes=7),
        "manifest",
        "it has 51200 bytes, but manifest.json says 7",
        REFUSED,
    ),
    Damage(
        "count not the manifest's",
        lambda f: manifest(f, samples=13),
        "manifest",
        "it has 12 samples, but manifest.json says 13",
        REFUSED,
    ),
    Damage("manifest broken", broken_manifest, "manifest", "cannot be read (KeyError: 'samples')", REFUSED),
    Damage(
        "a shard of the manifest missing",
        lambda f: manifest(f, ("a.tar", "b.tar")),
        "missing",
        "manifest.json lists it, but it is not there",
        REFUSED,
        "manifest.json lists b.tar, which is not there",
        shards=("*.tar",),
    ),
    Damage(
        "a copy of a shard",
        copied,
        "copy",
        "it holds the same samples as",
        REFUSED,
        "hold the same samples; name one of them",
        shards=("a.tar", "b.tar"),
    ),
    Damage("a link to a shard", linked, "", "is listed twice", REFUSED, shards=("a.tar", "b.tar"), lint_refuses=True),
    Damage("two shards of one name", one_name, "names", "has the same name", SAID, shards=("one/x.tar", "two/x.tar")),
    Damage(
        "permission denied", forbidden, "unreadable", "it cannot be read: Permission denied", REFUSED, unprivileged=True
    ),
    Damage("no such shard", lambda f: None, "", "does not exist", REFUSED, lint_refuses=True),
    Damage("a command for a shard", write(S), "", "pipe:", REFUSED, shards=("pipe:cat a.tar",), lint_refuses=True),
    Damage("a `file:` address", write(S), "", "file:", REFUSED, shards=("file:/etc/passwd",), lint_refuses=True),
]

DAMAGES = [*ARCHIVE, *CONTENT, *FILES]


def table() -> str:
    """The table of `docs/shards.md`."""
    rows = ["| damage | `mmcl shards lint` | training |", "|---|---|---|"]
    for damage in DAMAGES:
        lint = f"`{damage.lint}`: {damage.says}" if damage.lint else f"exit code 2: {damage.says}"
        other = f": {damage.because}" if damage.because else ""
        rows.append(f"| {damage.name} | {lint} | {damage.training}{other} |")
    return "\n".join(rows)
