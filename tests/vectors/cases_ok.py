"""Vectors that read: one for each thing the format allows."""

from __future__ import annotations

import pyarrow as pa
from materials import (
    ALPHA_ROWS,
    BETA,
    BETA_ROWS,
    COMMITS,
    CREATED,
    FOOTER_ID,
    KEKS,
    LISTS,
    NESTED,
    NESTED_COLUMNS,
    NESTED_ROWS,
    SCHEMA,
    Materials,
    to_text,
)
from registry import ok
from simulation import DatasetSim

from encpipe.journal import Journal
from encpipe.manifest import KekRecord

WRITER = "77" * 16


def _partitioned(m: Materials, *, shown: bool) -> DatasetSim:
    schema = pa.schema([*SCHEMA, ("day", pa.string())])
    sim = m.dataset(schema=schema)
    sim.file_list["partitions"] = ["day"]
    sim.file_list["policy"]["plaintext_partitions"] = ["day"] if shown else []
    for name, day in (("alpha", "mon"), ("beta", None)):
        folder = f"day={day or '__HIVE_DEFAULT_PARTITION__'}" if shown else "data"
        sim.add_file(m.files[name], folder=folder, day=day)
    return sim


PARTITIONED_ROWS = [{**r, "day": "mon"} for r in ALPHA_ROWS] + [{**r, "day": None} for r in BETA_ROWS]


@ok(ALPHA_ROWS)
def ok_one_file(m: Materials) -> DatasetSim:
    """One file, two row groups, two key names."""
    return m.dataset("alpha")


@ok(ALPHA_ROWS + BETA_ROWS)
def ok_two_files(m: Materials) -> DatasetSim:
    """Two files, read in the order of the list."""
    return m.dataset("alpha", "beta")


@ok(ALPHA_ROWS)
def ok_one_key_name(m: Materials) -> DatasetSim:
    """Everything under the footer key, each column with a DEK of its own."""
    return _one_key_name(m, "one-key")


@ok(ALPHA_ROWS)
def ok_one_dek(m: Materials) -> DatasetSim:
    """Everything under the footer key, one DEK for footer and columns (Parquet's uniform mode)."""
    return _one_key_name(m, "one-dek")


def _one_key_name(m: Materials, file: str) -> DatasetSim:
    keks = {"footer": KEKS["footer"]}
    sim = m.unwrapped(keks, "d0" * 16, columns={"id": FOOTER_ID, "name": FOOTER_ID})
    sim.add_wrapping("footer", m.wrapping(sim, "footer", "main"))
    sim.add_file(m.files[file])
    return sim


@ok(PARTITIONED_ROWS)
def ok_plaintext_partitions(m: Materials) -> DatasetSim:
    """A partition column in folder names; a null partition."""
    return _partitioned(m, shown=True)


@ok(PARTITIONED_ROWS)
def ok_sealed_partitions(m: Materials) -> DatasetSim:
    """A partition column whose values stand in the list alone."""
    return _partitioned(m, shown=False)


@ok([{**r, "day": r["day"] and "tue"} for r in PARTITIONED_ROWS])
def ok_partition_value_from_list(m: Materials) -> DatasetSim:
    """A folder says another partition value than the list: the list counts, paths are never parsed."""
    sim = _partitioned(m, shown=True)
    sim.file_list["files"][0]["partition"] = {"day": "tue"}
    return sim


@ok(NESTED_ROWS)
def ok_nested(m: Materials) -> DatasetSim:
    """A struct whose leaves are under two key names, and a list."""
    sim = m.dataset(schema=NESTED, columns=NESTED_COLUMNS)
    sim.add_file(m.files["nested"])
    return sim


@ok(
    [{"id": row["id"], "who": row["who"] and {"age": row["who"]["age"]}} for row in NESTED_ROWS],
    columns=["id", "who.age"],
)
def ok_one_leaf_of_a_struct(m: Materials) -> DatasetSim:
    """One leaf of a struct by its dotted path."""
    return ok_nested(m)


@ok([])
def ok_no_files(m: Materials) -> DatasetSim:
    """An empty dataset: no file at all."""
    return m.dataset()


@ok([])
def ok_zero_row_groups(m: Materials) -> DatasetSim:
    """A file without any row group."""
    return m.dataset("no-rows")


@ok(ALPHA_ROWS)
def ok_several_wrappings(m: Materials) -> DatasetSim:
    """The footer KEK has two wrappings, the first under a master key that the reader does not trust."""
    sim = m.dataset("alpha")
    sim.keys["wrappings"][KEKS["footer"].id].clear()
    sim.add_wrapping("footer", m.wrapping(sim, "footer", "mallory"))
    sim.add_wrapping("footer", m.wrapping(sim, "footer", "main"))
    return sim


@ok(ALPHA_ROWS)
def ok_unknown_fields(m: Materials) -> DatasetSim:
    """Fields that this version does not know, everywhere: authenticated and ignored."""
    sim = m.dataset("alpha")
    for target in (
        sim.core,
        sim.core["file_list"],
        sim.core["keks"][0],
        sim.keys,
        sim.keys["wrappings"][KEKS["pii"].id][0],
        sim.tags,
        sim.file_list,
        sim.file_list["policy"],
        sim.file_list["files"][0],
    ):
        target["x-later"] = {"any": ["thing", 1, None, True]}
    return sim


@ok(ALPHA_ROWS)
def ok_signature_slot(m: Materials) -> DatasetSim:
    """Signatures that the reader was not told to check."""
    sim = m.dataset("alpha")
    sim.tags["signatures"] = [{"signer": "ed25519:AAAA", "signature": to_text(bytes(64))}]
    return sim


def second_generation(m: Materials) -> DatasetSim:
    """Generation 1 holds alpha, generation 2 alpha and beta."""
    sim = m.dataset("alpha")
    sim.publish()
    sim.next_generation(commit_id=COMMITS[1], list_id=LISTS[1])
    sim.add_file(m.files["beta"])
    return sim


@ok(ALPHA_ROWS + BETA_ROWS)
def ok_second_generation(m: Materials) -> DatasetSim:
    """The newest of two generations."""
    return second_generation(m)


@ok(ALPHA_ROWS, options={"generation": 1})
def ok_retained_generation(m: Materials) -> DatasetSim:
    """An older generation, by its number."""
    return second_generation(m)


@ok(ALPHA_ROWS, options={"min_generation": 1, "min_revision": 1, "expect_dataset": "d0" * 16})
def ok_pins_hold(m: Materials) -> DatasetSim:
    """A dataset that is what was pinned."""
    return m.dataset("alpha")


@ok(ALPHA_ROWS, verify={"unlisted": ["data/" + "99" * 16 + ".parquet", "notes.txt"]})
def ok_unlisted_objects(m: Materials) -> DatasetSim:
    """Objects beside the listed ones are never read; `verify` names them."""
    sim = m.dataset("alpha")
    sim.objects["data/" + "99" * 16 + ".parquet"] = m.plaintext
    sim.objects["notes.txt"] = b"hello\n"
    return sim


@ok(
    ALPHA_ROWS,
    verify={
        "pending": [f"_encpipe/pending/{WRITER}/journal.json"],
        "unlisted": [f"data/{BETA}.parquet"],
    },
)
def ok_journal_left_over(m: Materials) -> DatasetSim:
    """A stopped write left its journal and a file."""
    sim = m.dataset("alpha")
    sim.objects[f"data/{BETA}.parquet"] = m.files["beta"].data
    kek = KEKS["footer"]
    journal = Journal(
        writer_id=WRITER,
        dataset_id="d0" * 16,
        base_core="",
        base_generation=0,
        created=CREATED,
        owner="host:1",
        footer_key="footer",
        keks=(KekRecord(kek.id, "footer", CREATED, bytes(32), "active"),),
        wrappings={kek.id: (m.wrapping(sim, "footer", "main"),)},
        digest=bytes(32),
    )
    sim.objects[f"_encpipe/pending/{WRITER}/journal.json"] = journal.as_bytes(kek.secret)
    return sim


_NO_PII = {"keyring": "footer-only", "trust": ["local:main"]}


@ok([{"id": r["id"]} for r in ALPHA_ROWS], columns=["id"], verify={"unchecked": ["pii"]}, **_NO_PII)
def ok_columns_of_the_keys_one_has(m: Materials) -> DatasetSim:
    """A reader without the column key reads the other columns."""
    return m.dataset("alpha")


@ok(
    [{"id": r["id"]} for r in ALPHA_ROWS],
    options={"on_missing_key": "skip"},
    verify={"unchecked": ["pii"]},
    **_NO_PII,
)
def ok_missing_key_skipped(m: Materials) -> DatasetSim:
    """`on_missing_key="skip"` leaves the column out."""
    return m.dataset("alpha")


@ok(
    [{"id": r["id"], "name": None} for r in ALPHA_ROWS],
    options={"on_missing_key": "null"},
    verify={"unchecked": ["pii"]},
    **_NO_PII,
)
def ok_missing_key_null(m: Materials) -> DatasetSim:
    """`on_missing_key="null"` makes the column null."""
    return m.dataset("alpha")


@ok([{"id": r["id"]} for r in ALPHA_ROWS], options={"on_missing_key": "skip"}, verify={"unchecked": ["pii"]})
def ok_shredded_key_skipped(m: Materials) -> DatasetSim:
    """The column key was shredded: its column is skipped on request."""
    sim = m.dataset("alpha")
    sim.core["keks"][1]["state"] = "shredded"
    sim.keys["wrappings"][KEKS["pii"].id] = []
    return sim
