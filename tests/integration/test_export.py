"""Decrypting into plaintext files: what was encrypted comes out, only where told, whole or not at all."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import steps
from scene import PII, Scene, ended, forked, ids, people, save

from encpipe import ConfigError, EncpipeError, IntegrityError, Policy, StorageError, UntrustedKeyError
from encpipe.export import MARKER, DecryptReport
from encpipe.scan import Scan


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "dataset"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "plain"


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_source_comes_out_again(scene: Scene, tmp_path: Path, target: Path) -> None:
    field = pa.field("when", pa.timestamp("us", "UTC"), nullable=False, metadata={"unit": "us"})
    table = people().append_column(field, pa.array(range(6), field.type))
    table = table.append_column("nested", pa.array([[{"a": n}] for n in range(6)]))
    table = table.append_column("kind", pa.array(["x", "y", None] * 2).dictionary_encode())
    table = table.replace_schema_metadata({"origin": "here"})
    source = save(tmp_path / "source", table, table.slice(2, 3))
    scene.write(source, policy=PII)
    report = scene.decrypt(target)
    assert isinstance(report, DecryptReport)
    assert (report.files, report.rows, report.generation, report.missing_keys) == (2, 9, 1, ())
    assert report.bytes_out == sum(path.stat().st_size for path in target.iterdir())
    for given, plain in zip(sorted(source.iterdir()), sorted(target.iterdir()), strict=True):
        one, other = pq.ParquetFile(given), pq.ParquetFile(plain)
        assert other.read().equals(one.read())
        assert other.schema_arrow.equals(one.schema_arrow, check_metadata=True)
        groups = [[f.metadata.row_group(n).num_rows for n in range(f.num_row_groups)] for f in (one, other)]
        assert groups[0] == groups[1]


def test_hive_folders_come_out_again(scene: Scene, tmp_path: Path, target: Path) -> None:
    tree = tmp_path / "tree"
    for year, who in ((2025, "a b"), (2026, "x%2Fy"), (2026, "__HIVE_DEFAULT_PARTITION__")):
        save(tree / f"year={year}" / f"who={who}", people(year, 3))
    scene.write(tree, policy=Policy(plaintext_partitions=("year",)))
    scene.decrypt(target)
    given, plain = pq.read_table(tree), pq.read_table(target)
    assert sorted(map(str, plain.to_pylist())) == sorted(map(str, given.to_pylist()))
    assert plain.schema.equals(given.schema)
    assert {str(Path(path).parent) for path in files(target)} == {
        "year=2025/who=a%20b",
        "year=2026/who=x%2Fy",
        "year=2026/who=__HIVE_DEFAULT_PARTITION__",
    }


def test_chosen_columns_and_rows(scene: Scene, tmp_path: Path, target: Path) -> None:
    scene.write(save(tmp_path / "source", people(0), people(6), people(12)))
    report = scene.decrypt(target, columns=["id"], filter=[("id", ">", 9)])
    assert (report.files, report.rows) == (2, 8)
    assert files(target) == ["part-00001.parquet", "part-00002.parquet"]
    assert pq.read_table(target).to_pydict() == {"id": list(range(10, 18))}


def test_partition_columns_alone(scene: Scene, tmp_path: Path, target: Path) -> None:
    """A file without columns would lose its rows."""
    save(tmp_path / "tree" / "p=1", people())
    scene.write(tmp_path / "tree")
    with pytest.raises(ConfigError) as refused:
        scene.decrypt(target, columns=["p"])
    assert refused.value.code == "filter"
    assert not target.exists()


@pytest.mark.parametrize("outcome", ["error", "skip", "null"])
def test_without_a_column_key(scene: Scene, target: Path, outcome: Any) -> None:
    scene.write(people())
    reader = scene.knowing("footer")
    if outcome == "error":
        with pytest.raises(UntrustedKeyError):
            reader.decrypt(target)
        assert not target.exists()
        assert reader.decrypt(target, columns=["id"]).rows == 6
        return
    assert reader.decrypt(target, on_missing_key=outcome).missing_keys == ("pii",)
    plain = pq.read_table(target)
    assert ids(plain) == list(range(6))
    assert plain.schema.names == (["id"] if outcome == "skip" else ["id", "name"])


def test_a_folder_that_is_not_empty_is_refused(scene: Scene, target: Path) -> None:
    scene.write(people())
    target.mkdir()
    (target / ".hidden").write_text("mine")
    with pytest.raises(ConfigError) as refused:
        scene.decrypt(target)
    assert refused.value.code == "exists"
    assert files(target) == [".hidden"]


@pytest.mark.parametrize("place", ["dataset", "dataset/plain", "dataset/../dataset/data"])
def test_plaintext_does_not_go_into_the_dataset(scene: Scene, tmp_path: Path, place: str) -> None:
    scene.write(people())
    before = scene.objects()
    with pytest.raises(ConfigError):
        scene.decrypt(tmp_path / place)
    assert scene.objects() == before


def test_a_damaged_file_leaves_no_plaintext(scene: Scene, tmp_path: Path, target: Path) -> None:
    big = [people(n, 40_000) for n in (0, 40_000)]
    scene.write(save(tmp_path / "source", *big, row_group=10_000))
    entry = scene.open().files[1]
    path = scene.folder / entry.path
    good = path.read_bytes()
    data = bytearray(good)
    data[entry.size * 3 // 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        scene.decrypt(target, workers=1)
    assert caught.value.code == "file-damaged"
    assert files(target) == []
    path.write_bytes(good)
    assert scene.decrypt(target).rows == 80_000


def test_ctrl_c_leaves_no_plaintext(scene: Scene, tmp_path: Path, target: Path) -> None:
    scene.write(save(tmp_path / "source", *(people(6 * n) for n in range(8))))
    arrived, main = threading.Event(), threading.get_ident()
    at_work: list[list[str]] = []

    def interrupted(*_: object) -> None:
        arrived.set()
        raise KeyboardInterrupt

    def press(now: Any) -> None:
        if now.files_done == 3 and not at_work:
            at_work.append(files(target))
            signal.pthread_kill(main, signal.SIGINT)
            assert arrived.wait(30)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            scene.decrypt(target, workers=2, progress=press)
    finally:
        signal.signal(signal.SIGINT, before)
    assert MARKER in at_work[0]
    assert len(at_work[0]) > 3
    assert files(target) == []
    assert scene.decrypt(target).rows == 48


def test_a_killed_decryption_is_marked(
    scene: Scene, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(save(tmp_path / "source", people(0), people(6)))
    log = steps.install(monkeypatch)

    def die(now: int, step: str) -> None:
        if step == "publish part-00001.parquet":
            os.kill(os.getpid(), signal.SIGKILL)

    log.before = die
    assert ended(forked(lambda: scene.decrypt(target, workers=1))) == -signal.SIGKILL
    log.before = lambda n, step: None
    assert {"part-00000.parquet", MARKER} <= set(files(target))
    left = files(target)
    with pytest.raises(ConfigError, match="unfinished decryption") as refused:
        scene.decrypt(target)
    assert refused.value.code == "exists"
    assert "remove the folder" in refused.value.hint
    assert files(target) == left


def test_only_files_of_the_failed_run_are_removed(scene: Scene, tmp_path: Path, target: Path) -> None:
    scene.write(save(tmp_path / "source", *(people(6 * n) for n in range(3))))

    def meddle(now: Any) -> None:
        (target / "mine.txt").write_text("mine")
        (target / "part-00002.parquet").write_text("mine")

    with pytest.raises(StorageError) as refused:
        scene.decrypt(target, workers=1, progress=meddle)
    assert refused.value.code == "exists"
    assert files(target) == ["mine.txt", "part-00002.parquet"]
    assert (target / "part-00002.parquet").read_text() == "mine"


def test_plaintext_that_cannot_be_removed_is_told_and_marked(
    scene: Scene, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(save(tmp_path / "source", people(0), people(6)))
    log = steps.install(monkeypatch)

    def refuse(now: int, step: str) -> None:
        if step.startswith(("delete", "publish part-00001")):
            raise StorageError("gone", hint="try later", code="storage-unavailable")

    log.before = refuse
    with pytest.raises(StorageError) as failed:
        scene.decrypt(target, workers=1)
    assert failed.value.hint.startswith("try later; plaintext is left in ")
    assert files(target) == [MARKER, "part-00000.parquet"]


def test_a_full_target_is_an_error_of_ours(
    scene: Scene, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people())
    log = steps.install(monkeypatch)
    log.wrap_output = lambda stream: _Full()
    with pytest.raises(StorageError) as full:
        scene.decrypt(target)
    assert full.value.code == "storage-full"
    assert files(target) == []
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("encpipe-scan")]
    assert threads == [], "an error that is kept keeps none"


class _Full:
    def write(self, data: Any) -> int:
        raise StorageError("no space", code="storage-full")


def test_a_wrong_pin_or_generation_writes_nothing(scene: Scene, target: Path) -> None:
    scene.write(people())
    for pin in ({"min_generation": 2}, {"expect_dataset": "0" * 32}):
        with pytest.raises(EncpipeError) as refused:
            scene.decrypt(target, **pin)
        assert refused.value.code == "stale"
    assert not target.exists()


def test_progress_and_workers(scene: Scene, tmp_path: Path, target: Path) -> None:
    scene.write(save(tmp_path / "source", *(people(6 * n) for n in range(8))))
    seen: list[Any] = []
    scene.decrypt(target, workers=4, progress=seen.append)
    assert (seen[-1].files_done, seen[-1].rows_done) == (8, 48)
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert ids(pq.read_table(target)) == list(range(48))
    assert [path.name for path in sorted(target.iterdir())] == [f"part-{n:05}.parquet" for n in range(8)]


def test_a_row_group_is_written_before_the_next_but_one_is_read(
    scene: Scene, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the file, only a few row groups are in memory."""
    scene.write(save(tmp_path / "source", people(0, 40), row_group=4))
    order: list[str] = []
    tables = Scan.tables

    def watched(scan: Scan) -> Any:
        for table in tables(scan):
            order.append("read")
            yield table

    monkeypatch.setattr(Scan, "tables", watched)
    scene.decrypt(target, progress=lambda now: order.append("written"))
    assert order.count("read") == 10
    assert order.index("written") <= 2
