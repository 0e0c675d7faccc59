"""Putting strategies together: presets become their parts, names become unique, claims and needs are checked."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from mmcl import plugins
from mmcl.errors import ConfigError
from mmcl.outputs import Batch, Forward, Outputs
from mmcl.strategy import CLAIMS, PHASES, READS, ModuleContract, StepContext, Strategy, overriders, overrides
from mmcl.weights import canonical

logger = logging.getLogger("mmcl")


def expand(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Presets replaced by their parts, with unique names (``distillation``, ``distillation_2``).

    A part is told which strategy of the list it stands for.
    """
    flat: list[Strategy] = []

    def add(strategy: Strategy, seen: tuple[type, ...]) -> None:
        parts = strategy.parts()
        if len(parts) == 1 and parts[0] is strategy:
            flat.append(strategy)
            return
        if type(strategy) in seen:
            raise ConfigError(f"strategy '{type(strategy).__name__}' contains itself")
        within = (*seen, type(strategy))
        for part in parts:
            part.listed = within[0].__name__
            add(part, within)

    for strategy in strategies:
        if not isinstance(strategy, Strategy):
            raise ConfigError(f"{strategy!r} is not a strategy; give instances of mmcl.strategy.Strategy")
        add(strategy, ())
    for name, count in Counter(type(strategy).__name__ for strategy in strategies).items():
        if count > 1:
            logger.warning("%s stands %d times in the list of strategies, and each takes part", name, count)
    counts: dict[str, int] = {}
    for strategy in flat:
        counts[strategy.name] = counts.get(strategy.name, 0) + 1
        if counts[strategy.name] > 1:
            strategy.name = f"{strategy.name}_{counts[strategy.name]}"
    return flat


def check(strategies: Sequence[Strategy], module: ModuleContract, facts: frozenset[str] = frozenset()) -> None:
    """Refuse what cannot work, at start-up.

    Args:
        strategies: the flat list.
        module: the module that they will serve.
        facts: properties of the run that a strategy may not support (``accumulation``).

    Raises:
        ConfigError: two strategies claim one resource, a need that the module lacks, an unsupported property, a
            strategy that holds weights beside one that freezes all of them, or one that keeps features of tasks in
            which nothing trains beside one that brings something new for each task.
    """
    _check_weights_train(strategies, module)
    _check_features_stay(strategies)
    owners: dict[str, Strategy] = {}
    for strategy in strategies:
        title = strategy.title
        for claim in strategy.claims:
            if claim not in CLAIMS:
                raise ConfigError(f"{title} claims '{claim}', which is no resource; known: {', '.join(sorted(CLAIMS))}")
            if claim in owners:
                raise ConfigError(f"{owners[claim].title} and {title} both claim '{claim}'; use one of them")
            owners[claim] = strategy
        offered = {offer for other in strategies if other is not strategy for offer in other.offers}
        for need in sorted(strategy.needs - module.provides - offered):
            raise ConfigError(f"{title} needs '{need}', which {type(module).__name__} does not provide{_givers(need)}")
        for fact in sorted(strategy.unsupported & facts):
            raise ConfigError(f"{title} does not support {fact}")
        for word in sorted(strategy.reads - READS):
            raise ConfigError(f"{title} reads '{word}', which says nothing; known: {', '.join(sorted(READS))}")
        if overrides(strategy, "on_gradients") and strategy.gradients not in PHASES:
            raise ConfigError(f"{title} overrides on_gradients and must say its phase: one of {', '.join(PHASES)}")


@contextmanager
def speaking(strategy: Strategy) -> Iterator[None]:
    """What a hook refuses names the strategy, also where something that all share refused it."""
    try:
        yield
    except ConfigError as error:
        if any(name and name in str(error) for name in (type(strategy).__name__, strategy.listed)):
            raise
        raise ConfigError(f"{strategy.title}: {error}") from error


def _givers(need: str) -> str:
    """Which strategies offer what the module lacks, for a message."""
    found = []
    for name in plugins.listing("strategies"):
        with suppress(ConfigError):  # a package of somebody else's that cannot be imported
            if need in getattr(plugins.load("strategies", name), "offers", ()):
                found.append(name)
    return f"; put {' or '.join(found)} into the list of strategies" if found else ""


def _check_weights_train(strategies: Sequence[Strategy], module: ModuleContract) -> None:
    """Refuse what holds weights of the network beside what freezes all of them."""
    holding, freezing = (next((s for s in strategies if getattr(s, what)), None) for what in ("holds", "freezes"))
    if holding is None or freezing is None:
        return
    freezing = next((s for s in strategies if s.freezes_head), freezing)
    one, other = holding.title, freezing.title
    heads = any(module.is_head(canonical(name)) for name, _ in module.network.named_parameters())
    if freezing.freezes_head or not heads:
        raise ConfigError(
            f"{one} works on weights of the network that train, and {other} leaves none of {type(module).__name__}; "
            "leave one of them out"
        )
    logger.warning(
        "%s holds the head alone: %s freezes the rest of the network, and what it adds is not held", one, other
    )


def _check_features_stay(strategies: Sequence[Strategy]) -> None:
    """Refuse what keeps measures of features beside what changes these at each task, trained or not."""
    idle = any(s.idle for s in strategies)  # then there is nothing to merge
    settled = next((s for s in strategies if s.settles), None)
    changing = next((s for s in strategies if s.by_task or (s.moves and not idle)), None)
    if settled is None or changing is None:
        return
    one, other = settled.title, changing.title
    raise ConfigError(
        f"{one} keeps what it measures of each task's features, and {other} brings something new for each task that "
        "changes them although nothing trains; leave one of them out, or let the network train in all tasks"
    )


class Composition:
    """The strategies of a run with one dispatch list for every hook; hooks that nobody overrides cost nothing."""

    def __init__(self, strategies: Sequence[Strategy]) -> None:
        self.strategies = list(strategies)
        hooks = "setup grow on_task_start sources wrap_optimizer wrap_forward losses on_step_end on_task_end on_scores"
        self._lists = {hook: overriders(self.strategies, hook) for hook in hooks.split()}
        gradients = [s for s in self.strategies if overrides(s, "on_gradients")]
        self._lists["on_gradients"] = sorted(gradients, key=lambda s: PHASES.index(s.gradients or "observe"))
        self.adapter: Strategy | None = None  # the one that adapts in the test at hand
        self._lists["eval_weights"] = [s for s in self.strategies if overrides(s, "eval_weights")]

    def of(self, hook: str) -> list[Strategy]:
        """The strategies that override a hook, in the order in which it is called."""
        return self._lists[hook]

    def forward(self, bare: Forward, batch: Batch, context: StepContext) -> Outputs:
        """The onion of `wrap_forward` around the module, the first strategy outermost.

        A strategy that adapts at test takes part only while it does.
        """
        # No function here refers to itself: such a cycle would keep a step's outputs until the garbage collector runs.
        call = bare
        for strategy in reversed(self._lists["wrap_forward"]):
            if strategy.adapts_at_test and strategy is not self.adapter:
                continue
            call = partial(_wrapped, strategy, call, context)
        return call(batch)

    @contextmanager
    def eval_weights(self, variant: str = "") -> Iterator[None]:
        """Evaluation weights in place."""
        with ExitStack() as stack:
            for strategy in self._lists["eval_weights"]:
                stack.enter_context(strategy.eval_weights(variant if variant in strategy.variants else ""))
            yield

    def adapters(self) -> list[Strategy]:
        """The strategies that adapt at test."""
        return [s for s in self.strategies if s.adapts_at_test]

    def variants(self) -> list[str]:
        """All named evaluation weights beside the default."""
        return [v for s in self.strategies for v in s.variants]

    def snapshots(self) -> frozenset[str]:
        """All snapshots that somebody reads."""
        return frozenset(n for s in self.strategies for n in s.snapshots)


def _wrapped(strategy: Strategy, call: Forward, context: StepContext, batch: Batch) -> Outputs:
    return strategy.wrap_forward(call, batch, context)
