"""Sources in a bucket of a real server, over https with a private CA."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers.seaweed import Seaweed

from encpipe.config import Config, TlsConfig
from encpipe.errors import ConfigError, EncpipeError, StorageError
from encpipe.sources import Source, open_source
from encpipe.storage.s3_client import Connection

pytestmark = pytest.mark.server
TABLE = pa.table({"x": range(1000), "s": [f"row {i}" for i in range(1000)]})


@pytest.fixture(scope="module")
def filled(seaweed: Seaweed) -> str:
    """A bucket with a hive-partitioned tree, a CSV file and something hidden."""
    bucket = seaweed.create_bucket()
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=300)
    client = seaweed.client()
    for key in ("t/a=1/f.parquet", "t/a=x%20y/f.parquet", "t/_tmp/g.parquet", "t/_SUCCESS"):
        client.put_object(Bucket=bucket, Key=key, Body=sink.getvalue())
    client.put_object(Bucket=bucket, Key="text/t.csv.gz", Body=gzip.compress(b"a,b\n1,x\n2,y\n"))
    client.close()
    return bucket


def opened(seaweed: Seaweed, url: str, **more: Any) -> Source:
    options = {
        "key": seaweed.access_key,
        "secret": seaweed.secret_key,
        "endpoint_url": seaweed.https,
        "region_name": seaweed.region,
        **more,
    }
    return open_source(url, storage_options=options, config=Config(tls=TlsConfig(ca_file=Path(seaweed.ca))))


@pytest.mark.usefixtures("client")
def test_a_tree_is_read_with_its_partitions(seaweed: Seaweed, filled: str) -> None:
    source = opened(seaweed, f"s3://{filled}/t")
    assert [file.name for file in source.files] == ["a=1/f.parquet", "a=x%20y/f.parquet"]
    assert [dict(file.partition) for file in source.files] == [{"a": "1"}, {"a": "x y"}]
    assert source.resumable
    for file in source.files:
        with file.open() as reader:
            found = list(reader.tables())
        assert [t.num_rows for t in found] == [300, 300, 300, 100]
        assert pa.concat_tables(found).equals(TABLE)


@pytest.fixture(params=["arrow", "boto"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's client reads, or boto3 where that one cannot be held to the TLS rules."""
    if request.param == "boto":
        monkeypatch.setattr(Connection, "arrow_can", False)


@pytest.mark.usefixtures("client")
def test_globs_and_single_files(seaweed: Seaweed, filled: str) -> None:
    assert [f.name for f in opened(seaweed, f"s3://{filled}/t/*/f.parquet").files] == [
        "a=1/f.parquet",
        "a=x%20y/f.parquet",
    ]
    assert [f.name for f in opened(seaweed, f"s3://{filled}/t/a=1/f.parquet").files] == ["f.parquet"]


@pytest.mark.usefixtures("client")
def test_packed_text_is_streamed(seaweed: Seaweed, filled: str) -> None:
    [file] = opened(seaweed, f"s3://{filled}/text/").files
    with file.open() as reader:
        assert pa.concat_tables(reader.tables()).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("path", ["none", "t/none.parquet", "t/_tmp/none*"])
def test_what_is_not_there(seaweed: Seaweed, filled: str, path: str) -> None:
    with pytest.raises(EncpipeError) as caught:
        opened(seaweed, f"s3://{filled}/{path}")
    assert caught.value.code in ("not-found", "source-empty")


def test_wrong_credentials_are_an_error_without_the_secret(seaweed: Seaweed, filled: str) -> None:
    with pytest.raises(StorageError) as caught:
        opened(seaweed, f"s3://{filled}/t", secret="hunter2-hunter2")
    assert "hunter2" not in str(caught.value)


def test_plain_http_beyond_loopback_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        open_source("s3://b/t", storage_options={"endpoint_url": "http://storage.invalid", "anon": True})
    assert caught.value.code == "insecure-transport"
