"""What every strategy's constructor holds its arguments to."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from mmcl import Strategy, plugins
from mmcl.errors import ConfigError
from mmcl.strategies import AGEM, L2P, RMT, SLCA, BatchNormStatistics, CoTTA, DualPrompt, ExperienceReplay

REQUIRED: dict[str, Any] = {"size": 8, "targets": {"a": 1.0, "b": 2.0}, "sources": {}}
"""Values of arguments without a default."""


def numbers() -> list[tuple[str, str]]:
    """Strategy and argument, wherever that may be a number with a fraction, or two."""
    hints = {name: get_type_hints(plugins.load("strategies", name).__init__) for name in plugins.listing("strategies")}
    kinds = (None, Union, UnionType, tuple)
    return [
        (name, key)
        for name, own in hints.items()
        for key, hint in own.items()
        if (hint is float or float in get_args(hint)) and get_origin(hint) in kinds
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("name", "key"), numbers())
def test_a_number_is_finite(name: str, key: str, value: float) -> None:
    strategy = plugins.load("strategies", name)
    parameters = inspect.signature(strategy).parameters.values()
    required = {p.name: REQUIRED[p.name] for p in parameters if p.default is inspect.Parameter.empty}
    several = get_origin(get_type_hints(strategy.__init__)[key]) is tuple
    with pytest.raises(ConfigError):
        strategy(**{**required, key: (value, value) if several else value})


REFUSED: dict[str, tuple[Callable[[], Strategy], str]] = {
    "prior": (lambda: BatchNormStatistics(-1.0), "prior is -1.0"),
    "threshold": (lambda: CoTTA(threshold=-0.1), "threshold -0.1"),
    "samples of the source": (lambda: CoTTA(source_samples=0), "CoTTA: source_samples is 0"),
    "samples for prototypes": (lambda: RMT(source_samples=0), "RMT: source_samples is 0"),
    "momentum": (lambda: SLCA(momentum=1.5), "SLCA: momentum is 1.5"),
    "weight decay": (lambda: SLCA(weight_decay=-1.0), "weight_decay -1.0"),
    "first prompts": (lambda: L2P(init=(1.0, -1.0)), "L2P: init is [1.0, -1.0]"),
    "a block twice": (lambda: DualPrompt(general_blocks=(0, 0)), "general_blocks are [0, 0]; name each block once"),
    "experts of a block twice": (lambda: DualPrompt(expert_blocks=(2, 2)), "expert_blocks are [2, 2]"),
    "no memory": (lambda: AGEM(0), "AGEM: size is 0"),
    "no replay": (lambda: ExperienceReplay(0), "ExperienceReplay: size is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense(name: str) -> None:
    build, words = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(words)):
        build()
