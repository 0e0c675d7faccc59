"""Linear weights as places for adapters: attach a change to a weight, fold it in, take it away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmcl.errors import RunError
from mmcl.functional._precision import widen
from mmcl.modules.clip_layers import block
from mmcl.outputs import Site

ROLES = {
    "query": r"(q|q_proj|query|to_q|q_proj_weight)",
    "key": r"(k|k_proj|key|to_k|k_proj_weight)",
    "value": r"(v|v_proj|value|to_v|v_proj_weight)",
    "mlp_in": r"(c_fc|fc1|fc1_g|fc1_x|w1|w2|gate_proj|up_proj|intermediate\.dense|intermediate_dense)",
    "mlp_out": r"((?<!attn\.)c_proj|fc2|w3|down_proj|mlp\.proj|output_dense)",
    "out": r"(out_proj|o_proj|to_out|attn\.proj|attn_pool\.proj|attn\.c_proj|attention\.output\.dense)",
}
"""Role -> how the layer is called by open_clip, timm and transformers; the first that fits at the end of a name."""
BARE = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Weights that attention layers hold without a layer of their own."""
PACKED = {"qkv": ("query", "key", "value"), "kv": ("key", "value")}
PACKED |= dict.fromkeys(("in_proj_weight", "c_attn"), PACKED["qkv"])


class RowDeltas(nn.Module):
    """Parametrization W -> W with delta() added to some rows.

    The deltas belong to the strategy that attached them: they are held without registration, so that they are neither
    in the network's state nor among its parameters.

    Args:
        transposed: whether the weight's columns are its rows, (in, out).
    """

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        self.held: list[tuple[int, int, Callable[[], Tensor]]] = []

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with all deltas added."""
        flat = weight.t() if self.transposed else weight.flatten(1)
        changes: dict[tuple[int, int], Tensor] = {}
        for start, stop, delta in self.held:
            change = delta().to(weight.dtype)
            earlier = changes.get((start, stop))
            changes[start, stop] = change if earlier is None else earlier + change
        # Rows of one weight are its thirds, or all of them: they never overlap. What none changes is taken as it is.
        parts, done = [], 0
        for (start, stop), change in sorted(changes.items()):
            parts += [flat[done:start], flat[start:stop] + change]
            done = stop
        parts = [part for part in (*parts, flat[done:]) if len(part)]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        return whole.t().contiguous() if self.transposed else _shaped(whole, weight)


def _shaped(flat: Tensor, weight: Tensor) -> Tensor:
    """(out, in) in the shape of a weight and, for a 1 x 1 convolution, in its memory format.

    In another format the convolution would go to another kernel, whose rounding differs.
    """
    shaped = flat.view(weight.shape)
    if weight.dim() == 4 and weight.stride() != shaped.stride():
        return flat[:, None, None].permute(0, 3, 1, 2)
    return shaped


class LinearSite:
    """Rows of one linear weight; see `mmcl.outputs.Site`.

    `torch.nn.utils.parametrize` keeps packed attention weights in the graph, where a wrapped ``out_proj`` module would
    not be: attention reads the tensor and never calls the module.
    """

    def __init__(
        self, module: nn.Module, attribute: str, path: str, rows: tuple[int, int], tower: str, role: str
    ) -> None:
        self._transposed = _is_transposed(module)
        weight: Tensor = self._by_rows(getattr(module, attribute))
        whole = rows == (0, weight.shape[0])
        self.name = f"{path}.{attribute}" if whole else f"{path}.{attribute}[{rows[0]}:{rows[1]}]"
        self.tower = tower
        self.block = block(f"{path}.")
        self.role = role
        self.shape = (rows[1] - rows[0], weight.shape[1])  # of a 1 x 1 convolution without the two last dimensions
        self._module = module
        self._attribute = attribute
        self._rows = rows
        self._own: list[Callable[[], Tensor]] = []

    def attach(self, delta: nn.Module) -> None:
        """Make the weight's rows W + delta(). Several deltas add up.

        Raises:
            RunError: delta() has another shape.
        """
        if tuple(delta().shape) != self.shape:
            raise RunError(f"site '{self.name}': delta() is {tuple(delta().shape)}, the weight's rows are {self.shape}")
        deltas = self._deltas()
        if deltas is None:
            deltas = RowDeltas(self._transposed)
            parametrize.register_parametrization(self._module, self._attribute, deltas)
        deltas.held.append((*self._rows, delta))
        self._own.append(delta)

    @property
    def trains(self) -> bool:
        """Whether the weight itself trains."""
        return self._raw().requires_grad

    def rows(self) -> Tensor:
        """The weight's rows without what is attached: a live view, (out, in)."""
        start, stop = self._rows
        return self._by_rows(self._raw().detach())[start:stop].view(self.shape)

    @torch.no_grad()
    def fold(self) -> None:
        """Add this site's delta() to the weight; the caller then resets delta to zero."""
        rows = self.rows()
        for delta in self._own:
            wide, change = widen(rows, delta())
            rows.copy_(wide + change)

    def detach(self) -> None:
        """Fold, and take the deltas away; the last one takes the parametrization with it."""
        self.fold()
        deltas = self._deltas()
        if deltas is None:
            return
        deltas.held = [entry for entry in deltas.held if not any(entry[2] is own for own in self._own)]
        self._own = []
        if not deltas.held:
            parametrize.remove_parametrizations(self._module, self._attribute, leave_parametrized=False)

    def _by_rows(self, weight: Tensor) -> Tensor:
        return weight.t() if self._transposed else weight

    def _deltas(self) -> RowDeltas | None:
        if not parametrize.is_parametrized(self._module, self._attribute):
            return None
        return next((p for p in self._parametrizations() if isinstance(p, RowDeltas)), None)

    def _parametrizations(self) -> Any:
        module: Any = self._module
        return module.parametrizations[self._attribute]

    def _raw(self) -> Tensor:
        attached = parametrize.is_parametrized(self._module, self._attribute)
        raw: Tensor = self._parametrizations().original if attached else getattr(self._module, self._attribute)
        return raw


def linear_sites(network: nn.Module, tower: Callable[[str], str | None]) -> list[Site]:
    """Sites of all linear weights in attention, MLPs and projection layers, in the network's order.

    Convolutions of one place (1 x 1) are linear layers, as of the MLPs of ConvNeXt, and so are GPT-2's, whose
    weights are (in, out); others and bare projection tensors (``visual.proj``) are not.

    Args:
        network: with open_clip's, timm's or transformers' layers.
        tower: name of a parameter -> its tower; None leaves it out.
    """
    found: list[Site] = []
    for path, module in network.named_modules():
        if "parametrizations" in path:
            continue
        for attribute, rows, role in _weights(path, module):
            kind = tower(f"{path}.{attribute}")
            if kind is not None:
                found.append(LinearSite(module, attribute, path, rows, kind, role))
    return found


def _weights(path: str, module: nn.Module) -> Iterator[tuple[str, tuple[int, int], str]]:
    """(attribute, rows, role) of a module's own linear weights."""
    transposed = _is_transposed(module)
    linear = isinstance(module, nn.Linear) or _of_one_place(module) or transposed
    last = path.rsplit(".", 1)[-1] if linear else ""
    for attribute in ("weight",) if linear else BARE:
        weight = getattr(module, attribute, None)
        if not isinstance(weight, Tensor):
            continue
        rows = weight.shape[1 if transposed else 0]
        packed = PACKED.get(last or attribute)
        if packed is None:
            yield attribute, (0, rows), _role(path if last else f"{path}.{attribute}")
            continue
        size = rows // len(packed)
        for i, role in enumerate(packed):
            yield attribute, (i * size, (i + 1) * size), role


def _of_one_place(module: nn.Module) -> bool:
    """Whether it is a convolution that looks at one place alone, and at all channels."""
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d)
        and module.groups == 1
        and all(size == 1 for size in (*module.kernel_size, *module.stride))
    )


def _is_transposed(module: nn.Module) -> bool:
    """Whether it is the layer of transformers that keeps its weight as (in, out), as in GPT-2; importing it is dear."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _role(path: str) -> str:
    if re.search(r"(^|\.)(se|squeeze)\.", path):  # a gate on channels, whose layers are called as an MLP's
        return "other"
    for role, pattern in ROLES.items():
        if re.search(rf"(^|\.){pattern}$", path):
            return role
    if re.search(r"(^|\.)(proj|text_projection|head)$", path):
        return "projection"
    return "mlp_out" if re.search(r"(^|\.)output\.dense$", path) else "other"
