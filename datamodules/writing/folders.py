"""A folder of pictures or recordings, with captions beside them, class folders, or both; or a folder of texts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmcl.datamodules.decode import AUDIO, IMAGES
from mmcl.datamodules.writing.options import Kind, Options
from mmcl.datamodules.writing.rows import File, Row
from mmcl.datamodules.writing.tables import SUFFIXES
from mmcl.errors import ConfigError

# What people have in such folders besides, and what shards do not hold: a row each, so that none is lost unseen.
FOREIGN: dict[Kind, tuple[str, ...]] = {
    "images": ("gif", "bmp", "tif", "tiff", "heic", "avif", "jp2", "svg", "jfif"),
    "audio": ("m4a", "aac", "wma", "opus", "aif", "aiff", "au", "amr"),
    "texts": (),
}
KNOWN: dict[Kind, tuple[str, ...]] = {"images": IMAGES, "audio": AUDIO, "texts": ("txt",)}
MEMBERS: dict[Kind, str] = {"images": "image", "audio": "audio", "texts": "txt"}


class FolderSource:
    """Every picture (or recording, or text) below a folder, in the order of its path.

    A file ``a/b.jpg`` gives the sample ``a/b``, with dots in names replaced by ``_``; ``a/b.txt`` is its caption. In a
    folder without pictures and recordings each ``.txt`` is a sample. Links are followed; names that begin with a dot
    are left out and counted.

    Args:
        options: whose source is a folder.
        kind: ``images``, ``audio`` or ``texts``; None: whichever of them it holds.

    Raises:
        ConfigError: the folder holds none of them, or pictures and recordings, or a part of it cannot be read.
    """

    def __init__(self, options: Options, kind: Kind | None) -> None:
        (folder,) = options.sources
        self.root = Path(folder)
        self.unused: Counter[str] = Counter()
        files = list(_walk(self.root, self.unused))
        by_extension = Counter(_extension(path) for path in files)
        self.kind = kind or _kind(folder, by_extension)
        wanted = {*KNOWN[self.kind], *FOREIGN[self.kind]}
        self._files = [path for path in files if _extension(path) in wanted]
        if not self._files:
            raise ConfigError(f"{folder} holds no {self.kind} ({', '.join(KNOWN[self.kind])})")
        stems = {_stem(path) for path in self._files}
        captions = [path for path in files if _extension(path) == "txt"]
        texts = {_stem(path): path for path in captions}
        counts = Counter(map(_stem, captions))  # `a.txt` and `a.TXT`
        self._twice = {stem for stem, count in counts.items() if count > 1}
        self._captions = texts if self.kind != "texts" and stems & texts.keys() else {}
        self._lost = sorted(self._captions.keys() - stems)
        self._classes = self._has_classes(options)
        self.class_names: tuple[str, ...] = ()
        for extension, count in by_extension.items():
            if extension not in wanted and not (extension == "txt" and self._captions):
                self.unused[f".{extension}" if extension else "without extension"] += count

    def rows(self) -> Iterator[Row]:
        """One for each file, and one for each caption without a file."""
        member = MEMBERS[self.kind]
        for path in self._files:
            stem, extension, parts = _stem(path), _extension(path), path.split("/")
            fault = "" if extension in KNOWN[self.kind] else f"shards hold no .{extension}; convert it"
            members: dict[str, File] = {member: File(f"{self.root}/{path}")}
            if self._captions:
                caption = self._captions.get(stem)
                if caption is None:
                    fault = fault or "there is no caption beside it"
                else:
                    members["txt"] = File(str(self.root / caption))
                if stem in self._twice:
                    fault = fault or "there are two captions beside it"
            if self._classes and len(parts) == 1:
                fault = fault or "it lies in no class folder"
            label = parts[0] if self._classes else None
            yield Row(stem.replace(".", "_"), f"{self.root}/{path}", members, label, fault=fault)
        for stem in self._lost:
            place = str(self.root / self._captions[stem])
            yield Row(stem.replace(".", "_"), place, fault=f"it is a caption, but there is no file of kind {self.kind}")

    def _has_classes(self, options: Options) -> bool:
        if options.classes == "auto":
            return self.kind != "texts" and not self._captions and all("/" in path for path in self._files)
        return options.classes == "folders"


def _walk(root: Path, unused: Counter[str]) -> Iterator[str]:
    """Paths of all files below a folder, relative to it, sorted within each folder."""

    def stop(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}")

    seen = set()
    for folder, inner, names in os.walk(root, onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it, or to one that was read already
            unused["linked folders that were read already"] += 1
            inner.clear()
            continue
        seen.add(real)
        for name in [n for n in inner if n.startswith(".")]:
            inner.remove(name)
            unused["hidden folders"] += 1
        inner.sort()
        place = os.path.relpath(folder, root)
        for name in sorted(names):
            if name.startswith("."):
                unused["hidden files"] += 1
            else:
                yield name if place == "." else f"{place}/{name}".replace(os.sep, "/")


def _kind(folder: str, by_extension: Counter[str]) -> Kind:
    found: list[Kind] = [kind for kind, known in KNOWN.items() if any(by_extension[e] for e in known)]
    if found == ["texts"]:  # captions of files that shards do not hold are no documents
        found = [kind for kind, others in FOREIGN.items() if any(by_extension[e] for e in others)] or found
    tables = [f".{e}" for e in ("tar", *(s.removeprefix(".") for s in SUFFIXES)) if by_extension[e]]
    if found == ["texts"] and tables:
        raise ConfigError(
            f"{folder} holds texts beside {', '.join(tables)}; name those files, or write the texts with --from texts"
        )
    if "images" in found and "audio" in found:
        raise ConfigError(
            f"{folder} holds pictures and recordings; say with --from images or --from audio which to write"
        )
    if not found:
        raise ConfigError(
            f"{folder} holds no pictures ({', '.join(IMAGES)}), no recordings ({', '.join(AUDIO)}), no texts (txt) "
            "and no data set saved by `datasets`; name the folder, tables or tar files that do"
        )
    return found[0]


def _extension(path: str) -> str:
    return path[len(_stem(path)) + 1 :].lower()


def _stem(path: str) -> str:
    dot = path.rfind(".")
    return path[:dot] if dot > path.rfind("/") + 1 else path
