"""Finding plug-ins: by reading the sources of mmcl's own packages, without importing them, and through entry points.

A package of somebody else's registers its classes under the entry-point groups ``mmcl.strategies``, ``mmcl.modules``,
``mmcl.benchmarks``; their names then work in YAML and on the command line like mmcl's own.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from mmcl.errors import ConfigError, near

KINDS = ("strategies", "modules", "benchmarks", "datamodules")
BASES = {"strategies": ("Strategy",), "modules": ("Module",), "datamodules": ("LightningDataModule",)}
"""Root classes: what builds on them, directly or through another plug-in, is offered."""
ROOT = Path(__file__).resolve().parent


@cache
def _own(kind: str) -> dict[str, tuple[str, str]]:
    """Public names of a package: name -> (import path of its file, first line of its docstring)."""
    folder = ROOT / kind
    found: dict[str, tuple[str, str]] = {}
    family = set(BASES.get(kind, ()))
    for node in _definitions(folder):
        if isinstance(node, ast.ClassDef) and family & _bases(node):
            family.add(node.name)
    for file in sorted(folder.rglob("*.py")):
        relative = file.relative_to(folder).with_suffix("")
        parts = [p for p in relative.parts if p != "__init__"]
        if any(p.startswith("_") for p in parts):
            continue
        path = ".".join(("mmcl", kind, *parts))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and _offered(kind, node, family):
                doc = (ast.get_docstring(node) or "").split("\n", 1)[0]
                found[node.name] = (path, doc)
    return found


def _definitions(folder: Path) -> list[ast.stmt]:
    """Top-level statements of a package, classes after the classes of their own package that they build on."""
    found = [n for f in sorted(folder.rglob("*.py")) for n in ast.parse(f.read_text(encoding="utf-8")).body]
    classes = {n.name: n for n in found if isinstance(n, ast.ClassDef)}

    def depth(node: ast.stmt) -> int:
        if not isinstance(node, ast.ClassDef):
            return 0
        return 1 + max((depth(classes[b]) for b in _bases(node) if b in classes and b != node.name), default=0)

    return sorted(found, key=depth)


def _bases(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base) for base in node.bases}  # as written: `nn.Module` is not `Module`


def _offered(kind: str, node: ast.ClassDef | ast.FunctionDef, family: set[str]) -> bool:
    if node.name.startswith("_"):
        return False
    if kind == "benchmarks":  # a benchmark is a function that returns a stream
        return isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id == "Stream"
    return isinstance(node, ast.ClassDef) and node.name in family - set(BASES[kind])


@cache
def _foreign(kind: str) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for entry in entry_points(group=f"mmcl.{kind}"):
        package = entry.dist.name if entry.dist is not None else entry.module
        found[entry.name] = (entry.value.replace(":", "."), f"from the package {package}")
    return found


def listing(kind: str) -> dict[str, str]:
    """Name -> one line, of everything of a kind: mmcl's own and what entry points add."""
    if kind not in KINDS:
        raise ConfigError(f"unknown kind '{kind}'; {near(kind, KINDS)}")
    own = {name: doc for name, (_, doc) in _own(kind).items()}
    return dict(sorted({**own, **{name: doc for name, (_, doc) in _foreign(kind).items()}}.items()))


def class_path(kind: str, name: str) -> str:
    """Full import path of a name; a dotted path is returned as it is.

    Raises:
        ConfigError: nothing of that name is known; the message gives near names.
    """
    if "." in name:
        return name
    if name in _own(kind):
        return f"{_own(kind)[name][0]}.{name}"
    if name in _foreign(kind):
        return _foreign(kind)[name][0]
    singular = {"strategies": "strategy"}.get(kind, kind.removesuffix("s"))
    raise ConfigError(f"unknown {singular} '{name}'; {near(name, listing(kind), f'mmcl list {kind}')}")


def load(kind: str, name: str) -> Any:
    """The object behind a name or a dotted path.

    Raises:
        ConfigError: it is unknown or cannot be imported.
    """
    path = class_path(kind, name)
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot import '{path}': {error}") from error


def lazy_getattr(package: str) -> Callable[[str], Any]:
    """A `__getattr__` for one of mmcl's plug-in packages: names are found by reading the sources."""
    kind = package.removeprefix("mmcl.")

    def __getattr__(name: str) -> Any:
        if name.startswith("__") or name not in _own(kind):
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(_own(kind)[name][0]), name)

    return __getattr__
