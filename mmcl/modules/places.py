"""Where a pretrained model lies: the folder behind the name that a user writes."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path

from mmcl import assets
from mmcl.errors import ConfigError

logger = logging.getLogger("mmcl")

KINDS = ("local-dir:", "asset:", "package:")


def folder(model: str) -> Path | None:
    """The folder of ``local-dir:PATH``, ``asset:NAME``, ``package:some.package/FOLDER``; None for any other name.

    Raises:
        ConfigError: there is no such folder, asset or package.
    """
    kind, _, rest = model.partition(":")
    if f"{kind}:" not in KINDS:
        return None
    if kind == "asset":
        return assets.folder(rest)
    found = Path(rest).expanduser().resolve() if kind == "local-dir" else _in_package(model, rest)
    if not found.is_dir():
        raise ConfigError(f"model '{model}': there is no folder {found}")
    return found


def _in_package(model: str, rest: str) -> Path:
    package, _, inner = rest.partition("/")
    try:
        return Path(str(resources.files(package).joinpath(inner)))
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(f"model '{model}': there is no package '{package}' ({line(error)})") from error


def warn_random(model: str) -> None:
    """Say that an architecture came without weights: who names one often means the pretrained model of that name."""
    logger.warning(
        "model '%s' begins with random weights; give `pretrained` or `checkpoint`, or `random_init: true` to say so",
        model,
    )


def line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
