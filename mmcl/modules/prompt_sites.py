"""Places for prompts in vision transformers of timm and open_clip: in attention, and in the input.

What is put there lasts for as long as its context is open. Nothing is kept in the network, and without a context it
computes what it always did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import open_clip.transformer as clip_layers
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mmcl.errors import RunError
from mmcl.functional.prompts import prefix_attention
from mmcl.modules.clip_layers import block

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(q, k, v, probability of dropout) -> (B, H, N, C)."""
Change = Callable[[Tensor], Tensor | float]
"""(B, N, D) -> what is added to (B, N, 3 H C), the queries, keys and values of all heads."""


def _split(packed: Tensor, heads: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, tokens, _ = packed.shape
    q, k, v = (part.reshape(rows, tokens, heads, size).transpose(1, 2) for part in packed.chunk(3, dim=-1))
    return q, k, v


def _of_timm(layer: Any, x: Tensor, attend: Attend, change: Change) -> Tensor:
    q, k, v = _split(layer.qkv(x) + change(x), layer.num_heads, layer.head_dim)
    dropout = layer.attn_drop.p if layer.training else 0.0
    y = attend(layer.q_norm(q), layer.k_norm(k), v, dropout).transpose(1, 2).flatten(2)
    y = layer.norm(y)
    gate = getattr(layer, "gate", None)  # newer than the oldest timm that we take
    y = y if gate is None else y * gate(x).sigmoid()
    mixed: Tensor = layer.proj_drop(layer.proj(y))
    return mixed


def _of_torch(layer: Any, x: Tensor, attend: Attend, change: Change) -> Tensor:
    x = x if layer.batch_first else x.transpose(0, 1)
    packed = F.linear(x, layer.in_proj_weight, layer.in_proj_bias) + change(x)
    q, k, v = _split(packed, layer.num_heads, layer.head_dim)
    y = attend(q, k, v, layer.dropout if layer.training else 0.0).transpose(1, 2).flatten(2)
    mixed: Tensor = layer.out_proj(y)
    return mixed if layer.batch_first else mixed.transpose(0, 1)


def _of_open_clip(layer: Any, x: Tensor, attend: Attend, change: Change) -> Tensor:
    packed = F.linear(x, layer.in_proj_weight, layer.in_proj_bias) + change(x)
    q, k, v = _split(packed, layer.num_heads, layer.head_dim)
    y = attend(layer.ln_q(q), layer.ln_k(k), v, layer.attn_drop.p if layer.training else 0.0)
    y = y if layer.head_scale is None else y * layer.head_scale
    mixed: Tensor = layer.out_drop(layer.out_proj(layer.ln_inner(y.transpose(1, 2).flatten(2))))
    return mixed


LAYERS: dict[type[nn.Module], Callable[[Any, Tensor, Attend, Change], Tensor]] = {
    Attention: _of_timm,
    nn.MultiheadAttention: _of_torch,
    clip_layers.Attention: _of_open_clip,
}
"""Attention layers that a prefix can be put into; exactly these classes, as others compute something else."""


def _plain(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


class PrefixSite:
    """One attention layer; see `mmcl.outputs.AttentionSite`."""

    def __init__(
        self, layer: nn.Module, path: str, tower: str, trunk: nn.Module, features: int, blocks: nn.Module
    ) -> None:
        self.name, self.tower, self.trunk, self.features = path, tower, trunk, features
        self._blocks = blocks
        found = block(f"{path}.")
        assert found is not None
        self.block = found
        own: Any = layer
        self._layer = own
        self.heads = int(own.num_heads)
        self.dim = self.heads * int(own.head_dim)
        self.width = int((own.qkv.weight if hasattr(own, "qkv") else own.in_proj_weight).shape[1])

    def prefix(self, keys: Tensor, values: Tensor) -> AbstractContextManager[None]:
        """Put prefixes in front of keys and values for a while.

        Raises:
            RunError: there is something already, or the network recomputes activations, which would miss it.
        """

        def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
            return prefix_attention(q, k, v, keys, values, dropout=dropout)

        return self._replaced(attend, lambda x: 0.0)

    def lowrank(self, down: Tensor, up: Tensor) -> AbstractContextManager[None]:
        """Add (x down^T) up to queries, keys and values of each row for a while.

        Raises:
            RunError: as `prefix`.
        """
        return self._replaced(_plain, lambda x: (x @ down.to(x.dtype).mT) @ up.to(x.dtype))

    @contextmanager
    def _replaced(self, attend: Attend, change: Change) -> Iterator[None]:
        layer: Any = self._layer
        if "forward" in vars(layer):
            raise RunError(f"site '{self.name}' has a prefix already")
        if getattr(self._blocks, "grad_checkpointing", False) and torch.is_grad_enabled():
            raise RunError(f"site '{self.name}': gradient checkpointing recomputes blocks without their prefixes")
        compute = LAYERS[type(layer)]

        def forward(x: Tensor, *others: Any, attn_mask: Tensor | None = None, **options: Any) -> Any:
            if attn_mask is not None or options.get("is_causal"):
                raise RunError(f"site '{self.name}': attention with a mask takes no prefix")
            mixed = compute(layer, x, attend, change)
            return (mixed, None) if compute is _of_torch else mixed

        layer.forward = forward
        try:
            yield
        finally:
            del layer.forward


class TokenSite:
    """The sequence that enters a tower's first block; see `mmcl.outputs.InputSite`."""

    def __init__(self, inner: nn.Module, path: str, tower: str, trunk: nn.Module, features: int) -> None:
        self.name, self.tower, self.trunk, self.features = path, tower, trunk, features
        self._trunk: Any = inner
        self._of_timm = isinstance(inner, VisionTransformer)
        own: Any = inner
        self._lead = int(own.num_prefix_tokens) if self._of_timm else 1
        self.dim = int(own.embed_dim) if self._of_timm else len(own.class_embedding)

    @property
    def position(self) -> Tensor:
        """(dim,) the class token's position embedding; zeros where it has none."""
        trunk = self._trunk
        if not self._of_timm:
            found: Tensor = trunk.positional_embedding[0]
            return found.detach()
        positions = trunk.pos_embed
        if positions is None or trunk.cls_token is None or trunk.no_embed_class:
            return torch.zeros(self.dim, device=next(trunk.parameters()).device)
        found = positions[0, 0]
        return found.detach()

    def embed(self, inputs: Tensor) -> Tensor:
        """(B, N, dim) embeddings of patches without positions."""
        trunk = self._trunk
        if not self._of_timm:
            patches: Tensor = trunk.conv1(inputs)
            return patches.flatten(2).transpose(1, 2)
        patches = trunk.patch_embed(inputs)
        return patches if patches.dim() == 3 else patches.flatten(1, 2)

    @contextmanager
    def insert(self, tokens: Tensor, pool: bool = False) -> Iterator[None]:
        """Put tokens behind the class token for a while; `pool`: what they become is the tower's answer."""
        lead, count = self._lead, tokens.shape[1]

        def enter(layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = given[0]
            return (torch.cat([x[:, :lead], tokens.to(x.dtype), x[:, lead:]], dim=1), *given[1:])

        def leave(layer: nn.Module, given: Any, x: Tensor) -> Tensor:
            if pool:  # whatever the tower pools of equal tokens is their value
                own = x[:, lead : lead + count].mean(1, keepdim=True)
                return own.expand(-1, x.shape[1] - count, -1)
            return torch.cat([x[:, :lead], x[:, lead + count :]], dim=1)

        first, last = self._ends()
        hooks = [first.register_forward_pre_hook(enter), last.register_forward_hook(leave)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _ends(self) -> tuple[nn.Module, nn.Module]:
        """What takes the tokens before the first block, and what gives them before they are pooled."""
        trunk = self._trunk
        if self._of_timm:
            return trunk.norm_pre, trunk.norm
        normed_first = trunk.attn_pool is None and not trunk.final_ln_after_pool
        return trunk.ln_pre, trunk.ln_post if normed_first else trunk.transformer


def prompt_sites(tower: nn.Module, path: str, kind: str, features: int, name: str = "image") -> list[Any]:
    """Sites of a tower of vision; none where it is no such transformer.

    Args:
        tower: of timm, or open_clip's, also around one of timm.
        path: its name in the network.
        kind: ``attention`` or ``input``.
        features: length of its pooled feature.
        name: of the tower.

    Returns:
        `PrefixSite` for every block, or one `TokenSite`; an empty list where a block computes attention otherwise.
    """
    trunk, path = (tower.trunk, f"{path}.trunk") if isinstance(tower, TimmModel) else (tower, path)
    if not isinstance(trunk, VisionTransformer | clip_layers.VisionTransformer):
        return []
    if kind == "input":
        return [TokenSite(trunk, path, name, tower, features)]
    of_timm = isinstance(trunk, VisionTransformer)
    count = len(trunk.blocks if of_timm else trunk.transformer.resblocks)
    layers = [(n, m) for n, m in trunk.named_modules() if _takes_prefix(m) and block(f"{n}.") is not None]
    blocks = trunk if of_timm else trunk.transformer
    found = [PrefixSite(layer, f"{path}.{n}", name, tower, features, blocks) for n, layer in layers]
    return found if [site.block for site in found] == list(range(count)) else []


def _takes_prefix(layer: Any) -> bool:
    if type(layer) is nn.MultiheadAttention:
        return bool(layer._qkv_same_embed_dim) and layer.bias_k is None and not layer.add_zero_attn
    return type(layer) is Attention or (type(layer) is clip_layers.Attention and not layer.scaled_cosine)


def image_features(tower: Any) -> int:
    """Length of the feature that an image tower of open_clip gives."""
    if not isinstance(tower, TimmModel):
        return int(getattr(tower, "output_dim", 0))
    sizes = [layer.out_features for layer in tower.head.modules() if isinstance(layer, nn.Linear)]
    trunk: Any = tower.trunk
    return int(sizes[-1] if sizes else trunk.num_classes or trunk.num_features)
