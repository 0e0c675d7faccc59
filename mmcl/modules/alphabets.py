"""The symbols that a CTC recogniser writes with: per language, growing by appending."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcl.errors import ConfigError, near
from mmcl.functional.transcripts import normalize_transcript

BLANK, SPACE, UNKNOWN = "<pad>", "|", "<unk>"
"""Symbols of every alphabet, as wav2vec 2.0's vocabularies call them: CTC's blank, and what parts words."""

_LATIN = "abcdefghijklmnopqrstuvwxyz"
LETTERS: Mapping[str, str] = {
    "bg": "абвгдежзийклмнопрстуфхцчшщъьюя",
    "ca": f"{_LATIN}àçèéíïòóúü·'",
    "cs": f"{_LATIN}áčďéěíňóřšťúůýž",
    "da": f"{_LATIN}åæøé",
    "de": f"{_LATIN}äöüß",
    "el": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ",
    "en": f"{_LATIN}'",
    "es": f"{_LATIN}áéíñóúü",
    "fr": f"{_LATIN}àâæçèéêëîïôùûüÿœ'",
    "it": f"{_LATIN}àèéìòù'",
    "nl": f"{_LATIN}áéèëïóöü'",
    "pl": f"{_LATIN}ąćęłńóśźż",
    "pt": f"{_LATIN}àáâãçéêíóôõú",
    "ro": f"{_LATIN}ăâîșț",
    "ru": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "uk": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя'",
}
"""Language (BCP 47) -> its letters in lower case, as `normalize_transcript` leaves them; no digits."""


def letters_of(language: str, extra: Mapping[str, str]) -> str:
    """The letters of a language.

    Args:
        language: BCP 47 tag. A tag with a region (``es-MX``) falls back to its language.
        extra: the user's own alphabets, which come first.

    Raises:
        ConfigError: no alphabet is known.
    """
    for table in (extra, LETTERS):
        for tag in (language, language.split("-")[0]):
            if tag in table:
                return table[tag]
    raise ConfigError(
        f"language '{language}' has no alphabet; give one in the module's `alphabets`, or mend the tag; "
        f"{near(language, {*extra, *LETTERS})}"
    )


@dataclass(frozen=True)
class Alphabet:
    """Symbols in the order of the head's rows.

    Args:
        symbols: each one once; all but `BLANK`, `SPACE` and other names in angle brackets are single characters.
        blank: row of CTC's blank.

    Raises:
        ConfigError: a symbol comes twice, or blank or word boundary are missing.
    """

    symbols: tuple[str, ...]
    blank: int = 0

    def __post_init__(self) -> None:
        twice = sorted({s for s in self.symbols if self.symbols.count(s) > 1})
        if twice:
            raise ConfigError(f"alphabet: symbol '{twice[0]}' comes twice")
        if SPACE not in self.symbols or not 0 <= self.blank < len(self.symbols):
            raise ConfigError(f"alphabet: it needs a blank and the word boundary '{SPACE}'")

    @classmethod
    def of(cls, letters: Sequence[str]) -> Alphabet:
        """Blank, word boundary, and these letters."""
        return cls((BLANK, SPACE, *dict.fromkeys(letters)))

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def upper(self) -> bool:
        """Whether its letters are upper-case ones, as in many published vocabularies."""
        single = [s for s in self.symbols if len(s) == 1]
        return any(s.isupper() for s in single) and not any(s.islower() for s in single)

    def with_letters(self, letters: str) -> Alphabet:
        """This alphabet with the letters that it lacks behind its own."""
        wanted = letters.upper() if self.upper else letters
        new = [c for c in dict.fromkeys(wanted) if c not in self.symbols]
        return Alphabet((*self.symbols, *new), self.blank)

    def encode(self, text: str) -> tuple[list[int], list[str]]:
        """Rows of a transcript's symbols, and the characters that have none, each once.

        The transcript is normalised first; characters without a row are left out.
        """
        rows = {symbol: i for i, symbol in enumerate(self.symbols)}
        spelled = normalize_transcript(text)
        spelled = (spelled.upper() if self.upper else spelled).replace(" ", SPACE)
        unknown = dict.fromkeys(c for c in spelled if c not in rows)
        return [rows[c] for c in spelled if c in rows], list(unknown)

    def decode(self, rows: Sequence[int]) -> str:
        """The text of a path's rows, one for each frame: repeats are merged, then blanks dropped."""
        merged = [row for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]
        symbols = (self.symbols[row] for row in merged if row != self.blank)
        text = "".join(s for s in symbols if len(s) == 1).replace(SPACE, " ")
        return " ".join((text.lower() if self.upper else text).split())
