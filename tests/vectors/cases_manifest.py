"""Vectors whose manifest does not hold."""

from __future__ import annotations

from cases_ok import second_generation
from materials import ALPHA_ROWS, KEKS, Materials
from registry import ok, refused
from simulation import DatasetSim
from simulation.dataset import MANIFEST, dumps

FOOTER, PII = KEKS["footer"].id, KEKS["pii"].id


def published(m: Materials, *names: str) -> DatasetSim:
    sim = m.dataset(*(names or ("alpha",)))
    sim.publish()
    return sim


def _edited(sim: DatasetSim, line: int, old: bytes, new: bytes) -> DatasetSim:
    lines = sim.lines
    assert lines[line].count(old) >= 1
    lines[line] = lines[line].replace(old, new, 1)
    sim.set_lines(*lines)
    return sim


# What is not an encpipe/1 manifest


@refused("FormatError", "format")
def not_json(m: Materials) -> DatasetSim:
    """Something else stands where the manifest belongs."""
    sim = published(m)
    sim.objects[MANIFEST] = b"PAR1 is not a manifest\n"
    return sim


@refused("StorageError", "not-found")
def no_manifest(m: Materials) -> DatasetSim:
    """The manifest is gone: files alone are no dataset."""
    sim = published(m)
    del sim.objects[MANIFEST]
    return sim


@refused("FormatError", "format")
def manifest_empty(m: Materials) -> DatasetSim:
    """The manifest has no bytes."""
    sim = published(m)
    sim.objects[MANIFEST] = b""
    return sim


@refused("FormatError", "format-newer")
def format_newer(m: Materials) -> DatasetSim:
    """Format encpipe/2."""
    sim = m.dataset("alpha")
    sim.core["format"] = "encpipe/2"
    return sim


@refused("FormatError", "format")
def format_other(m: Materials) -> DatasetSim:
    """A format of another name."""
    sim = m.dataset("alpha")
    sim.core["format"] = "iceberg/2"
    return sim


@refused("FormatError", "format-newer")
def requires_unknown(m: Materials) -> DatasetSim:
    """A feature is required that version 1 does not know."""
    sim = m.dataset("alpha")
    sim.core["requires"] = ["deletion-vectors"]
    return sim


@refused("ManifestError", "file-list")
def list_with_partition_keks(m: Materials) -> DatasetSim:
    """The list has a partition KEK that has nothing but an id."""
    sim = m.dataset("alpha")
    sim.file_list["partition_keks"] = [{"id": "ab" * 16}]
    return sim


# Cut and damaged


@refused("ManifestError", "manifest")
def manifest_cut(m: Materials) -> DatasetSim:
    """The manifest ends in the middle of a line."""
    sim = published(m)
    sim.objects[MANIFEST] = sim.objects[MANIFEST][:-40]
    return sim


@refused("ManifestError", "manifest")
def manifest_last_newline_missing(m: Materials) -> DatasetSim:
    """The last line is not ended."""
    sim = published(m)
    sim.objects[MANIFEST] = sim.objects[MANIFEST][:-1]
    return sim


@refused("ManifestError", "manifest")
def manifest_line_missing(m: Materials) -> DatasetSim:
    """The tags line is missing."""
    sim = published(m)
    sim.set_lines(*sim.lines[:2])
    return sim


@refused("ManifestError", "manifest")
def manifest_line_too_many(m: Materials) -> DatasetSim:
    """A fourth line."""
    sim = published(m)
    sim.set_lines(*sim.lines, b"{}")
    return sim


@refused("ManifestError", "manifest")
def manifest_duplicate_name(m: Materials) -> DatasetSim:
    """A name occurs twice in one object: readers might disagree which counts."""
    return _edited(published(m), 0, b'"generation":1', b'"generation":1,"generation":2')


@refused("ManifestError", "manifest")
def manifest_number_not_integer(m: Materials) -> DatasetSim:
    """A generation that is no integer."""
    return _edited(published(m), 0, b'"generation":1', b'"generation":1.0')


@refused("ManifestError", "manifest")
def manifest_too_deep(m: Materials) -> DatasetSim:
    """65 levels of nesting in an unknown field."""
    deep = b"[" * 65 + b"]" * 65
    return _edited(published(m), 0, b'"requires":[]', b'"requires":[],"x":' + deep)


@refused("ManifestError", "manifest")
def manifest_two_current_keks(m: Materials) -> DatasetSim:
    """Two active KEKs for one key name."""
    sim = m.dataset("alpha")
    sim.core["keks"].append({**sim.core["keks"][1], "id": "72" * 16})
    return sim


# Edited


@refused("ManifestError", "manifest-mac")
def manifest_core_edited(m: Materials) -> DatasetSim:
    """Another generation number, MACs left alone."""
    return _edited(published(m), 0, b'"generation":1', b'"generation":2')


@refused("ManifestError", "manifest-mac")
def manifest_blank_added(m: Materials) -> DatasetSim:
    """A blank in the core: the same JSON, other bytes."""
    return _edited(published(m), 0, b'"generation":1', b'"generation": 1')


@refused("ManifestError", "manifest-mac")
def manifest_revision_edited(m: Materials) -> DatasetSim:
    """Another revision."""
    return _edited(published(m), 1, b'"revision":1', b'"revision":9')


@refused("ManifestError", "manifest-mac")
def manifest_mac_wrong(m: Materials) -> DatasetSim:
    """Another manifest MAC."""
    sim = published(m)
    sim.tags["manifest_mac"] = "00" * 32
    sim.set_lines(*sim.lines[:2], dumps(sim.tags))
    return sim


@refused("ManifestError", "manifest-mac")
def manifest_core_mac_missing(m: Materials) -> DatasetSim:
    """The core MAC under the footer KEK is stripped."""
    sim = published(m)
    del sim.tags["core_macs"][FOOTER]
    sim.set_lines(*sim.lines[:2], dumps(sim.tags))
    return sim


@refused("ManifestError", "manifest-mac")
def manifest_core_mac_of_column_key_missing(m: Materials) -> DatasetSim:
    """The core MAC under the column KEK is stripped; noticed when that key is needed, and by `verify`."""
    sim = published(m)
    del sim.tags["core_macs"][PII]
    sim.set_lines(*sim.lines[:2], dumps(sim.tags))
    return sim


@refused("ManifestError", "manifest-mac")
def manifest_mixed_of_two_generations(m: Materials) -> DatasetSim:
    """Core and tags of generation 2 with the keys line of generation 1."""
    old = published(m).lines
    sim = second_generation(m)
    sim.publish()
    sim.set_lines(sim.lines[0], old[1], sim.lines[2])
    return sim


@refused("ManifestError", "manifest-mac")
def core_rewritten_by_footer_key_holder(m: Materials) -> DatasetSim:
    """Who holds the footer KEK alone makes a new generation: the core MAC under the column KEK stays old."""
    sim = published(m, "alpha", "beta")
    sim.file_list["files"].pop()
    sim.publish(holding=["footer"])
    return sim


@ok(
    [{"id": r["id"]} for r in ALPHA_ROWS],
    columns=["id"],
    verify={"error": "ManifestError", "code": "manifest-mac"},
)
def core_rewritten_seen_by_footer_key_alone(m: Materials) -> DatasetSim:
    """The same, read without the column key: the footer key's holders are trusted with the file list."""
    return core_rewritten_by_footer_key_holder(m)
