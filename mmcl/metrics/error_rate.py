"""Edit distance between transcripts, pooled over a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Edits:
    """How a hypothesis differs from its reference; sums over a corpus by ``+``.

    Attributes:
        substitutions: units replaced.
        deletions: units of the reference that the hypothesis lacks.
        insertions: units that the hypothesis has too many.
        length: units of the reference.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0

    @property
    def total(self) -> int:
        """The edit distance."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits for each unit of the reference; may exceed 1. Without any reference unit, the number of insertions."""
        return self.total / self.length if self.length else float(self.total)

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.length + other.length,
        )


def count_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """The fewest substitutions, deletions and insertions that make one sequence of another.

    Only the total is unique. Of alignments with the same total the one is counted that, read from the end, prefers a
    match or substitution to a deletion, and that to an insertion.

    Args:
        reference: words, or the characters of a string.
        hypothesis: the same.

    >>> count_edits("the cat sat".split(), "the hat sat down".split())
    Edits(substitutions=1, deletions=0, insertions=1, length=3)
    """
    units = {unit: i for i, unit in enumerate(dict.fromkeys([*reference, *hypothesis]))}
    rows = np.array([units[unit] for unit in reference], np.int64)
    columns = np.array([units[unit] for unit in hypothesis], np.int64)
    table = _distances(rows, columns)
    substitutions = deletions = insertions = 0
    i, j = len(rows), len(columns)
    while i or j:
        here = table[i, j]
        if i and j and here == table[i - 1, j - 1] + (rows[i - 1] != columns[j - 1]):
            substitutions += int(rows[i - 1] != columns[j - 1])
            i, j = i - 1, j - 1
        elif i and here == table[i - 1, j] + 1:
            deletions, i = deletions + 1, i - 1
        else:
            insertions, j = insertions + 1, j - 1
    return Edits(substitutions, deletions, insertions, len(rows))


def _distances(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(R + 1, C + 1) Levenshtein distances of all beginnings."""
    steps = np.arange(len(columns) + 1)
    table = np.empty((len(rows) + 1, len(columns) + 1), np.int64)
    table[0] = steps
    for i, unit in enumerate(rows, 1):
        best = table[i - 1] + 1
        best[1:] = np.minimum(best[1:], table[i - 1, :-1] + (columns != unit))
        # An insertion continues its row: cell j is the least of best[k] + (j - k) over k <= j.
        table[i] = np.minimum.accumulate(best - steps) + steps
    return table


def word_edits(reference: str, hypothesis: str) -> Edits:
    """Edits over words, which spaces part."""
    return count_edits(reference.split(), hypothesis.split())


def character_edits(reference: str, hypothesis: str) -> Edits:
    """Edits over characters, the spaces between words among them."""
    return count_edits(list(reference), list(hypothesis))


def corpus_edits(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[Edits, Edits]:
    """Edits over words and over characters of a whole corpus: their rates are its WER and CER.

    Args:
        references: transcripts, in the form in which they are to be compared.
        hypotheses: one for each.
    """
    pairs = list(zip(references, hypotheses, strict=True))
    return (
        sum((word_edits(*pair) for pair in pairs), Edits()),
        sum((character_edits(*pair) for pair in pairs), Edits()),
    )
