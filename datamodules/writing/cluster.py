"""A function over many items on a Ray cluster, through Ray Data, with the results in the order of the items."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable
from importlib import import_module
from itertools import islice
from typing import Any, TypeVar

from mmcl.errors import ConfigError, MmclError, RunError

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 32
"""Items of one call."""
ROUND = 256
"""Calls that are handed to the cluster at a time; only their items are held here."""


def cluster_map(
    function: Callable[[T], R], items: Iterable[T], chunk: int = CHUNK, calls: int = ROUND
) -> Generator[R, None, None]:
    """Results in the order of the items, from a cluster that is running (``RAY_ADDRESS``) or from this machine.

    Args:
        function: what to do; it is called on any machine of the cluster, which must see the same files.
        items: taken one after another, as they are needed.
        chunk: items of one call.
        calls: calls that are handed out at a time.

    Raises:
        ConfigError: Ray is not installed.
        RunError: what the function raises of mmcl's errors; a machine was lost.
    """
    ray = _ray()
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    remaining = iter(items)
    # Rows go through Arrow, which has no column type for them; both ends of the way are this file.
    while some := list(islice(remaining, chunk * calls)):
        packed = [{"items": pickle.dumps(some[i : i + chunk])} for i in range(0, len(some), chunk)]
        data = ray.data.from_items(packed, override_num_blocks=len(packed)).map(_Each(function))
        try:
            for row in data.iter_rows():
                if row["fault"]:
                    raise RunError(row["fault"])
                yield from pickle.loads(row["made"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise RunError(f"the Ray cluster failed ({reason}); run the same command again") from error


class _Each:
    """What the cluster calls; it carries the function along."""

    __name__ = "make_samples"

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, row: dict[str, bytes]) -> dict[str, Any]:
        try:
            made = [self._function(item) for item in pickle.loads(row["items"])]
        except MmclError as error:  # Ray would wrap it in pages of its own
            return {"made": b"", "fault": str(error)}
        return {"made": pickle.dumps(made), "fault": ""}


def _ray() -> Any:
    try:
        ray: Any = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise ConfigError("--engine ray takes Ray, which is not installed: pip install 'mmcl[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    return ray
