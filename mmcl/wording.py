"""Wrong settings in the user's words: where the key or the value is, and what would fit."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmcl.errors import ConfigError, near
from mmcl.modules.base import Module
from mmcl.strategy import Strategy
from mmcl.stream import Budget, EvalSet, Source, Stream, Task

HOLDS: Mapping[str, type] = {
    "tasks": Task,
    "evals": EvalSet,
    "budget": Budget,
    "train": Source,
    "mix": Source,
    "source": Source,
    "sources": Source,
}
"""Argument of a stream -> what it holds, itself or in a list or mapping."""
SECTIONS = {"data": "mmcl.datamodules.StreamDataModule", "trainer": "lightning.pytorch.Trainer"}
EMPTY = inspect.Parameter.empty


def check_keys(config: Mapping[str, Any], known: Collection[str], flags: Sequence[str]) -> None:
    """Refuse keys that nothing takes, and name those that are missing.

    Args:
        config: settings of one file, with class paths written out.
        known: the keys of the top level.
        flags: options of the command line; they may give what the file lacks.

    Raises:
        ConfigError: the key, its place and near names.
    """
    _refuse_unknown(config, known, "")
    for section, path in SECTIONS.items():
        if isinstance(config.get(section), Mapping):
            _refuse_unknown(config[section], _signature(path, section), section)
    data = config.get("data")
    stream = data.get("stream") if isinstance(data, Mapping) else None
    _check_object(config.get("model"), "model", flags, Module)
    _check_object(stream, "data.stream", flags, Stream)
    for i, strategy in enumerate(config.get("strategies") or []):
        _check_object(strategy, f"strategies.{i}", flags, Strategy)


def check_finite(config: Mapping[str, Any]) -> None:
    """Refuse numbers that are none: `.nan` and `.inf` pass for numbers in YAML, and comparisons let many of them by.

    Args:
        config: the whole configuration; what is Lightning's own may be without limit.

    Raises:
        ConfigError: the key and its value.
    """
    for place, value in _leaves(config):
        if not isinstance(value, float) or math.isfinite(value):
            continue
        if math.isnan(value) or not place.startswith("trainer."):
            raise ConfigError(f"{place.replace('init_args.', '')} is {value}; it must be a finite number")


def _check_object(value: Any, where: str, flags: Sequence[str], base: type | None = None) -> None:
    if not isinstance(value, Mapping):
        return
    _refuse_unknown(value, ("class_path", "init_args", "dict_kwargs"), where)
    if not isinstance(value.get("class_path"), str):
        return
    if base is not None and not _is_a(_import(value["class_path"], where), base):
        raise ConfigError(f"{where}: '{value['class_path']}' is no {base.__name__}")
    parameters, given = _signature(value["class_path"], where), value.get("init_args") or {}
    _refuse_unknown(given, parameters, where)
    if base is not None:  # what is called later, such as an optimizer, gets the rest of its arguments then
        elsewhere = {f.rpartition(".")[2] for f in flags if f.startswith(f"--{where.split('.')[0]}")}
        _refuse_missing({**given, **dict.fromkeys(elsewhere, "")}, parameters, where)
    plain = "." in value["class_path"] and _import(value["class_path"], where) is Stream
    for key, inner in given.items():
        _check_value(inner, key, f"{where}.{key}", flags, plain)


def _is_a(found: Any, base: type) -> bool:
    """A class of that kind, or a function that makes one (benchmarks are)."""
    return issubclass(found, base) if isinstance(found, type) else callable(found)


def _check_value(value: Any, key: str, where: str, flags: Sequence[str], plain: bool) -> None:
    kind = HOLDS.get(key)
    if isinstance(value, Mapping) and "class_path" in value:
        _check_object(value, where, flags)
    elif kind is not None and isinstance(value, (Mapping, list)):
        several = isinstance(value, list) or key == "sources"
        items = (value.items() if isinstance(value, Mapping) else enumerate(value)) if several else [("", value)]
        for name, item in items:
            place = f"{where}.{name}" if several else where
            fields = {f.name: f.default for f in dataclasses.fields(kind)}
            required = {f: EMPTY for f, default in fields.items() if _required(kind, f, default)}
            if not isinstance(item, Mapping):
                if plain:  # arguments of strategies and benchmarks may be called `tasks` or `sources` and hold names
                    keys = ", ".join(required or fields)
                    raise ConfigError(f"{place} is {item!r}; it must be a mapping with keys such as {keys}")
                continue
            _refuse_unknown(item, fields, place)
            _refuse_missing(item, required, place)
            for inner, content in item.items():
                _check_value(content, inner, f"{place}.{inner}", flags, True)


def _required(kind: type, name: str, default: Any) -> bool:
    field = next(f for f in dataclasses.fields(kind) if f.name == name)
    return default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _import(path: str, where: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: '{path}' cannot be used: {error}") from error


def parameters_of(path: str, where: str) -> dict[str, inspect.Parameter]:
    """Arguments of a class or function; {} where it takes any, or has a short name that the parser knows.

    Args:
        path: what is called.
        where: the key that names it.

    Raises:
        ConfigError: it cannot be imported.
    """
    if "." not in path:
        return {}
    try:
        parameters = inspect.signature(_import(path, where)).parameters
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: '{path}' cannot be used: {error}") from error
    return {} if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else dict(parameters)


def _signature(path: str, where: str) -> dict[str, Any]:
    """Argument -> default, of `parameters_of`."""
    return {name: parameter.default for name, parameter in parameters_of(path, where).items()}


def _refuse_unknown(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in given if known else ():
        if key not in known:
            raise ConfigError(f"unknown key '{key}'{f' in {where}' if where else ''}; {near(str(key), known)}")


def _refuse_missing(given: Mapping[str, Any], parameters: Mapping[str, Any], where: str) -> None:
    missing = [f"'{n}'" for n, default in parameters.items() if default is EMPTY and given.get(n) is None]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; give {'it' if len(missing) == 1 else 'them'}")


_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_STRANGE = re.compile(r"unrecognized arguments: ([^\s=]+)|(?:Option|does not accept option) '([^']+)'")
_VALUE = re.compile(r'Parser key "([^"]+)": (.*?)(?:Given value|\. Got value): (.*)$')
_EXPECTED = re.compile(r"Expected an? (?:<class '(?:[\w.]+\.)?(\w+)'>|typing\.Literal(\[[^]]+\]))")
_CLASS = re.compile(r"Problem with given class_path '[^']+': (.+?)(?: - Expected| Given value type|$)")
_UNION = re.compile(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - (.+?) - ")


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
    "Sequence": "a list",
    "list": "a list",
    "tuple": "a list",
}


def reword(
    message: str, configs: Sequence[Mapping[str, Any]], known: Collection[str], flags: Sequence[str] = ()
) -> str:
    """What is left to the parser to find, in one line.

    Args:
        message: the parser's, on one line.
        configs: settings of the files, to say where a value is.
        known: the options of the command line.
        flags: the options that were given.
    """
    if found := _REQUIRED.search(message):
        names = [name.partition(".")[2] or name for name in found[1].split(", ")]
        return f"no {' and no '.join(names)} given; start from a preset with --config (`mmcl list configs` shows them)"
    if found := _STRANGE.search(message):
        if not (found[1] or "-").startswith("-"):
            return f"unexpected argument '{found[1]}'; a preset, a file or a run's config.yaml stands after --config"
        name = (found[1] or found[2]).lstrip("-")
        given = next((f for f in flags if f.endswith(f".{name}")), f"--{name}")
        options = close(given, known)
        hint = f"did you mean --{' or --'.join(options)}?" if options else "mmcl fit --help lists all"
        return f"unknown option {given}; {hint}"
    if found := _CLASS.search(message):
        return found[1]
    if found := _VALUE.search(message):
        key, detail, value = found.groups()
        kinds = dict.fromkeys(KINDS.get(a, a) or f"one of {b}" for a, b in _EXPECTED.findall(detail))
        wanted = f"it must be {' or '.join(kinds)}" if kinds else detail.strip()
        return f"{_place(key, value, configs, flags)} is '{value}'; {wanted}"
    found = _UNION.search(message)
    return found[1] if found else message


def close(option: str, known: Collection[str]) -> list[str]:
    """Options near by, for those that do not belong to a class that the user chose."""
    if option.startswith(("--model.", "--strategies.")):
        return []
    return difflib.get_close_matches(option.lstrip("-"), known, n=2, cutoff=0.7)


def _place(key: str, value: str, configs: Sequence[Mapping[str, Any]], flags: Sequence[str]) -> str:
    """The full place of a key that the parser knows by its end: in a file, else the option that gave it."""
    found = [p for c in configs for p, v in _leaves(c) if str(v) == value and f".{p}".endswith(f".{key}")]
    return next((place for place in (*found, *flags) if place.endswith(f".{key}")), key)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))
