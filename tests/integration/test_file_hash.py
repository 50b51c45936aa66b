"""`integrity="file-hash"`: against those who hold a dataset's keys and write its storage."""

from __future__ import annotations

import copy
import pickle
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scene import Scene, ended, forked, ids, people, save

import encpipe
from encpipe import Config, ConfigError, EncpipeError, IntegrityError, Policy, StorageError, wholefiles
from encpipe.deks import unwrap_dek
from encpipe.wholefiles import WholeFiles, open_at_once

DATA_PAGE, DICTIONARY_PAGE = 2, 3
ROWS = list(range(6))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Two files, one DEK each."""
    scene = Scene(str(tmp_path / "dataset"), config=Config(keys={"footer": ("memory:main",)}))
    source = save(tmp_path / "source", people(), people(10))
    scene.write(source, policy=Policy(), compression="none")
    return scene


def first_file(scene: Scene) -> Path:
    with scene.open() as dataset:
        return scene.folder / dataset.files[0].path


def modules(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Position and bytes (nonce, ciphertext, tag) of what is sealed before the footer."""
    position, (footer,) = 4, struct.unpack("<I", data[-8:-4])
    while position < len(data) - 8 - footer:
        (length,) = struct.unpack("<I", data[position : position + 4])
        yield position + 4, data[position + 4 : position + 4 + length]
        position += 4 + length


def forge(scene: Scene, old: bytes, new: bytes) -> None:
    """What a KEK holder can do: open pages of the first file, change a value, seal them under the same DEK.

    The specification of Parquet Modular Encryption, "AAD": file identifier || module type || row group ||
    column || page.
    """
    with scene.open() as dataset:
        entry, state = dataset.files[0], dataset._state
        path = scene.folder / entry.path
        kek_id = state.view.core.footer_kek.id
        kek = state.keys.kek(kek_id)
    data = bytearray(path.read_bytes())
    (footer,) = struct.unpack("<I", data[-8:-4])
    crypto = bytes(data[-8 - footer :])
    assert crypto[:4] == b"\x1c\x1c\x28\x08"  # thrift: AES_GCM_V1, aad_file_unique of 8 bytes
    wrapped = re.search(rb'"wrappedDEK":"([^"]+)"', crypto)
    assert wrapped
    dek = unwrap_dek(kek, wrapped[1].decode(), file_id=entry.id, key_id=f"footer.{kek_id}")
    forged = 0
    for position, sealed in list(modules(bytes(data))):
        for kind in (DATA_PAGE, DICTIONARY_PAGE):
            for column in range(2):
                aad = crypto[4:12] + bytes([kind]) + struct.pack("<hh", 0, column)
                aad += struct.pack("<h", 0) if kind == DATA_PAGE else b""
                try:
                    page = AESGCM(dek).decrypt(sealed[:12], sealed[12:], aad)
                except InvalidTag:
                    continue
                if old in page:
                    again = AESGCM(dek).encrypt(sealed[:12], page.replace(old, new), aad)
                    data[position + 12 : position + len(sealed)] = again
                    forged += 1
    assert forged
    path.write_bytes(data)


def refused(scene: Scene, **more: Any) -> None:
    with pytest.raises(IntegrityError) as caught:
        scene.table(integrity="file-hash", **more)
    assert caught.value.code == "file-hash"
    assert "data/" in caught.value.message


def test_a_page_sealed_again_by_a_key_holder_is_noticed_by_its_file_alone(scene: Scene) -> None:
    forge(scene, b"name 3", b"name 9")
    assert scene.table()["name"].to_pylist()[3] == "name 9"  # what this is for: every key fits
    refused(scene)
    refused(scene, columns=["id"])
    (problem,) = scene.verify().problems
    assert problem.code == "file-hash"


def test_files_that_are_as_committed_read_as_ever(scene: Scene) -> None:
    with scene.open(integrity="file-hash") as dataset:
        assert ids(dataset.to_table()) == [*ROWS, *range(10, 16)]
        assert ids(dataset.to_table(filter=pc.field("id") > 12)) == [13, 14, 15]
        assert dataset.count_rows(pc.field("name") == "name 3") == 1
        assert pa.table(dataset).num_rows == 12


def test_only_touched_files_are_read(scene: Scene) -> None:
    forge(scene, b"name 3", b"name 9")
    with scene.open(integrity="file-hash") as dataset:
        assert ids(dataset.scan(files=dataset.files[1:]).to_table()) == list(range(10, 16))


def test_a_file_that_is_changed_after_the_check_changes_nothing(scene: Scene) -> None:
    path = first_file(scene)
    with scene.open(integrity="file-hash") as dataset, dataset.scan(threads=1).row_groups() as groups:
        before = groups.read(0)
        path.write_bytes(bytes(path.stat().st_size))  # in place, under the open file
        assert groups.read(0).equals(before)
        assert len(groups.read(1)) == 2


def test_a_file_is_read_once_however_many_threads_want_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    checked = wholefiles._checked

    def counted(entry: Any, source: Any) -> Any:
        reads.append(entry.path)
        return checked(entry, source)

    monkeypatch.setattr(wholefiles, "_checked", counted)
    with scene.open(integrity="file-hash") as dataset, dataset.scan(threads=4).row_groups() as groups:
        barrier = threading.Barrier(8)

        def read() -> None:
            barrier.wait()
            groups.read(0)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(reads) == 1


def test_what_no_handle_reads_is_let_go(scene: Scene) -> None:
    with scene.open(integrity="file-hash") as dataset:
        assert dataset._data.whole is not None
        held = dataset._data.whole._process.get().buffers
        with dataset.scan(threads=1).row_groups() as groups:
            groups.read(0)
            assert list(held) == [dataset.files[0].path]
        assert list(held) == []


def test_large_files_are_not_kept_open_by_the_dozen() -> None:
    assert open_at_once(1000, 64) == 64
    assert open_at_once(256 << 20, 64) == 8
    assert open_at_once(100 << 30, 64) == 1
    assert open_at_once(0, 64) == 64


def test_copies_and_forked_children_check_as_well(scene: Scene) -> None:
    dataset = scene.open(integrity="file-hash")
    twin = copy.copy(dataset)
    assert ids(dataset.to_table()) == [*ROWS, *range(10, 16)]
    forge(scene, b"name 3", b"name 9")
    for one in (twin, dataset):
        with pytest.raises(IntegrityError) as caught:
            one.to_table()
        assert caught.value.code == "file-hash"

    def child() -> None:
        with pytest.raises(IntegrityError):
            dataset.to_table()

    assert ended(forked(child)) == 0


def test_a_pickle_keeps_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCPIPE_MASTER_KEY", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
    monkeypatch.chdir(tmp_path)
    encpipe.write_dataset(people(), "people")
    for integrity in ("pages", "file-hash"):
        with encpipe.open_dataset("people", integrity=integrity) as dataset:
            again = pickle.loads(pickle.dumps(dataset))
        assert (again._data.whole is not None) == (integrity == "file-hash")
        assert ids(again.to_table()) == ROWS


def test_it_is_pages_or_file_hash(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="pages or file-hash"):
        scene.open(integrity="sha256")


def test_pyarrow_opens_files_anew_and_so_needs_a_word(scene: Scene) -> None:
    with scene.open(integrity="file-hash") as dataset:
        with pytest.raises(EncpipeError) as caught:
            dataset.to_pyarrow()
        assert caught.value.code == "unsupported"
        assert dataset.to_pyarrow(trust_storage_after_the_check=True).count_rows() == 12
        forge(scene, b"name 3", b"name 9")
        with pytest.raises(IntegrityError):
            dataset.to_pyarrow(trust_storage_after_the_check=True)


def test_missing_and_cut_files_say_so(scene: Scene) -> None:
    path = first_file(scene)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(IntegrityError) as caught:
        scene.table(integrity="file-hash")
    assert caught.value.code == "file-size"
    path.unlink()
    with pytest.raises(IntegrityError) as caught:
        scene.table(integrity="file-hash")
    assert caught.value.code == "file-missing"
    shutil.rmtree(scene.folder)


def test_a_storage_that_fails_while_it_is_read_is_not_a_wrong_hash(scene: Scene) -> None:
    class Failing:
        def size(self) -> int:
            return entry.size

        def read_buffer(self, size: int) -> Any:
            raise OSError("AWS Error NETWORK_CONNECTION")

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    with scene.open() as dataset:
        entry = dataset.files[0]
    with pytest.raises(StorageError) as caught:
        WholeFiles().open(entry, Failing)  # type: ignore[arg-type]  # as much of a NativeFile as is used
    assert caught.value.code == "storage-unavailable"
