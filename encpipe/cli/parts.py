"""What a result looks like to a person: facts, grids and notes, and their plain rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Facts:
    """Labels and values, one pair a line."""

    rows: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; the columns named in `right` hold numbers.

    Where `if_too_wide` is set, columns that do not fit a terminal are left out and this is said below.
    `styles` are for cells that hold just these words.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[str] = frozenset()
    title: str = ""
    if_too_wide: str = ""
    styles: Mapping[str, str] = field(default_factory=dict)

    def fitting(self, width: int) -> int:
        """How many columns a terminal of `width` characters has room for, at least one."""
        used = 0
        for number, column in enumerate(self.columns):
            cells = [column, *(row[number] for row in self.rows)]
            used += max(len(safe(cell)) for cell in cells) + 2
            if used > width + 2:
                return max(number, 1)
        return len(self.columns)


@dataclass(frozen=True)
class Note:
    """A sentence to the user. `pipe` is where it goes when standard output is no terminal."""

    text: str
    warning: bool = False
    pipe: Literal["out", "err", "none"] = "out"


Part = Facts | Grid | Note


def plain(parts: Sequence[Part]) -> str:
    """Aligned text without colours, a blank line between parts."""
    return "\n".join("".join(f"{line.rstrip()}\n" for line in _lines(part)) for part in parts)


def _lines(part: Part) -> list[str]:
    if isinstance(part, Note):
        return [part.text]
    title = [part.title] if part.title else []
    if isinstance(part, Facts):
        width = max((len(label) for label, _ in part.rows), default=0)
        return title + [f"{label:<{width}}  {safe(value)}" for label, value in part.rows]
    cells = [[safe(cell) for cell in row] for row in (part.columns, *part.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [column in part.right for column in part.columns]
    return title + [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        for row in cells
    ]


def safe(text: str) -> str:
    """`text` with every character that could steer a terminal written as an escape.

    Names in a manifest and values of a dataset come from others.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: int) -> str:
    """Bytes for people, powers of 1000: `1.5 GB`."""
    value, unit = float(count), 0
    while value >= 999.95 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def plural(count: int, noun: str) -> str:
    """`1 file`, `12,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
