"""How reports write numbers."""

from __future__ import annotations

from typing import Any

MISSING = "–"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, unit: str, signed: bool = False) -> str:
    """A value of a `Measure` or a matrix cell as text, with a typographic minus; a dash where there is none.

    Args:
        value: in the unit of the scores.
        unit: ``percent`` and ``points`` are written times 100 with one decimal, ``ratio`` with two, ``seconds`` as a
            duration, all else with three significant digits.
        signed: write a plus sign too.

    >>> number(0.4834, "percent"), number(-0.182, "points"), number(14.28, "score"), number(None, "ratio")
    ('48.3', '−18.2', '14.3', '–')
    """
    if value is None:
        return MISSING
    if unit == "seconds":
        text = duration(value)
        return f"+{text}" if signed and value > 0 else text
    if unit in ("percent", "points"):
        text = f"{100 * value:.1f}"
    elif unit == "ratio":
        text = f"{value:.2f}"
    else:
        text = significant(value)
    if float(text) == 0:
        text = text.lstrip("-")
    signed = signed or unit in ("points", "change")
    return ("+" if signed and float(text) > 0 else "") + text.replace("-", MINUS)


def significant(value: float) -> str:
    """Three significant digits, without an exponent from 0.001 up to a million.

    >>> significant(1234.5), significant(12.345), significant(0.001234), significant(0.0)
    ('1234', '12.3', '0.00123', '0')
    """
    if value == 0:
        return "0"
    text = f"{value:.2e}"
    exponent = int(text.partition("e")[2])
    return f"{value:.{max(2 - exponent, 0)}f}" if -3 <= exponent < 6 else text


def duration(seconds: float) -> str:
    """Seconds as ``4.2 s``, ``3 min 20 s`` or ``2 h 05 min``.

    >>> duration(4.21), duration(200), duration(7500), duration(-90)
    ('4.2 s', '3 min 20 s', '2 h 05 min', '−1 min 30 s')
    """
    sign, seconds = (MINUS if seconds < 0 else ""), abs(seconds)
    if seconds < 59.95:
        return f"{sign}{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{sign}{whole // 60} min {whole % 60:02d} s"
    return f"{sign}{whole // 3600} h {whole % 3600 // 60:02d} min"


def memory(amount: float | None) -> str:
    """Bytes in binary units.

    >>> memory(3 * 2**20), memory(1.5 * 2**30), memory(None)
    ('3 MiB', '1.5 GiB', '–')
    """
    if amount is None:
        return MISSING
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:.0f} MiB"


def plain(value: Any) -> str:
    """A configuration value as YAML would show it: ``true``, ``null``, lists in brackets."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(plain(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {plain(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)
