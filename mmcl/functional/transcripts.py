"""The form in which transcripts are compared and spelled."""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4`", "'"))
_INNER = "'\u00b7"
"""What stays within a word."""
_OUTER = re.compile("(?<!\\w)'|'(?!\\w)|(?<![^\\W\\d])\u00b7|\u00b7(?![^\\W\\d])")


def normalize_transcript(text: str) -> str:
    r"""Lower case, without punctuation, one space between words.

    Letters and digits are composed (Unicode NFKC) and lowered; accents and diacritics stay. Apostrophes of every shape
    become ``'`` and stay between letters (``don't``, ``l'heure``), as Catalan's raised dot does; all other punctuation
    and symbols become spaces, so that ``log-in`` is two words. Digits stay digits: ``2`` and ``two`` are different
    words. Nothing depends on the language.

    >>> normalize_transcript("Press 1, then \u201cHello\u201d \u2014 don\u2019t log-in!")
    "press 1 then hello don't log in"
    >>> normalize_transcript("Col\u00b7legi \u00b7 3\u00b75") == "col\u00b7legi 3 5"
    True
    """
    composed = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    # Lowering may take a letter apart (a Turkish capital dotted i), so compose again.
    composed = unicodedata.normalize("NFC", composed)
    kept = "".join(c if c in _INNER or unicodedata.category(c)[0] in "LMN" else " " for c in composed)
    return " ".join(_OUTER.sub(" ", kept).split())
