"""A dataset in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import fsspec
import pytest

from encpipe.config import Config
from encpipe.errors import ConfigError
from encpipe.storage import Storage, open_storage
from encpipe.testing.storage_contract import StorageContract, expect


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def make_storage(self) -> Iterator[Callable[[], Storage]]:
        name = uuid.uuid4().hex
        yield lambda: open_storage(f"memory://{name}/dataset", config=Config())
        files = fsspec.filesystem("memory")
        if files.exists(f"/{name}"):
            files.rm(f"/{name}", recursive=True)

    def test_fsspec_sees_the_objects(self, storage: Storage) -> None:
        storage.create("a/b", b"x")
        assert fsspec.filesystem("memory").cat(f"{storage.url}/a/b") == b"x"

    def test_arrow_is_refused_with_a_way_out(self, storage: Storage) -> None:
        with expect("unsupported") as refused:
            storage.arrow_path("a")
        assert "scan()" in refused.value.hint


@pytest.mark.parametrize("url", ["memory://", "memory:///"])
def test_a_url_without_a_name_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="names no folder"):
        open_storage(url, config=Config())


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, check=lambda error: error.code == "config-unknown-key"):
        open_storage("memory://x", config=Config(), options={"speed": "high"})
