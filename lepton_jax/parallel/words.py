"""Numbers as a reader wants them, and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_BYTES: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_SECONDS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def bytes_text(amount: float) -> str:
    """Bytes in a unit that leaves few digits.

    Example:
        >>> bytes_text(100), bytes_text(1536), bytes_text(3 << 30)
        ('100 B', '1.5 KiB', '3.0 GiB')
    """
    power = 0
    while amount >= 1024 and power < len(_BYTES) - 1:
        amount, power = amount / 1024, power + 1
    return f"{amount:.0f} B" if not power else f"{amount:.1f} {_BYTES[power]}"


def seconds_text(seconds: float) -> str:
    """Seconds in a unit that leaves few digits.

    Example:
        >>> seconds_text(0.0123), seconds_text(0.0)
        ('12.3 ms', '0.0 us')
    """
    unit, name = next((each for each in _SECONDS if seconds >= each[0]), _SECONDS[-1])
    return f"{seconds / unit:.1f} {name}"


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows with their columns below each other.

    Args:
        right: the columns whose text stands at the right.
    """
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
