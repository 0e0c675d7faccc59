"""Checkpoints: tensors and primitives only, written under a temporary name and renamed, the one before kept."""

from __future__ import annotations

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from mmcl.errors import ConfigError, RunError
from mmcl.outputs import Weights

logger = logging.getLogger("mmcl")

FORMAT = "mmcl.checkpoint/1"
NEWEST, PREVIOUS = "last.ckpt", "previous.ckpt"
PLAIN = frozenset({bool, int, float, str, bytes, type(None)})
CONTAINERS = frozenset({dict, OrderedDict, list, tuple, torch.Size})
RunPhase = Literal["initial", "started", "trained", "ended", "evaluated"]


@dataclass
class Progress:
    """Where a run is. Everything that the order of samples depends on is here.

    Attributes:
        task: position of the task at hand, from 0; -1 before the first.
        phase: ``initial`` (row 0 is measured), ``started`` (in training), ``trained``, ``ended``, ``evaluated``.
        step: optimizer steps that really happened in the run.
        task_step: the same in the task.
        segment: position of the segment within the task.
        segment_step: steps of this segment that were trained, skipped ones of a gradient scaler included.
        train_seconds: time spent in the task's training so far.
        task_steps: the task's budget in steps, fixed when it began.
        positions: samples drawn from each source of the task when the segment began.
        shares: shares of the strategies' sources in this segment.
        readers: processes, and workers of each, that the task's streams are read by; empty without streams.
        metrics_offset: length of metrics.jsonl in bytes.
    """

    task: int = -1
    phase: RunPhase = "initial"
    step: int = 0
    task_step: int = 0
    segment: int = 0
    segment_step: int = 0
    task_steps: int = 0
    train_seconds: float = 0.0
    positions: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float | None] = field(default_factory=dict)
    readers: list[int] = field(default_factory=list)
    metrics_offset: int = 0


def _write(path: Path, save: Any, previous: Path | None = None) -> None:
    """Run `save(temporary path)` and rename; a failed write leaves nothing and names the reason.

    The file that was there is renamed to `previous`, where that is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error}; free some space and run the same command again") from error


def check_plain(value: Any, where: str) -> None:
    """Refuse what could be written and not be read again, since `weights_only` takes tensors and plain values alone.

    Raises:
        RunError: names the type, after `where`.
    """
    if isinstance(value, Tensor) or type(value) in PLAIN:
        return
    if type(value) not in CONTAINERS:
        raise RunError(
            f"{where} holds a {type(value).__name__}, which no checkpoint can; keep tensors, Python's numbers, texts, "
            "None, and dicts and lists of these"
        )
    for inner in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
        check_plain(inner, where)


def save(path: Path, content: Mapping[str, Any], keep_previous: bool = False) -> None:
    """Write a checkpoint.

    Args:
        path: the file.
        content: tensors, primitives, dicts and lists of these.
        keep_previous: keep the file that was there as ``previous.ckpt`` beside it.

    Raises:
        RunError: the disk is full or not writable; the old file stays usable.
    """
    previous = path.with_name(PREVIOUS) if keep_previous else None
    _write(path, lambda temporary: torch.save({"format": FORMAT, **content}, temporary), previous)


def link(source: Path, target: Path, keep_previous: bool = False) -> None:
    """Give a checkpoint a second name without a second copy, where the file system can; see `save`."""

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            temporary.write_bytes(source.read_bytes())

    _write(target, write, target.with_name(PREVIOUS) if keep_previous else None)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`.

    Raises:
        RunError: the file is cut, or no checkpoint of mmcl.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = re.split(r"\. |, |\n", str(error), maxsplit=1)[0]  # the first clause: the rest is about torch
        raise RunError(f"{path} is damaged or no checkpoint ({type(error).__name__}: {reason})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path} is not a checkpoint of the format {FORMAT}")
    return content


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable of ``last.ckpt`` and ``previous.ckpt``; a broken one is reported and passed over.

    Raises:
        ConfigError: there are checkpoints and none can be read.
    """
    errors: list[str] = []
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            return path, load(path)
        except RunError as error:
            errors.append(str(error))
            if (folder / PREVIOUS).exists() and name == NEWEST:
                logger.warning("%s; using the one before it", error)
    if errors:
        kept = ", ".join(sorted(p.name for p in folder.glob("task-*.ckpt")))
        hint = f"copy one of {kept} to last.ckpt there and remove previous.ckpt, or " if kept else ""
        raise ConfigError(f"{'; '.join(errors)}; {hint}choose another --run_dir")
    return None


def promote(path: Path) -> None:
    """Let the checkpoint that a run goes on from be its newest: the next one must not push a broken one before it."""
    os.replace(path, path.with_name(NEWEST))


def progress_of(content: Mapping[str, Any]) -> Progress:
    """The progress recorded in a checkpoint."""
    return Progress(**content["progress"])


def progress_dict(progress: Progress) -> dict[str, Any]:
    """The progress as primitives."""
    return asdict(progress)


def load_state(target: nn.Module, state: Mapping[str, Tensor], what: str, path: Path | str) -> None:
    """Strict `load_state_dict` that names the first difference in one line.

    Raises:
        ConfigError: names or shapes differ.
    """
    own = target.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise ConfigError(f"{path} is of another architecture: {what} '{name}' is missing in it")
        if state[name].shape != tensor.shape:
            raise ConfigError(
                f"{path} is of another architecture: {what} '{name}' is {tuple(state[name].shape)} in it, "
                f"{tuple(tensor.shape)} here"
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise ConfigError(f"{path} is of another architecture: it holds {what} '{extra[0]}', which is unknown here")
    target.load_state_dict(state)


def optimizer_state(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """An optimizer's state by parameter name, with its groups' own settings.

    Args:
        optimizer: any torch optimizer.
        names: `id(parameter)` -> name.
    """
    state = {
        names[id(p)]: dict(optimizer.state[p])
        for g in optimizer.param_groups
        for p in g["params"]
        if p in optimizer.state
    }
    keep = (int, float, str, bool, type(None), Tensor, list, tuple)
    groups = [
        {k: v for k, v in g.items() if k not in ("params", "param_names") and isinstance(v, keep)}
        for g in optimizer.param_groups
    ]
    return {"state": state, "groups": groups}


def restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Any], names: Mapping[int, str], exact: bool) -> None:
    """Give an optimizer its moments back, by name and where shapes agree.

    Args:
        optimizer: a fresh optimizer.
        saved: what `optimizer_state` gave.
        names: `id(parameter)` -> name.
        exact: a resumed task (group settings come back too) rather than moments carried into a new task.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entry = saved["state"].get(names[id(parameter)])
            if entry is None:
                continue
            moments = [v for v in entry.values() if isinstance(v, Tensor) and v.ndim > 0]
            if not exact and any(v.shape != parameter.shape for v in moments):
                continue
            optimizer.state[parameter] = {
                k: v.to(parameter.device) if isinstance(v, Tensor) and v.ndim > 0 else _copied(v, group, parameter)
                for k, v in entry.items()
            }
    if exact:
        if len(saved["groups"]) != len(optimizer.param_groups):
            raise RunError(
                f"the checkpoint's optimizer has {len(saved['groups'])} groups, this one {len(optimizer.param_groups)}"
            )
        for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
            group.update(settings)


def _copied(value: Any, group: Mapping[str, Any], parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    on_device = group.get("fused") or group.get("capturable")  # where torch keeps the step count beside the parameter
    return value.clone().to(parameter.device) if on_device else value.clone()


def save_weights(path: Path, weights: Weights) -> None:
    """Write named weights as safetensors."""
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    _write(path, lambda temporary: save_file(contiguous, temporary))


def load_weights(path: Path) -> Weights:
    """Read named weights.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise RunError(f"snapshot {path} cannot be read ({type(error).__name__}: {error})") from error


class StoredWeights(Mapping[str, Tensor]):
    """Named weights in a file, read a tensor at a time.

    Args:
        path: what `save_weights` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise RunError(f"snapshot {path} cannot be read ({type(error).__name__}: {error})") from error
        self._file = file
        self._names: tuple[str, ...] = tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        found: Tensor = self._file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
