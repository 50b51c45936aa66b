"""Vectors whose files are under KEKs of their partitions."""

from __future__ import annotations

import pyarrow as pa
from materials import ALPHA, ALPHA_ROWS, BETA_ROWS, KEKS, PARTITION_KEKS, SCHEMA, Materials, secret, to_text
from registry import bad_file, ok, refused
from simulation import DatasetSim, Kek

from encpipe import aead

ROWS = [{**row, "day": "mon"} for row in ALPHA_ROWS] + [{**row, "day": "tue"} for row in BETA_ROWS]


def by_day(m: Materials) -> DatasetSim:
    """Two files, each under the KEKs of its day."""
    sim = m.dataset(schema=pa.schema([*SCHEMA, ("day", pa.string())]))
    sim.file_list["partitions"] = ["day"]
    for day, file in (("mon", "of-monday"), ("tue", "of-tuesday")):
        for name, kek in PARTITION_KEKS[day].items():
            sim.add_partition_kek(name, kek, day=day)
        sim.add_file(m.files[file], day=day)
        sim.file_list["files"][-1]["partition_keks"] = [kek.id for kek in PARTITION_KEKS[day].values()]
    return sim


@ok(ROWS)
def ok_partition_keks(m: Materials) -> DatasetSim:
    """Each partition has a KEK for each key name, wrapped in the list under that key name's KEK."""
    return by_day(m)


@ok(
    [{"id": row["id"], "day": row["day"]} for row in ROWS],
    keyring="footer-only",
    trust=["local:main"],
    options={"on_missing_key": "skip"},
    verify={"unchecked": ["pii"]},
)
def ok_partition_keks_of_the_keys_one_has(m: Materials) -> DatasetSim:
    """Who cannot have the KEK of a key name has none of its partitions either, and reads the rest."""
    return by_day(m)


@ok(ROWS[4:], verify={"unlisted": [f"data/{ALPHA}.parquet"]})
def ok_partition_shredded(m: Materials) -> DatasetSim:
    """The files and KEKs of one partition are out of the list; one of the files is still there."""
    sim = by_day(m)
    del sim.file_list["files"][0]
    del sim.file_list["partition_keks"][:2]
    return sim


@refused("FormatError", "format-newer")
def partition_keks_and_more_required(m: Materials) -> DatasetSim:
    """Besides partition KEKs something is required that this version does not know."""
    sim = by_day(m)
    sim.core["requires"].append("deletion-vectors")
    return sim


@refused("ManifestError", "file-list")
def partition_keks_not_required(m: Materials) -> DatasetSim:
    """The core does not say that there are partition KEKs."""
    sim = by_day(m)
    sim.core["requires"] = []
    return sim


@refused("ManifestError", "file-list")
def partition_kek_gone(m: Materials) -> DatasetSim:
    """A file names a partition KEK that the list does not have."""
    sim = by_day(m)
    del sim.file_list["partition_keks"][1]
    return sim


@refused("ManifestError", "file-list")
def partition_kek_of_other_parent(m: Materials) -> DatasetSim:
    """A partition KEK names another KEK as the one that wraps it."""
    sim = by_day(m)
    sim.file_list["partition_keks"][1]["parent"] = KEKS["footer"].id
    return sim


@refused("ManifestError", "file-list")
def file_under_keks_of_other_partition(m: Materials) -> DatasetSim:
    """A file is said to be of Tuesday, and under Monday's KEKs: its rows would be taken for Tuesday's."""
    sim = by_day(m)
    sim.file_list["files"][0]["partition"] = {"day": "tue"}
    return sim


@bad_file("UnwrapError", "unwrap")
def file_listed_in_other_partition(m: Materials) -> DatasetSim:
    """The same, and the list names Tuesday's KEKs: the file does not use them."""
    sim = file_under_keks_of_other_partition(m)
    sim.file_list["files"][0]["partition_keks"] = [kek.id for kek in PARTITION_KEKS["tue"].values()]
    return sim


@bad_file("UnwrapError", "unwrap")
def partition_kek_said_to_be_of_other_partition(m: Materials) -> DatasetSim:
    """A holder of the footer KEK moves a file with its KEKs to another partition. He can wrap that of the
    footer anew, but not the one of the column key."""
    sim = by_day(m)
    sim.file_list["files"][0]["partition"] = {"day": "wed"}
    _, pii, *others = sim.file_list["partition_keks"]
    sim.file_list["partition_keks"] = others
    sim.add_partition_kek("footer", PARTITION_KEKS["mon"]["footer"], day="wed")
    sim.file_list["partition_keks"].append({**pii, "partition": {"day": "wed"}})
    return sim


@bad_file("UnwrapError", "unwrap")
def partition_kek_edited(m: Materials) -> DatasetSim:
    """One bit of a wrapped partition KEK is flipped."""
    sim = by_day(m)
    wrapped = bytearray(aead.from_text(sim.file_list["partition_keks"][1]["wrapped"]))
    wrapped[20] ^= 1
    sim.file_list["partition_keks"][1]["wrapped"] = to_text(bytes(wrapped))
    return sim


@bad_file("UnwrapError", "unwrap")
def partition_kek_under_guessed_parent(m: Materials) -> DatasetSim:
    """A holder of the footer KEK alone puts in a KEK of the column key that he made himself."""
    sim = by_day(m)
    sim.keks["pii"] = Kek(KEKS["pii"].id, secret("guessed pii KEK"))
    own = Kek(PARTITION_KEKS["mon"]["pii"].id, secret("own partition KEK"))
    sim.add_partition_kek("pii", own, day="mon")
    sim.file_list["partition_keks"][1] = sim.file_list["partition_keks"].pop()
    sim.keks["pii"] = KEKS["pii"]
    return sim


@bad_file("UnwrapError", "kek-commitment")
def partition_kek_of_other_commitment(m: Materials) -> DatasetSim:
    """A partition KEK is not the committed one."""
    sim = by_day(m)
    sim.file_list["partition_keks"][1]["commitment"] = "ab" * 32
    return sim
