"""Attacks as edits: a dataset that tests change as its writer, with some keys, or from the bucket."""

from __future__ import annotations

from simulation.dataset import DatasetSim, Kek
from simulation.files import SimFile, forge_file, plaintext_file, seal_file

__all__ = ["DatasetSim", "Kek", "SimFile", "forge_file", "plaintext_file", "seal_file"]
