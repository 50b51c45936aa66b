"""A dataset in a bucket of a real server, over https with a private CA; the gist of it also over http."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.seaweed import Seaweed

from encpipe.config import Config, TlsConfig
from encpipe.storage import Storage, open_storage
from encpipe.testing.storage_contract import StorageContract

pytestmark = pytest.mark.server


def options(seaweed: Seaweed, endpoint: str, **more: Any) -> dict[str, Any]:
    return {
        "key": seaweed.access_key,
        "secret": seaweed.secret_key,
        "client_kwargs": {"endpoint_url": endpoint, "region_name": seaweed.region},
        **more,
    }


def config(seaweed: Seaweed) -> Config:
    return Config(tls=TlsConfig(ca_file=Path(seaweed.ca)))


@pytest.fixture(scope="module")
def shared_bucket(seaweed: Seaweed) -> str:
    return seaweed.create_bucket()


class TestS3Storage(StorageContract):
    @pytest.fixture
    def make_storage(self, seaweed: Seaweed, shared_bucket: str) -> Iterator[Callable[[], Storage]]:
        url = f"s3://{shared_bucket}/{uuid.uuid4().hex}/dataset"
        made = []

        def make() -> Storage:
            made.append(open_storage(url, config=config(seaweed), options=options(seaweed, seaweed.https)))
            return made[-1]

        yield make
        for storage in made:
            storage.close()


@pytest.mark.parametrize("single_writer", [False, True])
def test_plain_http_works_on_loopback_and_at_the_top_of_a_bucket(
    seaweed: Seaweed, bucket: str, single_writer: bool
) -> None:
    more = options(seaweed, seaweed.http, single_writer=single_writer)
    storage = open_storage(f"s3://{bucket}", config=Config(), options=more)
    StorageContract().test_a_stream_does_not_replace_what_exists(storage)
    for data, seen in ((b"first", None), (b"second", b"first")):
        StorageContract().commit(storage, data, seen=seen)
    with storage.hold("a/owner"):
        assert storage.read("data/x", limit=100) == b"first"
    with storage.open_input("data/x") as file:
        assert file.read() == b"first"
    storage.close()
