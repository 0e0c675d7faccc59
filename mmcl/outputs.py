"""What passes between data, module and strategies: batches, outputs and the places where adapters go."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Batch = dict[str, Any]
"""One batch: fixed keys (``image``, ``text``, ``labels``, ``domain``, ``valid``, ``__key__``, ``__index__``, ...)."""

SKIP = "__skip__"
"""Key that a module's `transform` sets, to a reason, in a row that can be evaluated but not trained on."""

MEMBERS = {"image": "KEY.jpg", "audio": "KEY.wav", "text": "KEY.txt", "labels": "KEY.cls"}
"""Fields that samples and batches call alike, and a member of a shard that each is read from."""

ATTACHED = "__attached__"
"""Key under which a strategy's `wrap_forward` hands on what it puts at sites, for that forward alone: a tuple of
functions without arguments that return context managers. `module(batch)` opens them; a teacher's forward and a bare one
do not."""

ANSWERS = "__answers__"
"""Key of an `Answers` in batches that may adapt at test: ``Outputs.logits`` of such a batch are its answers."""

Transforming = TypeVar("Transforming", bound=Callable[..., Any])


def takes_pixels(transform: Transforming) -> Transforming:
    """Mark a module's `transform`: it takes pictures as arrays (H, W, 3), uint8, too, which spares copies.

    A method that overrides a marked one gets `PIL.Image.Image` again, unless it is marked itself.
    """
    transform.takes_pixels = True  # type: ignore[attr-defined]
    return transform


def draws_to_augment(transform: Transforming) -> Transforming:
    """Mark a module's `transform` or `collate`: it draws random numbers only to augment, a `collate` never.

    Where both are marked, the generators need not be seeded for samples that are not augmented. A method that overrides
    a marked one is taken to draw again, unless it is marked itself.
    """
    transform.draws_to_augment = True  # type: ignore[attr-defined]
    return transform


Weights = dict[str, Tensor]
"""Effective weights of a network under canonical names: what the network computes with, adapters included."""


@dataclass(frozen=True)
class Audio:
    """A decoded recording.

    Attributes:
        samples: (N,) float32, the mean of its channels.
        rate: samples a second, as its header says.
    """

    samples: npt.NDArray[np.float32]
    rate: int


@dataclass
class Outputs:
    """What a module's forward gives. All tensors are batch first; a partial batch gives partial outputs.

    Attributes:
        features: name -> (B, D), not normalised.
        logits: (B, C) or (B, L, C), raw and unmasked.
        targets: aligned with `logits`.
        valid: aligned with `logits` but for the last dimension; False marks padding.
        tokens: (B, L, D).
        known: (C,) columns of `logits` that had been trained before the task at hand; None where all had.
        logit_scale: scalar, already exponentiated.
        texts: what was generated or decoded, one for each row.
        rescore: what a strategy makes of logits (B, K) over K classes that a probe names; None leaves them as they are.
        extra: anything else, by name (SigLIP's ``logit_bias``).
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    targets: Tensor | None = None
    valid: Tensor | None = None
    tokens: Tensor | None = None
    known: Tensor | None = None
    logit_scale: Tensor | None = None
    texts: list[str] | None = None
    rescore: Callable[[Tensor, Sequence[str]], Tensor] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def by_row(answers: Mapping[int, Outputs], chosen: Tensor) -> Outputs:
    """Outputs that are another answer's in each row.

    Args:
        answers: number -> what it answers to the whole batch.
        chosen: (B,) the number of the answer that a row takes.

    Returns:
        What is of rows, row by row from its own answer, `rescore` too; anything else (a scale) is the first answer's.
    """

    def pick(values: dict[int, Any]) -> Any:
        value = next(iter(values.values()))
        if isinstance(value, Mapping):
            return {key: pick({n: v[key] for n, v in values.items()}) for key in value}
        if isinstance(value, list) and len(value) == len(chosen):
            return [values[number][i] for i, number in enumerate(chosen.tolist())]
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != len(chosen):
            return value
        mixed = value.clone()
        for number, rows in values.items():
            mixed[chosen == number] = rows[chosen == number]
        return mixed

    def rescore(logits: Tensor, names: Sequence[str]) -> Tensor:
        found: Tensor = pick({n: a.rescore(logits, names) if a.rescore else logits for n, a in answers.items()})
        return found

    fields = vars(next(iter(answers.values())))
    mixed = Outputs(**{name: pick({n: vars(a)[name] for n, a in answers.items()}) for name in fields})
    mixed.rescore = rescore if any(a.rescore for a in answers.values()) else None
    return mixed


class Answers(Protocol):
    """How outputs become answers: what an evaluation set chooses among, whatever the modality."""

    def answers(self, outputs: Outputs) -> Tensor:
        """(B, K) logits of the K candidates; gradients flow back to the outputs."""

    def places(self, labels: Tensor) -> Tensor:
        """(B,) the place of each row's own class among the candidates, -1 where it is none of them."""


class SourcePass(Protocol):
    """The own data of the tasks so far, as something that adapts at test may look at them.

    Each batch holds the `Answers` of its task, as batches of evaluation sets do, and ``labels``.
    """

    def once(self, limit: int | None = None) -> Iterator[Batch]:
        """Every sample once over all ranks, in fixed order; of each task a fixed choice of `limit` of them."""

    def shuffled(self) -> Iterator[Batch]:
        """Training batches, the tasks in turn, without end."""


class Objective(nn.Module):
    """A module's own training loss. Strategies add terms to it; they do not replace it.

    `needs` names batch keys that must be there. `start` is called when a task begins (and again on resume). `coupled`
    says that a row's loss depends on the other rows of its batch, so that no row has a loss of its own; `of_one_task`
    that it reads labels as those of the task at hand, so that rows of other tasks cannot be replayed with theirs.
    """

    needs: frozenset[str] = frozenset()
    coupled: bool = False
    of_one_task: bool = False

    def check(self, task: Any) -> None:
        """Refuse a task that lacks what the objective needs (`ConfigError`), before anything is written."""

    def start(self, module: Any, task: Any) -> None:
        """Take what a task means (class names, templates) before its first batch."""

    def prepare(self, batch: Batch) -> Batch:
        """The batch with what the forward needs beside the data (class texts, masks)."""
        return batch

    def terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses; their sum is trained."""
        raise NotImplementedError

    def counted(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """This process's targets that `terms` is the mean of, as a mask; None: batches weigh alike.

        With accumulated gradients a batch weighs by its part of all targets of the step.
        """
        return None


@runtime_checkable
class Site(Protocol):
    """A place in a network where something can be attached, folded into the weights and detached again.

    Attributes:
        name: canonical name of the weight it acts on, with the rows of a packed weight (``...in_proj_weight[0:64]``).
        tower: ``image``, ``text``, ...
        block: index of the transformer block, or None.
        role: ``query``, ``key``, ``value``, ``out``, ``mlp_in``, ``mlp_out``, ``projection``, ``other``.
        shape: (out, in) of the weight's rows.
    """

    name: str
    tower: str
    block: int | None
    role: str
    shape: tuple[int, int]

    @property
    def trains(self) -> bool:
        """Whether the weight itself trains."""

    def rows(self) -> Tensor:
        """The weight's rows without what is attached: a live view, (out, in)."""

    def attach(self, delta: nn.Module) -> None:
        """Make the weight W + delta(); `delta()` returns a tensor of `shape`, zero at first."""

    def fold(self) -> None:
        """Add delta() to the weight in float32 or wider; the caller then resets delta to zero."""

    def detach(self) -> None:
        """Fold and take the attachment away, for export."""


class AttentionSite(Protocol):
    """An attention layer that takes something for each row of a batch (kind ``attention``).

    Attributes:
        name: path of the layer in the network.
        tower: ``image``, ...; also the key of its input in a batch and of its feature in `Outputs.features`.
        block: index of the transformer block.
        heads: of attention.
        dim: width of the keys of all heads together.
        width: of the tokens that enter it.
        features: length of the tower's pooled feature.
        trunk: the part of the network that prompts leave as it is.
    """

    name: str
    tower: str
    block: int
    heads: int
    dim: int
    width: int
    features: int
    trunk: nn.Module

    def prefix(self, keys: Tensor, values: Tensor) -> AbstractContextManager[None]:
        """A context in which (B, L, dim) prefixes stand before the keys and values of each row; see `ATTACHED`."""

    def lowrank(self, down: Tensor, up: Tensor) -> AbstractContextManager[None]:
        """A context in which (x down^T) up is added to queries, keys and values.

        Args:
            down: (B, rank, width).
            up: (B, rank, 3 dim).
        """


class InputSite(Protocol):
    """The sequence that enters a tower's first block (kind ``input``); see `AttentionSite` for shared attributes.

    Attributes:
        name: path of the tower in the network.
        tower: its name.
        dim: width of its tokens.
        features: length of its pooled feature.
        trunk: the part of the network that prompts leave as it is.
    """

    name: str
    tower: str
    dim: int
    features: int
    trunk: nn.Module

    @property
    def position(self) -> Tensor:
        """(dim,) the class token's position embedding; zeros where it has none."""

    def embed(self, inputs: Tensor) -> Tensor:
        """(B, N, dim) tokens of an input, before positions."""

    def insert(self, tokens: Tensor, pool: bool = False) -> AbstractContextManager[None]:
        """A context in which (B, L, dim) tokens stand behind the class token, or first where there is none.

        They get no position; add one to them. The tower pools what it always pools, or, with `pool`, the mean of what
        these tokens become.
        """


class Packing(Protocol):
    """How a language module turns documents into blocks of tokens.

    Attributes:
        block: tokens of a sample.
        fingerprint: of the tokenizer; what is kept of a source's tokens is kept under it.
    """

    block: int
    fingerprint: str

    def encode(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """For each document its token ids, the end token included, and how many bytes of it each one stands for."""


class Recorded:
    """Remembers the arguments of its constructor, by name, for records and for telling runs apart."""

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Bind the arguments to the constructor's names, defaults filled in."""
        made = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(made, *args, **kwargs)
        except TypeError:  # wrong arguments: the constructor says so better; none: a copy or an unpickled object
            return made
        bound.apply_defaults()
        made.__dict__["arguments"] = dict(list(bound.arguments.items())[1:])
        return made


Forward = Callable[[Batch], Outputs]


def valid_places(values: Tensor, outputs: Outputs, batch: Batch) -> Tensor:
    """Which rows of an output, or which of their tokens or frames, are no padding.

    Args:
        values: (B, D) or (B, L, D), one of `outputs`.
        outputs: what the batch gave.
        batch: with ``valid`` (B,), where it has padding.

    Returns:
        (B,) or (B, L), bool.
    """
    places = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
    if values.dim() > 2 and outputs.valid is not None and outputs.valid.dim() == places.dim():
        places = places & outputs.valid
    rows: Tensor | None = batch.get("valid")
    return places if rows is None else places & rows.reshape(-1, *(1,) * (places.dim() - 1))


def move(value: Any, device: torch.device | str) -> Any:
    """The same structure with every tensor on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {k: move(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(move(v, device) for v in value)
    return value
