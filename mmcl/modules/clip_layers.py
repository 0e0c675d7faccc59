"""Which tower and which depth a parameter of a CLIP network belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from timm.models import group_parameters

from mmcl.weights import canonical as canonical

TOWERS = ("image", "text", "logit_scale")
HEADS = {"image.head": "image", "text.head": "text"}
"""Part of a tower that projects into the space of both -> its tower."""
PARTS = (*TOWERS, *HEADS)
"""What can be trained on its own."""
_HEADS = {
    "image.head": re.compile(r"^visual\.(head\.|proj\b|attnpool\.c_proj\.)"),
    "text.head": re.compile(r"^(text\.)?(text_projection\b|proj\.)"),
}
_BLOCK = re.compile(r"^.*?\b(?:(?:resblocks|blocks|layers|layer|block|h)\.\d+|layer\d\.\d+)\.")
_STEM = re.compile(r"embed|\bcls|\bconv\d|\bbn\d|\bln_pre|\bpatch|\bstem")


def tower(name: str) -> str | None:
    """``image``, ``text`` or ``logit_scale`` (with the bias); None for a captioner's decoder, which is not used."""
    if name.startswith("visual."):
        return "image"
    if name in ("logit_scale", "logit_bias"):
        return "logit_scale"
    return None if name.startswith("text_decoder.") else "text"


def head(name: str) -> str | None:
    """``image.head`` or ``text.head`` for a parameter of a projection into the common space, None for any other.

    Projections are those of open_clip's own towers and ResNets, and what it puts on towers of timm and transformers.
    """
    return next((part for part, pattern in _HEADS.items() if pattern.search(name)), None)


def block(name: str) -> int | None:
    """Index of the transformer block that a parameter lies in, as the name says it."""
    found = re.search(r"\b(?:resblocks|blocks|layers|layer|block|h)\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def layer_scales(network: Any, decay: float) -> dict[str, float]:
    """Factor on each parameter's learning rate: `decay` to the power of its distance from its tower's output.

    The embeddings are layer 0, block i is layer i + 1, what follows the last block trains at the full rate (Bao et al.,
    BEiT, 2022). Towers of timm use timm's own grouping.
    """
    names = [name for name, _ in network.named_parameters()]
    scales = dict.fromkeys(names, 1.0)
    for kind in ("image", "text"):
        own = [name for name in names if tower(name) == kind]
        trunk = getattr(network.visual, "trunk", None) if kind == "image" else None
        layers = _by_block(own) if trunk is None else _by_timm(own, trunk)
        last = max(layers.values(), default=0)
        scales |= {name: decay ** (last - layer) for name, layer in layers.items()}
    return scales


def _by_block(names: Iterable[str]) -> dict[str, int]:
    names = list(names)
    prefixes = {name: match.group() for name in names if (match := _BLOCK.search(name))}
    order = {prefix: i + 1 for i, prefix in enumerate(dict.fromkeys(prefixes.values()))}
    last = len(order) + 1
    return {n: order[prefixes[n]] if n in prefixes else 0 if _STEM.search(n) else last for n in names}


def _by_timm(names: Iterable[str], trunk: Any) -> dict[str, int]:
    groups = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
    layers = {f"visual.trunk.{name}": int(layer) for name, layer in groups.items()}
    last = max(layers.values()) + 1
    return {name: layers.get(name, last) for name in names}
