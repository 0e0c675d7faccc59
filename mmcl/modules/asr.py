"""Speech recognition: Whisper's sequence loss, and CTC on wav2vec 2.0, HuBERT and Whisper's encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

from mmcl.errors import ConfigError, SampleError, near
from mmcl.modules import hf_source
from mmcl.modules.asr_ctc_wave import KINDS, WaveCTC
from mmcl.modules.asr_ctc_whisper import WhisperCTC
from mmcl.modules.asr_parts import Recogniser
from mmcl.modules.asr_seq2seq import Seq2Seq
from mmcl.modules.audio_transform import AudioTransform
from mmcl.modules.base import Module, OptimizerBuilder
from mmcl.modules.clip_layers import canonical
from mmcl.modules.ctc import CTC
from mmcl.modules.objectives import CrossEntropy
from mmcl.outputs import Batch, Objective, Outputs, Site
from mmcl.schedule import Schedule
from mmcl.stream import Stream, Task

Part = Literal["features", "encoder", "decoder", "head"]
PARTS: tuple[Part, ...] = ("features", "encoder", "decoder", "head")


class ASRModule(Module):
    """A speech recogniser of transformers; samples have ``audio`` and, but for prediction, one transcript as ``text``.

    Args:
        model: ``local-dir:PATH`` or a folder, ``asset:NAME``, ``package:some.package/FOLDER``, a ``.json``
            configuration, or ``hf-hub:ORGANISATION/NAME``; of Whisper, wav2vec 2.0 or HuBERT.
        kind: ``seq2seq`` (Whisper with its decoder), ``ctc`` (wav2vec 2.0, HuBERT, Whisper's encoder), or ``auto``:
            ``seq2seq`` for Whisper, ``ctc`` for the others.
        checkpoint: file of weights, in place of those of the folder.
        random_init: ignore the weights.
        tokenizer: model whose tokenizer writes Whisper's texts; None: the one beside the model.
        max_seconds: Whisper: length of the window, whole seconds; None: the model's own, 30 for the published ones.
            Shorter windows keep the leading rows of the table of positions and cost as much less; they differ from
            published Whisper. wav2vec 2.0 and HuBERT: longer recordings are not trained on; None: all are.
        language: BCP 47 tag of the first CTC alphabet, and of recordings whose task or ``language`` field names none.
        alphabets: language -> its letters, for CTC; before the built-in ones.
        unknown: training transcripts with characters outside the alphabet are left out and named (``skip``), or lose
            those characters (``drop``).
        objective: `CrossEntropy` of the next tokens, or `CTC`, by default.
        trainable: what trains: ``encoder``, ``decoder``, ``head``, and ``features``, the convolutions of wav2vec 2.0
            and HuBERT, which are usually kept (Whisper's belong to its encoder, its head to its decoder).
        head_lr_scale: factor on the rate of a CTC head. A new head needs to learn about a hundred times as fast as its
            encoder may change.
        lr: learning rate; each task may scale it.
        weight_decay: of the default optimizer; vectors and scalars are not decayed.
        betas: of the default optimizer.
        schedule: factor on the rate over a task's steps. None: 10 % warm-up, then cosine to 0.
        optimizer: takes parameter groups and returns an optimizer, in place of AdamW.

    Layer drop and SpecAugment of the configuration are off: they would choose at random within the forward.
    """

    provides = frozenset({"logits", "tokens", "sites.linear"})
    probes = frozenset({"error_rate"})
    distillable = ("logits", "tokens")
    formats = ("transformers", "safetensors")
    generation_options = ("max_new_tokens", "language")

    def __init__(
        self,
        model: str,
        kind: Literal["auto", "ctc", "seq2seq"] = "auto",
        checkpoint: str | None = None,
        random_init: bool = False,
        tokenizer: str | None = None,
        max_seconds: int | None = None,
        language: str = "en",
        alphabets: Mapping[str, str] | None = None,
        unknown: Literal["skip", "drop"] = "skip",
        objective: Objective | None = None,
        trainable: Sequence[Part] = ("encoder", "decoder", "head"),
        head_lr_scale: float = 1.0,
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
        schedule: Schedule | None = None,
        optimizer: OptimizerBuilder | None = None,
    ) -> None:
        for part in trainable:
            if part not in PARTS:
                raise ConfigError(f"ASRModule: trainable part '{part}' is unknown; {near(part, PARTS)}")
        if head_lr_scale <= 0:
            raise ConfigError(f"ASRModule: head_lr_scale is {head_lr_scale}; it must be positive")
        source = hf_source.find(model)
        chosen = _kind(source, kind)
        default = CrossEntropy() if chosen == "seq2seq" else CTC()
        super().__init__(objective or default, lr, weight_decay, betas, schedule, optimizer)
        self.kind, self.language, self.trainable = chosen, language, frozenset(trainable)
        self.head_lr_scale = head_lr_scale
        self.recogniser: Recogniser
        if chosen == "seq2seq":
            texts = source if tokenizer is None else hf_source.find(tokenizer)
            written = texts.part(transformers.AutoTokenizer, "tokenizer")
            self.recogniser = Seq2Seq(source, written, max_seconds, language)
        elif source.config.model_type == "whisper":
            self.recogniser = WhisperCTC(source, max_seconds, language, alphabets or {}, unknown)
        else:
            self.recogniser = WaveCTC(source, max_seconds, language, alphabets or {}, unknown)
        self.paddings = dict(self.recogniser.paddings)
        self.audio = AudioTransform(self.recogniser.rate, self.recogniser.least / self.recogniser.rate)
        self.network = self.recogniser.load(checkpoint, random_init).train()
        self.fresh_head = self.recogniser.fresh_head
        self._languages: dict[int, str | None] = {}
        self._choose_trainable()

    # -- the contract -------------------------------------------------------------------------------------------------

    def compute(self, network: nn.Module, batch: Batch) -> Outputs:
        """Logits over tokens or frames.

        Args:
            network: the live one or a teacher.
            batch: Whisper: ``input_features`` (B, bins, frames); seq2seq also ``input_ids`` (B, L) and ``targets``
                (B, L), -100 where nothing is to be written. wav2vec 2.0, HuBERT: ``audio`` (B, N) with
                ``audio_lengths``. CTC: ``frames`` (B,). ``valid`` (B,) is optional.

        Returns:
            ``logits`` (B, L, C), ``valid`` (B, L), ``tokens`` (B, L, D), and in seq2seq ``targets`` (B, L), over
            the L tokens or frames; with CTC ``known`` (C,), the rows of the head that earlier tasks have trained. Empty
            where the batch has no recordings or, in seq2seq, no transcripts.
        """
        return self.recogniser.compute(network, batch)

    def build_network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # a teacher must not move the random numbers of the run
            return self.recogniser.build()

    def transform(self, sample: dict[str, Any], augment: bool) -> dict[str, Any]:
        """Recording and transcript -> what the network reads; ``text`` stays beside it as the reference.

        Raises:
            SampleError: no recording that the network could hear, or several transcripts.
        """
        text = sample.get("text")
        if isinstance(text, list):
            if len(text) != 1:
                raise SampleError(f"it has {len(text)} transcripts; give one")
            text = text[0]
        row = self.recogniser.row(self.audio(sample), text, self._language(sample))
        return row if text is None else {**row, "text": text}

    def _language(self, sample: Mapping[str, Any]) -> str | None:
        """Of the sample's own field (a tag, or JSON with one under ``language``), else of its task."""
        given = sample.get("language")
        if isinstance(given, Mapping):
            given = given.get("language")
        return str(given) if given is not None else self._languages.get(sample.get("domain", -1))

    def generate(self, batch: Batch, **options: Any) -> Outputs:
        """Greedy transcripts.

        Args:
            batch: as of `compute`, without transcripts.
            options: ``max_new_tokens`` (224) and ``language``, for models that know several; CTC needs neither.

        Raises:
            ConfigError: any other option.
        """
        super().check_generation(options)
        return Outputs(texts=self.recogniser.generate(self.network, batch, **options))

    def check_generation(self, options: Mapping[str, Any]) -> None:
        """A language must be one that the model writes, also where it writes what it hears without being told."""
        super().check_generation(options)
        if (language := options.get("language")) is None:
            return
        if not isinstance(language, str):  # YAML reads `no`, Norwegian, as False
            raise ConfigError(f"ASRModule: option language is {language!r}; give a tag in quotes, as in 'es'")
        self.recogniser.check(language)

    def is_head(self, name: str) -> bool:
        """CTC's head over the symbols of the languages; a decoder's table of tokens is the pretrained model's."""
        return self.kind == "ctc" and self.recogniser.part(name) == "head"

    def sites(self, kind: str) -> list[Site]:
        if kind != "linear":
            return super().sites(kind)
        from mmcl.modules.sites import linear_sites

        return linear_sites(self.network, self._tower)

    def _tower(self, name: str) -> str | None:
        part = self.recogniser.part(name)
        return None if part == "head" else {"decoder": "text"}.get(part, "audio")

    def check(self, stream: Stream) -> None:
        super().check(stream)
        for i, task in enumerate(stream.tasks):
            try:
                self.recogniser.check(task.language)
            except ConfigError as error:
                raise ConfigError(f"task '{task.name}': {error}") from error
            self._languages[i] = task.language
        speaks = {task.evaluates: task.language for task in stream.tasks if task.language}
        for evalset in stream.evals:
            fields = evalset.source.fields
            told = "language" in evalset.options or (fields is not None and "language" in fields)
            if speaks and not told and getattr(self.recogniser, "multilingual", False):
                raise ConfigError(
                    f"evaluation set '{evalset.name}': this model is told the language it hears; say it, as in "
                    f"options: {{language: {speaks.get(evalset.name, 'en')}}}"
                )

    def needed(self, probe: str = "") -> frozenset[str]:
        return frozenset({"audio", "text"})

    def grow(self, task: Task) -> None:
        self.recogniser.grow(self.network, task.language)
        self._choose_trainable()

    def _choose_trainable(self) -> None:
        for name, parameter in self.network.named_parameters():
            part = self.recogniser.part(canonical(name))
            # Positions of Whisper's encoder are sines; the mask's vector takes part in pretraining alone.
            fixed = name.endswith(("encoder.embed_positions.weight", "masked_spec_embed"))
            parameter.requires_grad_(part in self.trainable and not fixed)

    def lr_scale(self, name: str) -> float:
        return self.head_lr_scale if self.recogniser.part(canonical(name)) == "head" else 1.0

    def export(self, folder: Path, format: str) -> None:
        """Write the network for its peer library, adapters folded in.

        Args:
            folder: exists and is empty.
            format: ``transformers`` or ``safetensors``; `docs/speech.md` says how each kind is loaded.

        Raises:
            ConfigError: a format that the module does not offer.
        """
        if format != "transformers":
            return super().export(folder, format)
        return self.recogniser.export(self.network, folder)


def _kind(source: hf_source.HFSource, kind: str) -> str:
    family = source.config.model_type
    if family not in ("whisper", *KINDS):
        raise ConfigError(f"model '{source.model}' is a {family}; ASRModule serves whisper, {', '.join(KINDS)}")
    if kind not in ("auto", "ctc", "seq2seq"):
        raise ConfigError(f"ASRModule: kind '{kind}' is unknown; {near(kind, ('auto', 'ctc', 'seq2seq'))}")
    if kind == "seq2seq" and family != "whisper":
        raise ConfigError(f"model '{source.model}' is a {family}, which has no decoder; kind is `ctc`")
    return kind if kind != "auto" else "seq2seq" if family == "whisper" else "ctc"
