"""Addresses of shards that lie elsewhere: which are taken, what is shown of them, and who reads them."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import fsspec

from mmcl.errors import ConfigError

STORES: dict[str, tuple[str, str]] = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "memory": ("fsspec", ""),
}
"""Scheme of an object store -> the package that reads it, and the extra of mmcl that installs it."""
OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}
"""What a store's client is told unless fsspec's configuration says otherwise: mmcl itself tries again."""
WEB = ("http", "https")
SCHEMES = (*WEB, *STORES)

# Parameters that only signed addresses have: S3 (new and old), Google, CloudFront, Azure.
_SIGNATURES = {"x-amz-signature", "x-goog-signature", "signature", "sig"}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_SAFE = re.compile(r"[^A-Za-z0-9._-]")
_QUERY = re.compile(r"\?[^\s'\",;)]+")
_USER = re.compile(r"//[^/\s'\"@]+@")

_filesystems: dict[tuple[int, str], Any] = {}


class Name(NamedTuple):
    """What a cache calls a shard: a folder for each folder of addresses, and the file's name in it."""

    folder: str
    file: str


def scheme(address: str) -> str | None:
    """The scheme of a URL in lower case; None of a path."""
    match = _SCHEME.match(address)
    return match.group(1).lower() if match else None


def is_remote(address: str) -> bool:
    """Whether this is the URL of a shard that lies elsewhere, and not a path."""
    return scheme(address) in SCHEMES


def check_address(address: str, source: str) -> None:
    """Let URLs of the known schemes pass, if they are whole and carry no secrets that could be avoided.

    Raises:
        ConfigError: a command (``pipe:``), another scheme, a chain (``::``), no host, or an account in a store's URL.
    """
    where, shown = f"source '{source}'", public(address)
    kind = scheme(address)
    if kind == "pipe":
        raise ConfigError(
            f"{where}: '{address}' would run a shell command; give a path or a URL, or set data.allow_pipe"
        )
    if kind not in SCHEMES:
        known = ", ".join(s for s in SCHEMES if s != "memory")
        raise ConfigError(
            f"{where}: '{shown}' has the URL scheme '{kind}:'; shards are read from local paths and {known}"
        )
    parts = urlsplit(address)
    if "::" in address or not address[len(kind) :].startswith("://"):
        raise ConfigError(f"{where}: '{shown}' is no plain URL like {kind}://HOST/FOLDER/FILE.tar")
    if kind != "memory" and not (parts.hostname and parts.path.strip("/")):
        raise ConfigError(f"{where}: '{shown}' names no file; a URL is like {kind}://HOST/FOLDER/FILE.tar")
    if kind in STORES and "@" in parts.netloc:
        raise ConfigError(f"{where}: '{shown}' names an account; accounts and keys come from the environment")


def public(text: str) -> str:
    """A URL, or a message with URLs in it, without user, password and query: they may be credentials."""
    return _QUERY.sub("?...", _USER.sub("//", text))


def identity(address: str) -> str:
    """What stays the same when a URL is signed anew: without user and signature. Other queries name the file."""
    parts = urlsplit(address)
    signed = any(key.lower() in _SIGNATURES for key in parse_qs(parts.query, keep_blank_values=True))
    query = "" if signed else parts.query
    return urlunsplit((parts.scheme.lower(), parts.netloc.rpartition("@")[2], parts.path, query, ""))


def name_of(address: str) -> Name:
    """Where a cache keeps a shard."""
    whole = identity(address)
    parts = urlsplit(whole)
    folder, _, file = parts.path.rpartition("/")
    group = whole if parts.query else urlunsplit((parts.scheme, parts.netloc, folder, "", ""))
    if _SAFE.search(file) or not file.strip(".") or len(file) > 150 or file.startswith("."):
        # Two names may be alike when they are made safe.
        file = f"{hashlib.blake2b(file.encode(), digest_size=8).hexdigest()}-{_SAFE.sub('_', file)[-100:]}"
    return Name(hashlib.blake2b(group.encode(), digest_size=16).hexdigest(), file)


def beside(address: str, name: str) -> str | None:
    """The URL of another file in the folder of a URL; None where a query says which file it is, or a signature."""
    parts = urlsplit(address)
    if parts.query:
        return None
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rpartition('/')[0]}/{quote(name)}", "", ""))


def file_name(address: str) -> str:
    """The last part of a URL's path."""
    return urlsplit(address).path.rpartition("/")[2]


def store(address: str) -> tuple[Any, str]:
    """The file system of an object store, and what it calls a file.

    Endpoints and credentials come from where the store's own tools look for them (environment variables, profiles), and
    from fsspec's configuration: a run folder must not hold them.

    Raises:
        ConfigError: the package that reads such stores is not installed.
    """
    kind = scheme(address) or ""
    package, extra = STORES[kind]
    # One for each process, and never closed in a fork: its connections are the parent's.
    key = (os.getpid(), kind)
    if key not in _filesystems:
        try:
            options = {**OPTIONS.get(kind, {}), **fsspec.config.conf.get(kind, {})}
            _filesystems[key] = fsspec.filesystem(kind, skip_instance_cache=True, **options)
        except ImportError as error:
            raise ConfigError(
                f"{kind}:// is read with {package}, which is not installed: pip install 'mmcl[{extra}]'"
            ) from error
    return _filesystems[key], _filesystems[key]._strip_protocol(address)


def matches(pattern: str, source: str) -> list[str]:
    """The sorted URLs that a pattern with ``*``, ``?`` or ``[]`` stands for.

    Raises:
        ConfigError: a web server, which lists no files; a store that cannot be listed; no match.
    """
    kind = scheme(pattern)
    if kind in WEB:
        raise ConfigError(
            f"source '{source}': '{public(pattern)}': a web server lists no files; name them: train-{{000..099}}.tar"
        )
    files, path = store(pattern)
    try:
        found = sorted(str(name) for name in files.glob(path))
    except Exception as error:  # each store has its own
        reason = public(" ".join(str(error).split())) or type(error).__name__
        raise ConfigError(f"source '{source}': '{pattern}' cannot be listed: {reason}") from error
    if not found:
        raise ConfigError(f"source '{source}': no shard matches '{pattern}'")
    return [f"{kind}://{name.lstrip('/')}" for name in found]
