"""Text to tokens where special tokens come from the chat template and from pictures, never from what somebody wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer

SHIELD, MARK = "\ufdd0{}\ufdd1", "\ufdd2{}\ufdd3"
"""Around a token's number. Unicode keeps these characters for a program's own use; texts lose them."""
RESERVED = re.compile("[\ufdd0-\ufdd3]")
SHIELDED = re.compile(SHIELD.format(r"(\d+)"))


class Tokens:
    """A tokenizer for texts in which a part was written by others.

    That part is shielded (`shield`) before it goes into a prompt. Without shielded tokens in it a prompt is encoded as
    the tokenizer does it. With some, the prompt's own special tokens are marked, the shields are taken off and a copy
    of the tokenizer encodes the whole: it knows the marks and takes the special tokens for letters. So words are not
    cut where a shield was.

    Args:
        tokenizer: of transformers, on the tokenizers library.
        control: ids of tokens that build prompts. Those among them that were added to the vocabulary are special here,
            whatever the tokenizer calls them.
    """

    def __init__(self, tokenizer: Any, control: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        chosen, known = set(control), tokenizer.added_tokens_decoder
        self.special: dict[str, int] = {  # runs of spaces may be added tokens too
            token.content: i
            for i, token in known.items()
            if token.special or (i in chosen and not token.content.isspace())
        }
        longest_first = sorted(self.special, key=len, reverse=True)
        self._find = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.no_truncation()
        self._plain.no_padding()
        self._plain.add_special_tokens(longest_first)  # some were added as ordinary ones
        marks = {MARK.format(i): (i, known[i]) for i in self.special.values()}
        self._plain.add_tokens(
            [
                AddedToken(mark, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=False)
                for mark, (_, token) in marks.items()
            ]
        )
        self._marked = {self._plain.token_to_id(mark): i for mark, (i, _) in marks.items()}

    def shield(self, text: str) -> str:
        """A text in which nothing can be taken for a special token, for use in what `encode` is given."""
        return self._find.sub(lambda found: SHIELD.format(self.special[found[0]]), RESERVED.sub("", text))

    def encode(self, text: str) -> list[int]:
        """Token ids, nothing added; what is shielded is text."""
        if not SHIELDED.search(text):
            found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
            return found
        marked = self._find.sub(lambda found: MARK.format(self.special[found[0]]), text)
        names = {str(i): content for content, i in self.special.items()}
        whole = SHIELDED.sub(lambda found: names[found[1]], marked)
        self._plain.encode_special_tokens = True  # a pickled tokenizer forgets it
        return [self._marked.get(i, i) for i in self._plain.encode(whole, add_special_tokens=False).ids]
