"""A run's model in the form of its peer library: open_clip, transformers, timm, or bare safetensors."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcl import trainer as lightning
from mmcl.compose import check
from mmcl.errors import ConfigError, near
from mmcl.record import versions
from mmcl.runner import Runner

logger = logging.getLogger(__name__)

RECORD = "export.json"


@dataclass(frozen=True)
class Export:
    """What to write.

    Args:
        to: folder that does not exist yet, or is empty.
        format: one of the module's `formats`; "" takes the first, its peer library's own.
        variant: of the evaluation weights; "" is the default one.
    """

    to: Path
    format: str = ""
    variant: str = ""


def export(runner: Runner, ckpt_path: str, wanted: Export) -> Path:
    """Write the evaluation weights of a checkpoint, adapters folded in. No data are opened.

    Args:
        runner: of the run.
        ckpt_path: ``last``, ``task-K`` or a path.
        wanted: where and how.

    Returns:
        The folder. Beside the peer library's files it holds export.json: run, checkpoint, variant, version, and what
        of the strategies stays behind.

    Raises:
        ConfigError: the folder has something in it, or the format, variant or checkpoint is unknown.
    """
    module, formats = runner.module, runner.module.formats
    form = wanted.format or formats[0]
    if form not in formats:
        raise ConfigError(f"--format {form}: {type(module).__name__} is exported as {', '.join(formats)}")
    variants = runner.composition.variants()
    if wanted.variant and wanted.variant not in variants:
        raise ConfigError(f"--variant {wanted.variant}: {near(wanted.variant, variants)}")
    if wanted.to.exists() and (not wanted.to.is_dir() or any(wanted.to.iterdir())):
        raise ConfigError(f"--to {wanted.to}: there is something already; name a new folder")
    if runner.trainer.world_size > 1:
        raise ConfigError("export runs in one process; set --trainer.devices 1")
    check(runner.composition.strategies, module, lightning.facts(runner.trainer))
    module.check(runner.stream)
    path, content = runner.read(ckpt_path)
    done: Path = lightning.launch(runner.trainer, lambda: _write(runner, path, content, wanted, form))
    return done


def _write(runner: Runner, path: Path, content: Mapping[str, Any], wanted: Export, form: str) -> Path:
    runner.build()
    runner.load(content, path)
    left_out = {s.title: s.unexported for s in runner.composition.strategies if s.unexported}
    for title, what in left_out.items():
        logger.warning("%s: the %s stay in the checkpoint; the folder holds the network without them", title, what)
    to = wanted.to.resolve()  # `.` has no name
    temporary = to.with_name(f".{to.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with runner.composition.eval_weights(wanted.variant), runner.engine.evaluation_mode():
            runner.module.export(temporary, form)
        record = {
            "format": form,
            "run": runner.folder.path.name,
            "checkpoint": path.name,
            "task": runner.progress.task,
            "step": runner.progress.step,
            "variant": wanted.variant,
            "left_out": left_out,
            "mmcl": versions()["mmcl"],
        }
        (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if not to.exists():
            temporary.rename(to)
        for file in temporary.iterdir() if temporary.exists() else ():  # the empty folder may be the working one
            file.rename(to / file.name)
    except OSError as error:
        raise ConfigError(f"--to {wanted.to}: it cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return wanted.to
