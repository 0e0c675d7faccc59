"""Plug-ins and their options on the command line: names written out, and options that belong to nothing refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml

from mmcl import plugins, presets
from mmcl.errors import ConfigError, near
from mmcl.wording import EMPTY, parameters_of

KINDS = {
    "--model": "modules",
    "--strategies": "strategies",
    "--strategies+": "strategies",
    "--data.stream": "benchmarks",
}
"""Options that take the name of a plug-in -> its kind."""
PLACES = {"model": "--model", "data.stream": "--data.stream", "strategies": "--strategies"}
WORDS = ("class_path", "init_args", "dict_kwargs", "help")


@dataclass
class Chosen:
    """One plug-in of a run.

    Args:
        path: of its class or function.
        given: the arguments that have a value.
        by_flag: whether the command line chose it.
    """

    path: str
    given: set[str] = field(default_factory=set)
    by_flag: bool = False

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.path.rpartition(".")[2]


def written_out(arguments: Sequence[str]) -> list[str]:
    """Presets and short names as jsonargparse takes them.

    Raises:
        ConfigError: an unknown name, with near ones.
    """
    result: list[str] = []
    items = iter(arguments)
    for item in items:
        name, equals, value = item.partition("=")
        asked = _kind_of_help(name)
        if asked or name in KINDS or name in ("--config", "-c"):
            value = value if equals else next(items, "")
        if name in ("--config", "-c"):
            result += ["--config", json.dumps(_with_inner(presets.load(presets.find(value))))]
        elif name in KINDS and value[:1] not in "[{":
            path = plugins.class_path(KINDS[name], value)
            result.append(f"{name}={json.dumps([path]) if name == '--strategies' else path}")
        elif name in KINDS:
            result.append(f"{name}={_expanded(KINDS[name], value)}")
        elif asked:
            if not value:
                raise ConfigError(f"{name}: say of which; `mmcl list {asked}` shows them all")
            return [f"{name}={plugins.class_path(asked, value)}"]  # nothing may follow it
        else:
            result.append(item)
    return result


def _with_inner(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of a file with the names of strategies that a strategy takes written out."""
    for entry in config.get("strategies") or ():
        arguments = entry.get("init_args") if isinstance(entry, dict) else None
        if not isinstance(arguments, dict):
            continue
        for key, value in arguments.items():
            if isinstance(value, str) and _holds_strategy(entry.get("class_path"), key):
                arguments[key] = presets.full("strategies", value)
    return config


def _holds_strategy(path: Any, key: str) -> bool:
    parameters = parameters_of(path, "strategies") if isinstance(path, str) else {}
    return key in parameters and "Strategy" in str(parameters[key].annotation)


def _expanded(kind: str, value: str) -> str:
    """YAML of plug-ins with their names written out."""
    try:
        content = yaml.safe_load(value)
    except yaml.YAMLError:
        return value  # the parser says what is wrong with it
    several = isinstance(content, list)
    return json.dumps([presets.full(kind, entry) for entry in content] if several else presets.full(kind, content))


def _kind_of_help(name: str) -> str:
    """The kind of plug-in that `--strategies.help` and its like explain; none for other options."""
    option, dot, last = name.rpartition(".")
    return KINDS.get(option, "") if dot and last == "help" else ""


def resolved(arguments: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The arguments with short names of strategies that a strategy takes written out.

    Args:
        arguments: of the command line, with names written out.
        configs: settings of the files, in their order.

    Raises:
        ConfigError: an option that its plug-in does not take, with near ones, or one that a plug-in lacks.
    """
    chosen = {place: list(_of_files(place, configs)) for place in PLACES}
    result: list[str] = []
    items = iter(_joined(arguments))
    for item in items:
        name, _, value = item.partition("=")
        place = next((p for p, option in PLACES.items() if name.startswith(f"{option}.")), "")
        if name in KINDS:
            own = name.removeprefix("--").removesuffix("+")
            before, new = chosen[own], list(_entries(value, by_flag=True))
            if own != "strategies":  # arguments that were given before stay, where the new class takes them
                for entry in new:
                    entry.given |= {key for other in before for key in other.given}
            chosen[own] = [*before, *new] if name.endswith("+") else new
        elif place and _takes_strategy(name, place, chosen[place]):
            named = value not in ("", "null") and value[:1] not in "[{"
            item = f"{name}={plugins.class_path('strategies', value) if named else _expanded('strategies', value)}"
        result.append(item)
    for place, entries in chosen.items():
        for entry in entries:
            _refuse_missing(entry, PLACES[place])
    return result


def _joined(arguments: Sequence[str]) -> Iterator[str]:
    """Options of plug-ins with their values, which may be the next argument, as one."""
    items = [*arguments, "--"]
    skip = False
    for item, following in pairwise(items):
        if skip:
            skip = False
        elif "=" in item or not item.startswith(tuple(f"{option}." for option in PLACES.values())):
            yield item
        elif following.startswith("--"):
            raise ConfigError(f"{item} has no value; give it one, as in {item}=VALUE")
        else:
            skip = True
            yield f"{item}={following}"


def _of_files(place: str, configs: Sequence[Mapping[str, Any]]) -> Iterator[Chosen]:
    """What the last file says that says something; later ones may add arguments to it."""
    found: list[Chosen] = []
    for config in configs:
        value: Any = config
        for part in place.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            found = list(_entries(value)) if isinstance(value, list) else list(_entries(value)) or found
    yield from found


def _entries(value: Any, by_flag: bool = False) -> Iterator[Chosen]:
    """The plug-ins that a value names: a path, a mapping with `class_path`, a list of these, or YAML of them."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            return  # the parser says so
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, str):
            yield Chosen(entry, by_flag=by_flag)
        elif isinstance(entry, Mapping) and isinstance(entry.get("class_path"), str):
            arguments = entry.get("init_args")
            yield Chosen(entry["class_path"], set(arguments) if isinstance(arguments, Mapping) else set(), by_flag)


def _takes_strategy(name: str, place: str, entries: Sequence[Chosen]) -> bool:
    """Give an option to the last plug-in that was named before it; whether it holds a strategy there."""
    option = PLACES[place]
    rest = name.removeprefix(f"{option}.").removeprefix("init_args.")
    key = rest.partition(".")[0].removesuffix("+")
    if key in WORDS:
        return False
    if not entries:
        if place == "strategies":
            raise ConfigError(f"{name} stands before any strategy; put --strategies+=NAME in front of it")
        return False
    entry = entries[-1]
    known = parameters_of(entry.path, option)
    if not known:
        return False
    if key not in known:
        raise ConfigError(f"unknown option {option}.{key} of {entry.title}; {near(key, known)}")
    entry.given.add(key)
    return rest == key and _holds_strategy(entry.path, key)


def _refuse_missing(entry: Chosen, option: str) -> None:
    for key, parameter in parameters_of(entry.path, option).items() if entry.by_flag else ():
        if parameter.default is EMPTY and key not in entry.given:
            raise ConfigError(f"{entry.title} lacks '{key}'; give {option}.{key}")
