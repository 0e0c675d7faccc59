"""Typed reading of parsed JSON; every error names the file and the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mmcl.errors import MmclError

T = TypeVar("T")


class Node:
    """A JSON object and the place where it stands.

    Args:
        data: the parsed object.
        where: file and key path, for errors.

    Raises:
        MmclError: `data` is no object.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise MmclError(f"{where}: expected an object, found {_kind(data)}")
        self.data: Mapping[str, Any] = data
        self.where = where

    def text(self, key: str, default: str | None = None) -> str:
        """A string; an error where it is missing and `default` is None."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._error(key, "a string", value)
        return value

    def maybe_text(self, key: str) -> str | None:
        """A string, or None where the key is missing or null."""
        return None if self.data.get(key) is None else self.text(key)

    def number(self, key: str) -> float | None:
        """A finite number, or None where the key is missing or null."""
        value = self.data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._error(key, "a finite number", value)
        return float(value)

    def whole(self, key: str) -> int | None:
        """A whole number, or None where the key is missing or null."""
        value = self.number(key)
        if value is not None and value != int(value):
            raise self._error(key, "a whole number", value)
        return None if value is None else int(value)

    def count(self, key: str) -> int:
        """A whole number that must be there and not be negative."""
        value = self.whole(key)
        if value is None or value < 0:
            raise self._error(key, "a whole number from 0", value)
        return value

    def numbers(self, key: str) -> dict[str, float | None]:
        """An object of numbers (null allowed); empty where the key is missing."""
        node = self.node(key, {})
        return {name: node.number(name) for name in node.data}

    def node(self, key: str, default: Mapping[str, Any] | None = None) -> Node:
        """An object; an error where it is missing and `default` is None."""
        return Node(self._value(key, default), f"{self.where}: {key}")

    def items(self, key: str, build: Callable[[Node], T]) -> tuple[T, ...]:
        """A list of objects, each one made into something; empty where the key is missing."""
        value = self.data.get(key, [])
        if not isinstance(value, list):
            raise self._error(key, "a list", value)
        return tuple(build(Node(item, f"{self.where}: {key}[{index}]")) for index, item in enumerate(value))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty where the key is missing."""
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._error(key, "a list of strings", value)
        return tuple(value)

    def _value(self, key: str, default: Any) -> Any:
        value = self.data.get(key, default)
        if value is None:
            raise MmclError(
                f"{self.where}: the key {key!r} is missing; write the results again with this version of mmcl"
            )
        return value

    def _error(self, key: str, wanted: str, value: Any) -> MmclError:
        return MmclError(f"{self.where}: {key!r} must be {wanted}, found {_kind(value)}")


def _kind(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
