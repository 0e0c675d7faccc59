"""Random state as a pure function of (seed, place): nothing about it has to be saved."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def mix(*place: object) -> int:
    """A 63-bit number out of any place, the same in every process and Python version."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def reseed(*place: object) -> None:
    """Set Python's, NumPy's and torch's generators. Cheap enough for every batch (`torch.manual_seed` is not)."""
    value = mix(*place)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(value)


def generator(*place: object, device: str = "cpu") -> torch.Generator:
    """A generator of its own."""
    made = torch.Generator(device=device)
    made.manual_seed(mix(*place))
    return made
