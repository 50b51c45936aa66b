"""`python -m benchmarks [GROUP ...] [--only PART,...] [--quick]`: a table, and `build/bench/<group>.json`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from benchmarks.ratios import Results
from benchmarks.report import save, table

GROUPS: Final = {"core": "benchmarks.core", "loader": "benchmarks.loader", "keys": "benchmarks.keys"}
"""Group -> module with `PARTS` (name -> function of `quick`) and `prepare()`."""


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of: {', '.join(GROUPS)}; default all")
    parser.add_argument("--only", default="", metavar="PART,...", help="some parts; nothing is saved")
    parser.add_argument("--quick", action="store_true", help="show that it runs; nothing is saved")
    options = parser.parse_args(arguments)
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group {min(unknown)!r}")
    return options


def run_group(group: str, only: Sequence[str], *, quick: bool) -> Results:
    """Measure the parts of a group, one after another, with progress on standard error."""
    module = import_module(GROUPS[group])
    module.prepare()
    unknown = set(only) - set(module.PARTS)
    if unknown:
        raise SystemExit(f"no part {min(unknown)!r} in {group}: there are {', '.join(module.PARTS)}")
    parts = {name: part for name, part in module.PARTS.items() if not only or name in only}
    results = Results()
    for name, part in parts.items():
        start = time.perf_counter()
        found = part(quick)
        results.figures += found.figures
        results.details |= found.details
        print(f"{group} {name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        print(table(found.figures), file=sys.stderr, flush=True)  # kept, should a later part fail
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table for all groups; save each group when it was measured in full."""
    options = _arguments(arguments)
    only = [name for name in options.only.split(",") if name]
    figures = []
    for group in options.groups or GROUPS:
        results = run_group(group, only, quick=options.quick)
        figures += results.figures
        if not only and not options.quick:
            print(f"saved {save(group, results.figures, results.details)}", file=sys.stderr)
    print(table(figures))
    if options.quick:
        print("--quick shows that everything runs: its verdicts mean nothing", file=sys.stderr)


if __name__ == "__main__":
    main()
