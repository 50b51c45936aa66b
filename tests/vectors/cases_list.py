"""Vectors whose file list does not hold, and pins."""

from __future__ import annotations

import hashlib
from typing import Any

from cases_manifest import published
from cases_ok import second_generation
from materials import KEKS, LISTS, OTHER_DATASET, Materials
from registry import refused
from simulation import DatasetSim

# The file list


@refused("ManifestError", "file-missing")
def list_missing(m: Materials) -> DatasetSim:
    """The list is gone."""
    sim = published(m)
    del sim.objects[sim.list_path]
    return sim


@refused("ManifestError", "file-list")
def list_edited(m: Materials) -> DatasetSim:
    """One byte of the list is changed."""
    sim = published(m)
    sim.flip(sim.list_path, 50)
    return sim


@refused("ManifestError", "file-list")
def list_cut(m: Materials) -> DatasetSim:
    """The list is cut."""
    sim = published(m)
    sim.objects[sim.list_path] = sim.objects[sim.list_path][:20]
    return sim


@refused("ManifestError", "file-list")
def list_of_older_generation(m: Materials) -> DatasetSim:
    """The list of generation 1 stands in the place of generation 2's."""
    sim = second_generation(m)
    first = sim.objects[sim.list_path.replace(f"2-{LISTS[1]}", f"1-{LISTS[0]}")]
    sim.publish()
    sim.objects[sim.list_path] = first
    return sim


def _with_list(sim: DatasetSim, sealed: bytes) -> DatasetSim:
    sim.objects[sim.list_path] = sealed
    sim.core["file_list"]["sha256"] = hashlib.sha256(sealed).hexdigest()
    sim.publish_manifest()
    return sim


@refused("ManifestError", "file-list")
def list_of_older_generation_committed(m: Materials) -> DatasetSim:
    """The same, and the manifest commits to it: the seal is bound to generation and list id."""
    sim = list_of_older_generation(m)
    return _with_list(sim, sim.objects[sim.list_path])


@refused("ManifestError", "file-list")
def list_of_other_dataset(m: Materials) -> DatasetSim:
    """The list of another dataset whose footer KEK is the same."""
    sim = published(m)
    other = m.unwrapped(KEKS, OTHER_DATASET)
    other.publish()
    return _with_list(sim, other.objects[other.list_path])


@refused("FormatError", "format-newer")
def list_version_newer(m: Materials) -> DatasetSim:
    """The list's version byte is 2."""
    sim = published(m)
    return _with_list(sim, b"\x02" + sim.objects[sim.list_path][1:])


def _with_entry(m: Materials, **fields: object) -> DatasetSim:
    sim = m.dataset("alpha")
    sim.file_list["files"][0].update(fields)
    return sim


@refused("ManifestError", "file-list")
def list_path_leaves_dataset(m: Materials) -> DatasetSim:
    """A KEK holder lists a file outside of the dataset."""
    return _with_entry(m, path=f"../data/{'a1' * 16}.parquet")


@refused("ManifestError", "file-list")
def list_path_absolute(m: Materials) -> DatasetSim:
    """A KEK holder lists an absolute path."""
    return _with_entry(m, path=f"/data/{'a1' * 16}.parquet")


@refused("ManifestError", "file-list")
def list_path_of_own_folder(m: Materials) -> DatasetSim:
    """A data file below _encpipe."""
    return _with_entry(m, path=f"_encpipe/{'a1' * 16}.parquet")


@refused("ManifestError", "file-list")
def list_entry_contradicts_itself(m: Materials) -> DatasetSim:
    """Rows and row groups do not add up."""
    return _with_entry(m, rows=5)


@refused("ManifestError", "file-list")
def list_names_a_file_twice(m: Materials) -> DatasetSim:
    """One file is listed twice."""
    sim = m.dataset("alpha")
    sim.file_list["files"] *= 2
    return sim


@refused("ManifestError", "file-list")
def list_not_json(m: Materials) -> DatasetSim:
    """The list opens, and is not JSON."""
    sim = m.dataset("alpha")
    sim.publish_list(b"[1, 2")
    return sim


@refused("ManifestError", "file-list")
def list_schema_not_arrow(m: Materials) -> DatasetSim:
    """The list's schema is no Arrow schema."""
    sim = m.dataset("alpha")
    sim.file_list["schema"] = "AAAA"
    return sim


@refused("ManifestError", "file-list")
def list_columns_do_not_fit_schema(m: Materials) -> DatasetSim:
    """The list names a column that the schema does not have."""
    sim = m.dataset("alpha")
    sim.file_list["columns"] = [["id", "footer"], ["salary", "pii"]]
    return sim


@refused("ManifestError", "file-list")
def list_column_of_unknown_key_name(m: Materials) -> DatasetSim:
    """The list puts a column under a key name that the manifest does not have."""
    sim = m.dataset("alpha")
    sim.file_list["columns"] = [["id", "footer"], ["name", "secret"]]
    return sim


@refused("ManifestError", "file-list")
def list_partition_not_in_schema(m: Materials) -> DatasetSim:
    """The list names a partition column that the schema does not have."""
    sim = m.dataset()
    sim.add_file(m.files["alpha"], day="mon")
    sim.file_list["partitions"] = ["day"]
    return sim


# Pins

NOT_PINNED: dict[str, Any] = {"problems": []}
"""`verify` does not take this pin."""


@refused("StaleDatasetError", "stale", options={"min_generation": 2})
def rolled_back_with_generation_pin(m: Materials) -> DatasetSim:
    """Everything was put back to generation 1; the reader knows of 2."""
    return published(m)


@refused("StaleDatasetError", "stale", verify=NOT_PINNED, options={"expect_core": "5e" * 32})
def rolled_back_with_core_pin(m: Materials) -> DatasetSim:
    """The reader expects another core."""
    return published(m)


@refused("StaleDatasetError", "stale", verify=NOT_PINNED, options={"min_revision": 2})
def rolled_back_wrappings_with_revision_pin(m: Materials) -> DatasetSim:
    """An older revision of the same generation: a revoked wrapping might be back."""
    return published(m)


@refused("StaleDatasetError", "stale", options={"expect_dataset": OTHER_DATASET})
def other_dataset_with_pin(m: Materials) -> DatasetSim:
    """Another dataset under the same keys stands at this URL."""
    return published(m)


@refused("StaleDatasetError", "stale", verify=NOT_PINNED, options={"generation": 7})
def generation_not_retained(m: Materials) -> DatasetSim:
    """A generation is asked for that the manifest does not hold."""
    return published(m)
