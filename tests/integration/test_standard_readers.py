"""Data files are standard Parquet: programs that know nothing of encpipe read them, given the KEKs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from cryptography.exceptions import InvalidTag

from encpipe import Config, MasterKeys, Policy, open_dataset, write_dataset
from encpipe.keys import KeyContext
from encpipe.state import read_manifest
from encpipe.storage import open_storage
from encpipe.testing import InMemoryKms

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"
CONFIG = Config(keys={"footer": ("memory:main",), "pii": ("memory:pii",)})
TABLE = pa.table(
    {
        "id": pa.array(range(1000), pa.int64()),
        "name": [f"n{i % 37}" for i in range(1000)],
        "who": [{"age": i % 90, "tags": [str(i)] * (i % 3)} for i in range(1000)],
        "score": [None if i % 5 == 0 else i / 7 for i in range(1000)],
    }
)


class Written:
    """A dataset with its master keys and the KEKs by the key ids that files use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "dataset"
        self.kms = InMemoryKms(["main", "pii"])
        source = folder / "source.parquet"
        pq.write_table(TABLE, source, row_group_size=300)
        policy = Policy(columns={"pii": ("name", "who.age")})
        write_dataset(source, self.folder, policy=policy, config=CONFIG, master_keys=self.master_keys())
        (self.file,) = self.folder.glob("data/*.parquet")
        self.keks = dict(self._keks())

    def master_keys(self) -> MasterKeys:
        return MasterKeys(CONFIG, extra={"memory": self.kms})

    def open(self) -> Any:
        return open_dataset(self.folder, config=CONFIG, master_keys=self.master_keys())

    def _keks(self) -> Any:
        _, manifest = read_manifest(open_storage(str(self.folder), config=CONFIG))
        for kek in manifest.core.keks:
            (wrapped,) = manifest.wrappings[kek.id]
            context = KeyContext(manifest.core.dataset_id, kek.key_name, kek.id)
            key = self.kms.master_key(wrapped.master_key).unwrap(wrapped, aad=context)
            yield f"{kek.key_name}.{kek.id}", key.reveal()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("standard"))


def python_client() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(code)


def test_the_python_client_of_the_format_page(written: Written, tmp_path: Path) -> None:
    """In a process that cannot import encpipe."""
    program = f"""
import sys
sys.modules["encpipe"] = None
{python_client()}
pq.write_table(read({str(written.file)!r}, {written.keks!r}), {str(tmp_path / "plain.parquet")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert pq.read_table(tmp_path / "plain.parquet").equals(TABLE)


def test_the_python_client_refuses_another_key(written: Written) -> None:
    with pytest.raises(InvalidTag):
        client_names()["read"](written.file, dict.fromkeys(written.keks, bytes(32)))


def client_names() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(python_client(), str(PAGE), "exec"), names)
    return names


def deks(written: Written) -> tuple[bytes, dict[str, bytes]]:
    """The footer's DEK, and leaf path -> DEK, through the page's client."""
    base: type[pe.KmsClient] = client_names()["EncpipeKms"]
    found: list[bytes] = []

    class Recorder(base):  # type: ignore[misc, valid-type]  # the base comes from the page
        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
            found.append(super().unwrap_key(wrapped_key, master_key_identifier))
            return found[-1]

    factory = pe.CryptoFactory(lambda _: Recorder(written.keks))
    properties = factory.file_decryption_properties(pe.KmsConnectionConfig(), pe.DecryptionConfiguration())
    file = pq.ParquetFile(written.file, decryption_properties=properties)
    footer = found[0]
    columns = {}
    for n in range(len(file.schema.names)):
        found.clear()
        file.read_row_group(0, columns=[file.schema.column(n).path], use_threads=False)
        columns[file.schema.column(n).path] = found[0]
    return footer, columns


@pytest.mark.filterwarnings("ignore::polars.exceptions.UnstableWarning")
def test_polars_reads_a_file_given_its_deks(written: Written) -> None:
    footer, columns = deks(written)
    properties = pl.ParquetDecryptionProperties(footer_key=footer, column_keys=columns)
    frame = pl.read_parquet(written.file, decryption=properties)
    assert frame.to_dict(as_series=False) == TABLE.to_pydict()


def test_duckdb_reads_the_arrow_stream(written: Written) -> None:
    dataset = written.open()  # noqa: F841 - DuckDB finds it by its name
    rows = duckdb.sql("select count(*), sum(id), count(distinct name), sum(who.age) from dataset").fetchall()
    assert rows == [(1000, 499500, 37, sum(i % 90 for i in range(1000)))]


def test_duckdb_pushes_down_into_the_pyarrow_dataset(written: Written) -> None:
    dataset = written.open().to_pyarrow(trust_storage_after_the_check=True)  # noqa: F841 - DuckDB finds it by its name
    assert duckdb.sql("select id from dataset where name = 'n3' and id > 990").fetchall() == []
    assert duckdb.sql("select max(id) from dataset where name = 'n3'").fetchall() == [(965,)]


def test_polars_reads_the_arrow_stream(written: Written) -> None:
    frame = pl.DataFrame(written.open().scan(["id", "name"]))
    assert frame.to_dict(as_series=False) == TABLE.select(["id", "name"]).to_pydict()


def test_polars_scans_the_pyarrow_dataset(written: Written) -> None:
    frame = (
        pl.scan_pyarrow_dataset(written.open().to_pyarrow(trust_storage_after_the_check=True))
        .filter(pl.col("id") > 997)
        .collect()
    )
    assert frame["name"].to_list() == TABLE["name"].to_pylist()[998:]


def test_pandas_takes_the_table(written: Written) -> None:
    frame = written.open().to_table(["id", "name"]).to_pandas()
    assert frame["name"].tolist() == TABLE["name"].to_pylist()
