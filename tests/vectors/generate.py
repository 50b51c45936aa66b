"""Makes the vectors: `python tests/vectors/generate.py`. With `--files` the Parquet files, too.

Each case is a folder: `case.json` says what it shows and what a reader must make of it, `dataset/` is the
dataset. All ids, keys and nonces are fixed, so that a run changes nothing; only Parquet files, whose DEKs
Arrow draws, differ each time they are made, and so are kept in `materials/`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cases_files
import cases_keys
import cases_list
import cases_manifest
import cases_ok
import cases_partitions
import cases_signed
from materials import fixed_random, load_materials, save_files, save_keyrings
from registry import CASES

HERE = Path(__file__).parent
SOURCES = (cases_ok, cases_manifest, cases_keys, cases_list, cases_files, cases_signed, cases_partitions)
"""Importing them declares the cases."""


def generate(target: Path) -> None:
    """Write all cases below `target`, in place of those that are there."""
    for old in target.glob("*/case.json"):
        shutil.rmtree(old.parent)
    materials = load_materials()
    for name, case in CASES.items():
        folder = target / name
        with fixed_random(name):
            sim = case.make(materials)
            if not sim.is_published:
                sim.publish()
        sim.write_to(folder / "dataset")
        (folder / "case.json").write_text(json.dumps(case.as_json(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if "--files" in sys.argv[1:]:
        save_files()
    save_keyrings()
    generate(HERE)
