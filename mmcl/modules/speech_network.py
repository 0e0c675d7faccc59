"""The networks of wav2vec 2.0 and HuBERT for pretraining, out of transformers' layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


def frame_count(samples: Any, config: Any) -> Any:
    """Frames that the convolutions make of so many samples (a number or a tensor of them)."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def window_of(config: Any) -> tuple[int, int]:
    """(samples that a frame sees, samples from one frame to the next)."""
    width, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        width += (kernel - 1) * step
        step *= stride
    return width, step


def fold_weight_norm(network: nn.Module) -> nn.Module:
    """Give the convolution over positions a plain weight in place of length and direction, in place.

    The outputs stay; averages, snapshots and adapters then see one tensor, as everywhere else.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return network


@torch.no_grad()
def unfold_into(fresh: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a network as transformers builds it with the weights of a folded one."""
    left = dict(weights)
    for name, module in fresh.named_modules():
        if isinstance(module, nn.Conv1d) and parametrize.is_parametrized(module, "weight"):
            module.weight = left.pop(f"{name}.weight")
    parts = ".parametrizations."
    missing, unexpected = fresh.load_state_dict(left, strict=False)
    assert not unexpected and all(parts in name for name in missing), (missing, unexpected)


@dataclass
class Encoded:
    """What the encoder makes of a batch: (B, T, D) `tokens`, (B, T, C) `local` frames, (B, T) `valid`."""

    tokens: Tensor
    local: Tensor
    valid: Tensor


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The values themselves; what comes before them gets `factor` times their gradient.

    >>> x = torch.ones(2, requires_grad=True)
    >>> scale_gradient(x, 0.5).sum().backward()
    >>> x.grad.tolist()
    [0.5, 0.5]
    """
    scaled: Tensor = _ScaledGradient.apply(values, factor)  # type: ignore[no-untyped-call]
    return scaled


def encode(
    model: Any, audio: Tensor, lengths: Tensor, masked: Tensor | None, feature_grad_mult: float = 1.0
) -> Encoded:
    """Run a `Wav2Vec2Model` or `HubertModel`; a row does not depend on how far the batch is filled up.

    Args:
        model: of transformers.
        audio: (B, N).
        lengths: (B,) samples of each row.
        masked: (B, T) frames whose content is replaced by the mask's vector; None masks none.
        feature_grad_mult: factor on the gradient of the convolutions.
    """
    local = _local_features(model.feature_extractor.conv_layers, audio, lengths)
    if feature_grad_mult != 1:
        local = scale_gradient(local, feature_grad_mult)
    valid = torch.arange(local.shape[1], device=audio.device) < frame_count(lengths, model.config)[:, None]
    projected = model.feature_projection(local)
    hidden, local = projected if isinstance(projected, tuple) else (projected, local)
    if masked is not None:
        hidden = torch.where(masked[..., None], model.masked_spec_embed.to(hidden.dtype), hidden)
    # The encoder writes zeros over what is not valid, in place.
    tokens = model.encoder(hidden.clone(), attention_mask=valid).last_hidden_state
    return Encoded(tokens, local, valid)


def _local_features(layers: Any, audio: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C) of the convolutions. Statistics over time are those of a row's own samples."""
    hidden = audio[:, None]
    first, rest = layers[0], layers
    if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        hidden = first.conv(hidden)
        count = (lengths - first.conv.kernel_size[0]) // first.conv.stride[0] + 1
        hidden = first.activation(_norm_over_time(hidden, count, first.layer_norm))
        rest = layers[1:]
    for layer in rest:
        hidden = layer(hidden)
    return hidden.transpose(1, 2)


def _norm_over_time(hidden: Tensor, count: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group norm with one channel a group, over the first `count` (B,) steps of (B, C, T)."""
    own = (torch.arange(hidden.shape[2], device=hidden.device) < count[:, None])[:, None]
    wide = hidden.float()
    mean = (wide * own).sum(2, keepdim=True) / count[:, None, None]
    centred = wide - mean
    variance = (centred.square() * own).sum(2, keepdim=True) / count[:, None, None]
    scaled = centred * torch.rsqrt(variance + norm.eps)
    return (scaled * norm.weight[:, None] + norm.bias[:, None]).to(hidden.dtype)


@dataclass
class Quantized:
    """`vectors` (B, T, G * D), `codes` (B, T, G), `usage` (B, T, G, V): what perplexity counts for each frame."""

    vectors: Tensor
    codes: Tensor
    usage: Tensor


def quantize(quantizer: Any, local: Tensor, temperature: float) -> Quantized:
    """Choose an entry of each codebook for each frame: the best one, in training with Gumbel noise.

    Args:
        quantizer: of a `Wav2Vec2ForPreTraining`. In training the gradient is that of the soft choice.
        local: (B, T, C).
        temperature: of the noisy choice.
    """
    groups, entries = quantizer.num_groups, quantizer.num_vars
    logits = quantizer.weight_proj(local).unflatten(-1, (groups, entries)).float()
    if quantizer.training:
        chosen = F.gumbel_softmax(logits, tau=temperature, hard=True)
        usage = logits.softmax(-1)
    else:
        usage = chosen = F.one_hot(logits.argmax(-1), entries).float()
    table = quantizer.codevectors.view(groups, entries, -1)
    vectors = torch.einsum("btgv,gvd->btgd", chosen.to(table.dtype), table).flatten(2)
    return Quantized(vectors, chosen.argmax(-1), usage)


class HubertPretraining(nn.Module):
    """A `HubertModel` with the projection and the codewords of its pretraining, which transformers lacks.

    Args:
        hubert: the model.
        clusters: number of codewords.
        width: of codewords; the published models have 256.
    """

    def __init__(self, hubert: nn.Module, clusters: int, width: int) -> None:
        super().__init__()
        model: Any = hubert
        self.hubert = hubert
        self.project = nn.Linear(model.config.hidden_size, width)
        self.codewords = nn.Parameter(torch.empty(clusters, width).uniform_())
