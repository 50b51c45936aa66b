"""Vectors whose data files are not what was committed."""

from __future__ import annotations

import struct

from cases_ok import second_generation
from materials import ALPHA_ROWS, Materials
from registry import bad_file, ok
from simulation import DatasetSim, SimFile

_HASH = {"problems": ["file-hash"]}
"""`verify --deep` compares the SHA-256 first."""


def _stored(m: Materials, data: bytes, *, listed: str = "alpha") -> DatasetSim:
    """The list names `listed`; these bytes are stored in its place."""
    sim = m.dataset(listed)
    sim.objects[sim.paths[0]] = data
    return sim


def _padded_entry(m: Materials, name: str, *, listed: str = "alpha") -> DatasetSim:
    """The file `name` in the place of `listed`, as if it had just the committed size."""
    sim = _stored(m, m.files[name].data, listed=listed)
    sim.file_list["files"][0]["bytes"] = len(m.files[name].data)
    return sim


def _forged(m: Materials, name: str) -> DatasetSim:
    """A forged file with its own entry (see `simulation.files`), but for the SHA-256."""
    sim = m.dataset()
    file = m.files[name]
    sim.add_file(SimFile(file.data, {**file.entry, "sha256": m.files["alpha"].entry["sha256"]}))
    return sim


@bad_file("IntegrityError", "file-missing")
def file_missing(m: Materials) -> DatasetSim:
    """A listed file is gone."""
    sim = m.dataset("alpha", "beta")
    del sim.objects[sim.paths[1]]
    return sim


@bad_file("IntegrityError", "file-size")
def file_truncated(m: Materials) -> DatasetSim:
    """A file lacks its last bytes."""
    return _stored(m, m.files["alpha"].data[:-100])


@bad_file("IntegrityError", "file-size")
def file_empty(m: Materials) -> DatasetSim:
    """A file has no bytes."""
    return _stored(m, b"")


@bad_file("IntegrityError", "file-size")
def file_longer(m: Materials) -> DatasetSim:
    """Bytes were added at the end of a file."""
    return _stored(m, m.files["alpha"].data + b"PARE")


@bad_file("UnwrapError", "unwrap", verify={"problems": ["unwrap", "unwrap"]})
def files_swapped(m: Materials) -> DatasetSim:
    """Two files of one generation and of the same size in each other's place."""
    sim = m.dataset("alpha", "beta")
    first, second = sim.paths
    sim.objects[first], sim.objects[second] = sim.objects[second], sim.objects[first]
    return sim


@bad_file("UnwrapError", "unwrap")
def file_rolled_back(m: Materials) -> DatasetSim:
    """The file of generation 1 in the place of one that came with generation 2."""
    sim = second_generation(m)
    old, new = sim.paths
    sim.objects[new] = sim.objects[old]
    return sim


@bad_file("UnwrapError", "dek-commitment")
def file_sealed_again(m: Materials) -> DatasetSim:
    """The same rows under the same file id and KEKs with fresh DEKs: not the file that was committed."""
    return _padded_entry(m, "alpha-again")


@bad_file("UnwrapError", "unwrap")
def file_of_other_dataset(m: Materials) -> DatasetSim:
    """A file of another dataset with its own KEKs."""
    return _padded_entry(m, "of-other-dataset")


@bad_file("UnwrapError", "unwrap")
def file_under_guessed_keks(m: Materials) -> DatasetSim:
    """A file that names the right KEKs and was made with others."""
    return _padded_entry(m, "guessed-keks")


@bad_file("IntegrityError", "file-size")
def file_plaintext(m: Materials) -> DatasetSim:
    """A plaintext Parquet file in the place of a sealed one."""
    return _stored(m, m.plaintext)


@bad_file("PlaintextFileError", "plaintext-file")
def file_plaintext_same_size(m: Materials) -> DatasetSim:
    """The same, padded to the committed size."""
    return _stored(m, m.plaintext_same_size)


@bad_file("PlaintextFileError", "plaintext-file")
def file_plaintext_behind_sealed_magic(m: Materials) -> DatasetSim:
    """The same, with the first magic of a sealed file."""
    return _stored(m, b"PARE" + m.plaintext_same_size[4:])


@bad_file("IntegrityError", "file-damaged")
def file_plaintext_between_sealed_magics(m: Materials) -> DatasetSim:
    """The same, with both magics of a sealed file."""
    return _stored(m, b"PARE" + m.plaintext_same_size[4:-4] + b"PARE")


@bad_file("IntegrityError", "file-rows")
def file_row_group_removed(m: Materials) -> DatasetSim:
    """A KEK holder rewrote the file with one row group less, under the committed DEKs."""
    return _forged(m, "row-group-removed")


def _flipped(m: Materials, position: int) -> DatasetSim:
    sim = m.dataset("alpha")
    sim.flip(sim.paths[0], position)
    return sim


def footer_start(data: bytes) -> int:
    """Where the footer (key material, then the sealed metadata) begins."""
    (length,) = struct.unpack("<I", data[-8:-4])
    return len(data) - 8 - int(length)


@bad_file("IntegrityError", "file-damaged", verify=_HASH)
def file_page_flipped(m: Materials) -> DatasetSim:
    """One byte of the first page is changed."""
    return _flipped(m, 4 + 4 + 12 + 3)


@bad_file("IntegrityError", "file-damaged", verify=_HASH)
def file_last_page_flipped(m: Materials) -> DatasetSim:
    """One byte of the last page is changed."""
    return _flipped(m, footer_start(m.files["alpha"].data) - 1)


@bad_file("IntegrityError", "file-damaged")
def file_footer_flipped(m: Materials) -> DatasetSim:
    """One byte of the sealed footer is changed."""
    return _flipped(m, -8 - 16 - 5)


@bad_file("IntegrityError", "file-damaged")
def file_footer_length_flipped(m: Materials) -> DatasetSim:
    """The footer length is changed."""
    return _flipped(m, -7)


@bad_file("IntegrityError", "file-damaged")
def file_first_magic_flipped(m: Materials) -> DatasetSim:
    """The first magic is changed."""
    return _flipped(m, 0)


@bad_file("IntegrityError", "file-damaged")
def file_last_magic_flipped(m: Materials) -> DatasetSim:
    """The last magic is changed."""
    return _flipped(m, -1)


def _footer_material(m: Materials, old: bytes, new: bytes) -> DatasetSim:
    data = m.files["alpha"].data
    assert len(old) == len(new)
    start = data.index(old, footer_start(data))
    return _stored(m, data[:start] + new + data[start + len(old) :])


@bad_file("UnwrapError", "unwrap")
def file_wrapped_dek_edited(m: Materials) -> DatasetSim:
    """A character of the footer DEK's wrapping is changed."""
    data = m.files["alpha"].data
    key = b'"wrappedDEK":"'
    start = data.index(key, footer_start(data)) + len(key)
    old = data[start : start + 60]
    return _footer_material(m, old, old[:-1] + (b"A" if old[-1:] != b"A" else b"B"))


@bad_file("UnwrapError", "unwrap")
def file_of_other_key_id(m: Materials) -> DatasetSim:
    """The footer names the other key name's KEK."""
    return _footer_material(m, b"footer." + b"f0" * 16, b"pii." + b"71" * 16 + b"   ")


@bad_file("UnwrapError", "unwrap")
def file_of_unknown_key_id(m: Materials) -> DatasetSim:
    """The footer names a KEK that the dataset does not have."""
    return _footer_material(m, b"footer." + b"f0" * 16, b"footer." + b"f1" * 16)


@bad_file("IntegrityError", "file-damaged", verify=_HASH)
def file_chunks_swapped(m: Materials) -> DatasetSim:
    """Two bytes runs of the file's two row groups in each other's place: pages are bound to theirs."""
    data = m.files["alpha"].data
    half = footer_start(data) // 2
    first, second = data[4 : 4 + 60], data[half : half + 60]
    return _stored(m, data[:4] + second + data[64:half] + first + data[half + 60 :])


# Files rewritten by someone who holds the footer KEK and not the column KEK. `simulation.files` says how.


@bad_file("IntegrityError", "file-foreign", verify=_HASH)
def file_column_rewritten_in_clear(m: Materials) -> DatasetSim:
    """The column of the other key is in clear within the sealed footer."""
    return _forged(m, "pii-in-clear")


@ok([{"id": r["id"]} for r in ALPHA_ROWS], columns=["id"], verify=_HASH)
def file_column_rewritten_in_clear_not_read(m: Materials) -> DatasetSim:
    """The same, and that column is not read: what is read is what was committed."""
    return _forged(m, "pii-in-clear")


@bad_file("IntegrityError", "file-foreign", verify=_HASH)
def file_columns_rewritten_under_footer_dek(m: Materials) -> DatasetSim:
    """All columns under the footer's own DEK, which Parquet allows."""
    return _forged(m, "pii-under-footer-dek")


@bad_file("UnwrapError", "dek-commitment", verify=_HASH)
def file_column_rewritten_under_footer_kek(m: Materials) -> DatasetSim:
    """The column has a DEK of the forger's, wrapped under the footer KEK."""
    return _forged(m, "pii-under-footer-kek")


@bad_file("UnwrapError", "unwrap", verify=_HASH)
def file_column_rewritten_under_guessed_kek(m: Materials) -> DatasetSim:
    """The column has a DEK of the forger's, wrapped under a KEK of the forger's that bears the right id."""
    return _forged(m, "pii-under-guessed-kek")


@bad_file("IntegrityError", "file-foreign", verify={"problems": ["file-foreign"]})
def file_column_added(m: Materials) -> DatasetSim:
    """A KEK holder added a column."""
    return _forged(m, "added-column")


@bad_file("IntegrityError", "file-foreign", verify={"problems": ["file-foreign"]})
def file_nullability_changed(m: Materials) -> DatasetSim:
    """Columns are required instead of optional: committed pages of theirs would decode to something else."""
    return _forged(m, "other-nullability")


@bad_file("IntegrityError", "file-foreign", verify={"problems": ["file-foreign"]})
def file_without_column_deks(m: Materials) -> DatasetSim:
    """One DEK for the whole file in a dataset with a column key, and the list commits to it."""
    return m.dataset("one-dek")
