"""The form in which transcripts are compared and spelled."""

from __future__ import annotations

import re
import unicodedata

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4`", "'"))
_OUTER_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


def normalize_transcript(text: str) -> str:
    r"""Lower case, without punctuation, one space between words.

    Letters and digits are composed (Unicode NFKC) and lowered; accents and diacritics stay. Apostrophes of every shape
    become ``'`` and stay between letters (``don't``, ``l'heure``); all other punctuation and symbols become spaces, so
    that ``log-in`` is two words. Digits stay digits: ``2`` and ``two`` are different words. Nothing depends on the
    language.

    >>> normalize_transcript("Press 1, then \u201cHello\u201d \u2014 don\u2019t log-in!")
    "press 1 then hello don't log in"
    """
    composed = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower()
    # Lowering may take a letter apart (a Turkish capital dotted i), so compose again.
    composed = unicodedata.normalize("NFC", composed)
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in composed)
    return " ".join(_OUTER_APOSTROPHE.sub(" ", kept).split())
