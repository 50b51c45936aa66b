"""The journal of a stopped write: it reads back under its own key only, and an edited one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from specimen import CREATED, DATASET_ID, KEK_IDS, Specimen, dumps, record

from encpipe import journal as journals
from encpipe.config import Config
from encpipe.errors import EncpipeError, FormatError, ManifestError, StorageError
from encpipe.filelist import FileEntry
from encpipe.journal import Journal
from encpipe.keys import Secret, WrappedKey, new_id
from encpipe.records import Records
from encpipe.storage import Storage, open_storage

WRITER = "e" * 32
SIM = Specimen()
FOOTER_KEK = SIM.keks[KEK_IDS["footer"]]
JOURNAL = Journal(
    writer_id=WRITER,
    dataset_id=DATASET_ID,
    base_core="0f" * 32,
    base_generation=3,
    created=CREATED,
    owner="host:123",
    footer_key="footer",
    keks=tuple(record(name, SIM.keks[kek_id]) for name, kek_id in KEK_IDS.items()),
    wrappings=SIM.wrappings,
    digest=b"s" * 32,
)


@pytest.fixture
def storage() -> Iterator[Storage]:
    made = open_storage(f"memory://journal-{new_id()}", config=Config())
    yield made
    for info in list(made.list()):
        made.delete(info.path)


def entry(n: int = 1, **changes: Any) -> FileEntry:
    file_id = f"{n:032x}"
    values: dict[str, Any] = {
        "id": file_id,
        "path": f"data/{file_id}.parquet",
        "size": 10,
        "rows": 1,
        "row_groups": (1,),
        "partition": {"day": None},
        "sha256": b"h" * 32,
        "footer_commitment": b"f" * 32,
        "columns_commitment": b"c" * 32,
    }
    return FileEntry(**{**values, **changes})


def save(storage: Storage, journal: Journal = JOURNAL, folder: str = WRITER) -> None:
    storage.create(journals.journal_path(folder), journal.as_bytes(FOOTER_KEK))


# The journal itself


def test_what_was_written_reads_back(storage: Storage) -> None:
    save(storage)
    assert journals.load(storage, WRITER).open(FOOTER_KEK) == JOURNAL
    assert JOURNAL.folder == f"_encpipe/pending/{WRITER}/"
    assert JOURNAL.footer_kek_id == KEK_IDS["footer"]


def test_a_first_write_builds_on_nothing(storage: Storage) -> None:
    first = replace(JOURNAL, base_core="", base_generation=0)
    save(storage, first)
    assert journals.load(storage, WRITER).open(FOOTER_KEK) == first


def test_no_key_and_no_digest_stands_in_clear() -> None:
    data = JOURNAL.as_bytes(FOOTER_KEK)
    for secret in (*(kek.reveal() for kek in SIM.keks.values()), JOURNAL.digest):
        assert secret not in data
        assert secret.hex().encode() not in data


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(ManifestError, match="does not open") as refused:
        journals.parse(JOURNAL.as_bytes(FOOTER_KEK)).open(Secret(b"x" * 32))
    assert (refused.value.code, refused.value.hint) == ("journal", "start the write anew with --restart")


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another writer": lambda raw: raw.__setitem__("writer_id", "1" * 32),
    "another dataset": lambda raw: raw.__setitem__("dataset_id", "1" * 32),
    "another base": lambda raw: raw.__setitem__("base_core", "00" * 32),
    "no base": lambda raw: raw.__setitem__("base_core", ""),
    "another generation": lambda raw: raw.__setitem__("base_generation", 4),
    "another owner": lambda raw: raw.__setitem__("owner", "host:124"),
    "another time": lambda raw: raw.__setitem__("created", "2027-01-02T03:04:05Z"),
    "a KEK dropped": lambda raw: raw["keks"].pop(),
    "another commitment": lambda raw: raw["keks"][1].__setitem__("commitment", "00" * 32),
    "another state": lambda raw: raw["keks"][1].__setitem__("state", "shredded"),
    "a wrapping dropped": lambda raw: raw["wrappings"].pop(KEK_IDS["pii"]),
    "wrappings swapped": lambda raw: raw.__setitem__(
        "wrappings", dict(zip(raw["wrappings"], reversed(raw["wrappings"].values()), strict=True))
    ),
    "a field more": lambda raw: raw.__setitem__("later", 1),
    "another seal": lambda raw: raw.__setitem__("sealed", "A" * len(raw["sealed"])),
    "no seal": lambda raw: raw.__setitem__("sealed", ""),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_every_edit_is_noticed(edit: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(JOURNAL.as_bytes(FOOTER_KEK))
    edit(raw)
    with pytest.raises(ManifestError, match="does not open") as refused:
        journals.parse(dumps(raw)).open(FOOTER_KEK)
    assert refused.value.code == "journal"


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no format": lambda raw: raw.pop("format"),
    "a writer id that is a path": lambda raw: raw.__setitem__("writer_id", "../" + "e" * 29),
    "a base that is no digest": lambda raw: raw.__setitem__("base_core", "x"),
    "an owner that steers a terminal": lambda raw: raw.__setitem__("owner", "\x1b[2J"),
    "no KEK of the footer key": lambda raw: raw.__setitem__("footer_key", "other"),
    "a retired KEK of the footer key": lambda raw: raw["keks"][0].__setitem__("state", "retired"),
    "a shredded KEK of the footer key": lambda raw: raw["keks"][0].__setitem__("state", "shredded"),
    "a seal that is not base64url": lambda raw: raw.__setitem__("sealed", "="),
    "no seal": lambda raw: raw.pop("sealed"),
    "half a surrogate pair": lambda raw: raw.__setitem__("later", "\ud800"),
}


@pytest.mark.parametrize("edit", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_journal_is_refused(edit: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(JOURNAL.as_bytes(FOOTER_KEK))
    edit(raw)
    with pytest.raises(ManifestError) as refused:
        journals.parse(dumps(raw))
    assert refused.value.code == "journal"


def test_a_journal_of_a_newer_version_says_so() -> None:
    raw = json.loads(JOURNAL.as_bytes(FOOTER_KEK))
    raw["format"] = "encpipe/2"
    with pytest.raises(FormatError) as refused:
        journals.parse(dumps(raw))
    assert refused.value.code == "format-newer"


def test_a_journal_in_another_folder_is_refused(storage: Storage) -> None:
    save(storage, folder="1" * 32)
    with pytest.raises(ManifestError, match="another writer's folder"):
        journals.load(storage, "1" * 32)


def test_what_could_not_be_resumed_is_not_begun() -> None:
    bad = {KEK_IDS["footer"]: (WrappedKey("memory:a b", b"x", "", CREATED),)}
    with pytest.raises(EncpipeError, match="cannot be recorded") as refused:
        replace(JOURNAL, wrappings=bad).as_bytes(FOOTER_KEK)
    assert refused.value.code == "unsupported"


# Records


def test_records_read_back_by_their_number(storage: Storage) -> None:
    records = Records(storage, JOURNAL, FOOTER_KEK)
    for n in (0, 2, 11):
        records.add(n, entry(n + 1))
    assert sorted(records.numbers()) == [0, 2, 11]
    assert [records.read(n, ("day",)) for n in (0, 2, 11)] == [entry(1), entry(3), entry(12)]


def test_records_cannot_be_exchanged(storage: Storage) -> None:
    records = Records(storage, JOURNAL, FOOTER_KEK)
    records.add(0, entry(1))
    moved = storage.read(f"{JOURNAL.folder}0.sealed", limit=1 << 20)
    other = replace(JOURNAL, writer_id="1" * 32)
    storage.create(f"{JOURNAL.folder}1.sealed", moved)
    storage.create(f"{other.folder}0.sealed", moved)
    foreign = replace(JOURNAL, dataset_id="1" * 32)
    for journal, kek, n in (
        (JOURNAL, FOOTER_KEK, 1),
        (other, FOOTER_KEK, 0),
        (foreign, FOOTER_KEK, 0),
        (JOURNAL, Secret(b"x" * 32), 0),
    ):
        with pytest.raises(ManifestError, match="does not open") as refused:
            Records(storage, journal, kek).read(n, ("day",))
        assert refused.value.code == "journal"


def test_an_edited_or_cut_record_is_refused(storage: Storage) -> None:
    records = Records(storage, JOURNAL, FOOTER_KEK)
    records.add(0, entry())
    sealed = storage.read(f"{JOURNAL.folder}0.sealed", limit=1 << 20)
    for damaged in (b"", sealed[:-1], sealed[:-1] + bytes([sealed[-1] ^ 1])):
        storage.delete(f"{JOURNAL.folder}0.sealed")
        storage.create(f"{JOURNAL.folder}0.sealed", damaged)
        with pytest.raises(ManifestError, match="record 0"):
            records.read(0, ("day",))


NAMES = [
    "lock",
    "journal.json",
    "x.sealed",
    ".sealed",
    "-1.sealed",
    "01.sealed",
    "1e3.sealed",
    "\u0661.sealed",
    "9" * 30 + ".sealed",
    "deep/3.sealed",
    "5.sealed.tmp",
]


def test_objects_of_other_names_are_no_records(storage: Storage) -> None:
    for name in NAMES:
        storage.create(f"{JOURNAL.folder}{name}", b"x")
    records = Records(storage, JOURNAL, FOOTER_KEK)
    records.add(4, entry())
    assert list(records.numbers()) == [4]


UNREADABLE: dict[str, dict[str, Any]] = {
    "a path that is too long": {"path": "a" * 300 + f"/{1:032x}.parquet"},
    "more row groups than Parquet can seal": {"rows": 32_768, "row_groups": (1,) * 32_768},
    "rows that do not add up": {"rows": 2},
}


@pytest.mark.parametrize("changes", UNREADABLE.values(), ids=UNREADABLE)
def test_an_entry_that_no_list_could_hold_is_refused_at_once(
    storage: Storage, changes: dict[str, Any]
) -> None:
    records = Records(storage, JOURNAL, FOOTER_KEK)
    with pytest.raises(EncpipeError, match="cannot hold") as refused:
        records.add(0, entry(**changes))
    assert refused.value.code == "unsupported"
    assert list(records.numbers()) == []


# The folder of journals


def test_writers_are_those_with_a_journal(storage: Storage) -> None:
    assert journals.writers(storage) == []
    save(storage)
    storage.create(f"_encpipe/pending/{'1' * 32}/0.sealed", b"x")
    storage.create("_encpipe/pending/journal.json", b"x")
    storage.create("_encpipe/pending/no-writer/journal.json", b"x")
    storage.create(f"_encpipe/pending/{'2' * 32}/deep/journal.json", b"x")
    assert journals.writers(storage) == [WRITER]


def test_a_journal_goes_with_its_records_and_files_and_nothing_else(storage: Storage) -> None:
    save(storage)
    Records(storage, JOURNAL, FOOTER_KEK).add(0, entry())
    for path in ("data/1.parquet", "data/2.parquet", journals.lock_path(WRITER)):
        storage.create(path, b"x")
    assert journals.still_there(storage, WRITER)
    journals.remove(storage, WRITER, ["data/1.parquet"])
    assert not journals.still_there(storage, WRITER)
    left = [info.path for info in storage.list()]
    assert left == [journals.lock_path(WRITER), "data/2.parquet"]


def test_the_journal_goes_before_what_it_names(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    save(storage)
    Records(storage, JOURNAL, FOOTER_KEK).add(0, entry())
    gone: list[str] = []
    monkeypatch.setattr(storage, "delete", gone.append)
    journals.remove(storage, WRITER, ["data/1.parquet"])
    assert gone[:2] == [journals.journal_path(WRITER), "data/1.parquet"]


def test_an_outage_does_not_look_like_a_journal_that_is_gone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> int:
        raise StorageError("no answer", code="storage-unavailable")

    monkeypatch.setattr(storage, "size", fail)
    with pytest.raises(StorageError, match="no answer"):
        journals.still_there(storage, WRITER)


def test_a_journal_that_is_gone_or_huge_is_a_storage_error(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError) as refused:
        journals.load(storage, WRITER)
    assert refused.value.code == "not-found"
    save(storage)
    monkeypatch.setattr(journals, "MAX_JOURNAL_BYTES", 10)
    with pytest.raises(StorageError):
        journals.load(storage, WRITER)
