"""The table that people read and the JSON that scripts read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.method import Figure

RESULTS: Final = Path(__file__).resolve().parents[1] / "build" / "bench"
_HEAD: Final = ("metric", "median", "spread", "A/A", "bar", "verdict")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import cryptography
    import pyarrow as pa

    return {
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pyarrow": pa.__version__,
        "cryptography": cryptography.__version__,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def table(figures: Sequence[Figure]) -> str:
    """One line for each figure, columns aligned."""
    lines = [_HEAD, *(_line(figure) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n in (0, 5) else cell.rjust(width) for n, (cell, width) in enumerate(row)
        ).rstrip()
        for row in (zip(line, widths, strict=True) for line in lines)
    )


def _line(figure: Figure) -> tuple[str, ...]:
    bar = "" if figure.bar is None else f"{'<=' if figure.lower else '>='} {_number(figure.bar)}"
    name = figure.name + (f" ({figure.unit})" if figure.unit else "")
    return (
        name,
        _number(figure.value),
        "" if figure.spread is None else f"+-{figure.spread:.3f}",
        "" if figure.control is None else f"+-{figure.control:.3f}",
        bar,
        figure.verdict,
    )


def _number(value: float) -> str:
    return str(round(value)) if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"


def save(group: str, figures: Sequence[Figure], details: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write `<group>.json`: metrics by name, the machine, bars and verdicts, details."""
    path = folder / f"{group}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "metrics": {figure.name: figure.value for figure in figures},
        "machine": machine(),
        "bars": {
            figure.name: {
                "bar": figure.bar,
                "better": "lower" if figure.lower else "higher",
                "spread": figure.spread,
                "control": figure.control,
                "verdict": figure.verdict,
            }
            for figure in figures
            if figure.bar is not None
        },
        "details": dict(details),
    }
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return path
