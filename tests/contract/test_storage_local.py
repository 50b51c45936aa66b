"""A dataset in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from encpipe.config import Config
from encpipe.storage import Storage, open_storage
from encpipe.testing.storage_contract import StorageContract


class TestLocalStorage(StorageContract):
    @pytest.fixture(params=["plain", "url"])
    def make_storage(self, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], Storage]:
        place = f"{tmp_path}/not/yet/there"
        url = f"file://{place}" if request.param == "url" else place
        return lambda: open_storage(url, config=Config())
