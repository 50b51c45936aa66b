"""Reading follows no link out of the dataset and never opens what is no regular file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from encpipe.config import Config
from encpipe.errors import ConfigError, StorageError
from encpipe.storage import Storage, open_storage
from encpipe.testing.storage_contract import LIMIT, expect


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "dataset").mkdir()
    return tmp_path / "dataset"


@pytest.fixture
def storage(root: Path) -> Storage:
    return open_storage(str(root), config=Config())


def reads(storage: Storage, path: str) -> tuple[Callable[[], object], ...]:
    return (
        lambda: storage.read(path, limit=LIMIT),
        lambda: storage.size(path),
        lambda: storage.open_input(path),
        lambda: storage.arrow_path(path),
    )


def test_a_link_out_of_the_dataset_is_not_followed(root: Path, storage: Storage) -> None:
    (root / "file").symlink_to("../secret")
    (root / "folder").symlink_to("..")
    for path in ("file", "folder/secret"):
        for read in reads(storage, path):
            with expect("storage-denied"):
                read()
    with expect("storage-denied"):
        storage.create("folder/new", b"")
    with expect("storage-denied"):
        storage.delete("folder/secret")
    assert [entry.path for entry in storage.list()] == ["file", "folder"]
    storage.delete("file")
    assert (root.parent / "secret").read_bytes() == b"secret"


def test_a_link_within_the_dataset_and_to_it_is_followed(root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / "x").write_bytes(b"x")
    (root / "link").symlink_to("real")
    (root.parent / "alias").symlink_to(root)
    storage = open_storage(str(root.parent / "alias"), config=Config())
    assert storage.read("link/x", limit=LIMIT) == b"x"


def test_what_is_no_regular_file_is_not_opened(root: Path, storage: Storage) -> None:
    os.mkfifo(root / "pipe")
    for read in reads(storage, "pipe"):
        with pytest.raises(StorageError, match="no regular file"):
            read()


def test_names_that_are_not_unicode_are_listed_and_deleted(root: Path, storage: Storage) -> None:
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"x")
    (found,) = storage.list()
    storage.delete(found.path)
    assert list(storage.list()) == []


def test_a_file_where_a_folder_belongs_is_told(root: Path) -> None:
    (root / "file").write_bytes(b"")
    storage = open_storage(str(root / "file" / "dataset"), config=Config())
    for write in (lambda: storage.create("a", b""), lambda: storage.hold("a").__enter__()):
        with pytest.raises(StorageError):
            write()


def test_urls_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    open_storage("here", config=Config()).create("a", b"1")
    open_storage("file://here", config=Config()).create("b", b"2")
    open_storage("~/here", config=Config()).create("c", b"3")
    assert sorted(path.name for path in Path("here").iterdir()) == ["a", "b", "c"]
    for url in ("", "file://", "a\0b"):
        with pytest.raises(ConfigError, match="names no folder"):
            open_storage(url, config=Config())
    with pytest.raises(ConfigError, check=lambda error: error.code == "config-unknown-key"):
        open_storage("here", config=Config(), options={"auto_mkdir": True})
    with pytest.raises(ConfigError, match="'gopher'"):
        open_storage("gopher://x", config=Config())
