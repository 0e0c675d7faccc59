"""CTC recognisers: a speech encoder, a linear head over an alphabet, one symbol or blank for each frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcl.errors import ConfigError
from mmcl.modules.alphabets import Alphabet, letters_of
from mmcl.modules.asr_parts import MOST_TOKENS
from mmcl.modules.ctc import append_rows, frames_needed
from mmcl.modules.objectives import IGNORED
from mmcl.outputs import SKIP, Batch, Outputs

Unknown = Literal["skip", "drop"]


class CTCRecogniser:
    """What CTC on any encoder has in common; subclasses bring the encoder.

    Args:
        language: of the first alphabet, and of tasks that do not say theirs.
        alphabets: language -> letters, before the built-in ones.
        unknown: what happens to a training transcript with characters outside the alphabet.
    """

    rate = 16_000
    least = 1
    fresh_head = False
    key = ""  # the batch key of what the encoder reads
    paddings: Mapping[str, float]

    def __init__(self, language: str, alphabets: Mapping[str, str], unknown: Unknown) -> None:
        self.language, self.alphabets, self.unknown = language, dict(alphabets), unknown
        self.alphabet = self.first_alphabet()
        self._known: int | None = None

    # -- what an encoder brings ---------------------------------------------------------------------------------------

    def first_alphabet(self) -> Alphabet:
        """The alphabet before any task."""
        return Alphabet.of(letters_of(self.language, self.alphabets))

    def head(self, network: nn.Module) -> nn.Linear:
        """The layer whose rows are the alphabet's symbols."""
        raise NotImplementedError

    def hear(self, waveform: Tensor) -> tuple[Tensor, int, str | None]:
        """(what the encoder reads, its frames, why it cannot be trained on or None)."""
        raise NotImplementedError

    def encode(self, network: nn.Module, batch: Batch) -> Tensor:
        """(B, T, D) frames."""
        raise NotImplementedError

    # -- what all share -----------------------------------------------------------------------------------------------

    def check(self, language: str | None) -> None:
        letters_of(language or self.language, self.alphabets)

    def grow(self, network: nn.Module, language: str | None) -> None:
        """Append head rows for symbols that the language brings; earlier rows keep their places."""
        first = self._known is None
        self._known = 0 if first and self.fresh_head else len(self.alphabet)
        self.alphabet = self.alphabet.with_letters(letters_of(language or self.language, self.alphabets))
        head = self.head(network)
        if len(self.alphabet) > len(head.weight):
            append_rows(head, len(self.alphabet) - len(head.weight))

    def row(self, waveform: Tensor, text: str | None, language: str | None) -> dict[str, Any]:
        heard, frames, fault = self.hear(waveform)
        row: dict[str, Any] = {self.key: heard, "frames": frames}
        if text is not None:
            symbols, unknown = self.alphabet.encode(text)
            row["targets"] = torch.tensor(symbols, dtype=torch.long)
            if unknown and self.unknown == "skip":
                listed = " ".join(repr(c) for c in unknown)
                fault = fault or f"its transcript has characters outside the alphabet: {listed}"
            if not symbols:
                fault = fault or "its transcript has no symbol of the alphabet"
            need = frames_needed(symbols)
            if need > frames:
                fault = fault or f"its transcript needs {need} frames, but the recording has {frames}"
        if fault is not None:
            row[SKIP] = fault
        return row

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Logits (B, T, C) of the frames, and the states behind them; targets are not aligned with frames."""
        if self.key not in batch:
            return Outputs()
        tokens = self.encode(network, batch)
        valid = torch.arange(tokens.shape[1], device=tokens.device) < batch["frames"][:, None]
        if "valid" in batch:
            valid = valid & batch["valid"][:, None]
        logits = self.head(network)(tokens)
        outputs = Outputs(logits=logits, valid=valid, tokens=tokens, extra={"blank": self.alphabet.blank})
        if self._known is not None:  # rows that a task has just brought are random: no teacher's word on them counts
            outputs.known = torch.arange(logits.shape[-1], device=logits.device) < self._known
        return outputs

    def generate(
        self, network: nn.Module, batch: Batch, max_new_tokens: int = MOST_TOKENS, language: str | None = None
    ) -> list[str]:
        """The best symbol of each frame, repeats merged, blanks dropped; neither option changes that."""
        outputs = self.compute(network, batch)
        assert outputs.logits is not None
        best = outputs.logits.argmax(-1).tolist()
        return [self.alphabet.decode(row[:n]) for row, n in zip(best, batch["frames"].tolist(), strict=True)]

    def new_head(self, width: int) -> nn.Linear:
        """A head with a row for each symbol, drawn small."""
        head = nn.Linear(width, len(self.alphabet))
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return head


def targets_padding() -> dict[str, float]:
    """Paddings of transcripts."""
    return {"targets": float(IGNORED)}


def refuse_adapter(config: Any, model: str) -> None:
    """Raises ConfigError for encoders with layers behind the encoder that change the number of frames."""
    if getattr(config, "add_adapter", False):
        raise ConfigError(f"model '{model}': wav2vec 2.0 with `add_adapter` is not served")
