"""Whisper's networks out of transformers: loading, shorter windows, greedy decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from mmcl.errors import ConfigError
from mmcl.modules.hf_source import HFSource
from mmcl.modules.weight_files import fill, read_weights

FRAMES = 50
"""Encoder frames of a second."""
POSITIONS = "encoder.embed_positions.weight"


def window_of(source: HFSource, max_seconds: int | None) -> int:
    """Seconds of the network's window.

    Raises:
        ConfigError: more than the model has positions for, or less than a second.
    """
    whole: int = source.config.max_source_positions // FRAMES
    if max_seconds is None:
        return whole
    if not 1 <= max_seconds <= whole:
        raise ConfigError(
            f"ASRModule: max_seconds is {max_seconds}; the window of '{source.model}' can be 1 to {whole} seconds"
        )
    return max_seconds


def settle(config: Any) -> None:
    """No random choices within the forward but dropout's: masks would differ between processes."""
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    config.apply_spec_augment = False


def build(source: HFSource, seconds: int) -> nn.Module:
    """The whole network with random weights and a window of so many seconds."""
    return shorten(source.build(WhisperForConditionalGeneration), seconds)


def load(source: HFSource, checkpoint: str | None, random_init: bool, seconds: int) -> nn.Module:
    """The whole network with the weights that were asked for and a window of so many seconds.

    Raises:
        ConfigError: as `HFSource.create`.
    """
    if checkpoint is None or random_init:
        return shorten(source.create(WhisperForConditionalGeneration, checkpoint, random_init), seconds)
    network = build(source, seconds)
    file = Path(checkpoint).expanduser()
    weights = read_weights(file)
    for name in weights:
        if name.endswith(POSITIONS):
            weights[name] = weights[name][: seconds * FRAMES]
    fill(network, weights, file, source.model)
    return network


def shorten(network: nn.Module, seconds: int) -> nn.Module:
    """Keep the leading positions of the encoder's table, in place; of a whole Whisper or of its encoder alone."""
    whole: Any = network
    encoder = whole.get_encoder() if hasattr(whole, "proj_out") else whole
    count = seconds * FRAMES
    if count != encoder.embed_positions.num_embeddings:
        kept = encoder.embed_positions.weight.detach()[:count].clone()
        encoder.embed_positions = nn.Embedding(len(kept), kept.shape[1], _weight=kept).requires_grad_(False)
        part: Any
        for part in network.modules():  # each may hold a copy of the configuration
            config = getattr(part, "config", None)
            if config is not None:
                config.max_source_positions = count
            if hasattr(part, "max_source_positions"):
                part.max_source_positions = count
    return network


def generation_of(source: HFSource) -> Any:
    """What transformers' generation would be told: suppressed tokens, whether the model has languages."""
    if source.place is None or (source.local and not (Path(source.place) / "generation_config.json").is_file()):
        return GenerationConfig.from_model_config(source.config)
    return source.part(GenerationConfig, "settings of generation")


def extractor_of(source: HFSource) -> Any:
    """The feature extractor beside the model; the published settings where there is none."""
    if source.place is None or (source.local and not (Path(source.place) / "preprocessor_config.json").is_file()):
        return WhisperFeatureExtractor(feature_size=source.config.num_mel_bins)
    found = source.part(WhisperFeatureExtractor, "feature extractor")
    if found.feature_size != source.config.num_mel_bins:
        raise ConfigError(
            f"model '{source.model}' hears {source.config.num_mel_bins} mel bins, but its feature extractor gives "
            f"{found.feature_size}; it is another model's"
        )
    return found


@torch.no_grad()
def greedy(network: nn.Module, features: Tensor, prompt: Tensor, generation: Any, most: int) -> list[list[int]]:
    """The most likely token at each step, for all rows at once; a row ends at the end-of-text token.

    Args:
        network: the whole Whisper.
        features: (B, bins, frames).
        prompt: (B, P) tokens that the texts begin with.
        generation: its ``suppress_tokens`` never come, its ``begin_suppress_tokens`` not first.
        most: new tokens of a row.
    """
    whole: Any = network
    decoder = whole.model.decoder
    end = whole.config.eos_token_id
    states = whole.model.encoder(features).last_hidden_state
    never = [t for t in generation.suppress_tokens or () if t < whole.config.vocab_size]
    first = [t for t in generation.begin_suppress_tokens or () if t < whole.config.vocab_size]
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    tokens, cache, found = prompt, None, []
    for step in range(min(most, whole.config.max_target_positions - prompt.shape[1])):
        out = decoder(input_ids=tokens, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = whole.proj_out(out.last_hidden_state[:, -1]).float()
        logits[:, never + first if step == 0 else never] = -torch.inf
        chosen = logits.argmax(-1).masked_fill(done, end)
        found.append(chosen)
        done = done | (chosen == end)
        if done.all():
            break
        tokens = chosen[:, None]
    rows = torch.stack(found, 1).tolist() if found else [[] for _ in prompt]
    return [row[: row.index(end)] if end in row else row for row in rows]
