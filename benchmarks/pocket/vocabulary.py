"""Write pocket-clip's tokenizer: the words of the class names and templates, and letters for every other word.

The tokenizer is made by `python -m mmcl.benchmarks.pocket.vocabulary`.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import NFD, Lowercase, Replace, Sequence, StripAccents
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

CONTEXT = 14
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[BOS]", "[EOS]"


def build_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A lower-casing word tokenizer that spells unknown words letter by letter.

    The end token has the highest id, because open_clip pools the text at the largest id.

    Args:
        texts: all class names and templates.
    """
    normalizer = Sequence([NFD(), Lowercase(), StripAccents(), Replace("\u2019", "'")])
    splitter = BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = string.ascii_lowercase + string.digits
    pieces = sorted(words | set(letters) | {f"##{letter}" for letter in letters})
    vocabulary = {token: i for i, token in enumerate([PAD, UNKNOWN, START, *pieces, END])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    tokenizer.add_special_tokens([PAD, UNKNOWN, START, END])
    return tokenizer


def main() -> None:
    """Command line of this module."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Write pocket-clip's tokenizer files.")
    parser.add_argument("--to", type=Path, default=here / "pocket-clip", help="folder of the model")
    to = parser.parse_args().to
    classes = json.loads((here / "classes.json").read_text(encoding="utf-8"))
    templates = json.loads((here / "templates.json").read_text(encoding="utf-8"))
    names = [record[name] for records in classes.values() for record in records for name in ("label", "kind")]
    tokenizer = build_tokenizer(names + [template.format("") for template in templates])
    to.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(to / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "bos_token": START,
        "eos_token": END,
    }
    (to / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
