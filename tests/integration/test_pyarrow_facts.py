"""What encpipe relies on in PyArrow's encryption, and what it works around.

When one of these fails after an upgrade, PyArrow changed: read the rule that its docstring names again. An
abort that is mended is good news, and the workaround can go.
"""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

TABLE = pa.table({"a": [1, 2, 3, 4], "b": ["w", "x", "y", "z"], "c": [0.1, 0.2, 0.3, 0.4]})


class DeniedError(Exception):
    """An error of ours: it must arrive as it is."""


class Client(pe.KmsClient):
    """Wraps by spelling the key out, refuses the key ids in `denied`, notes all calls."""

    def __init__(self, denied: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.denied, self.calls = denied, list[tuple[str, str]]()

    def wrap_key(self, dek: bytes, key_id: str) -> str:
        self.calls.append(("wrap", key_id))
        return dek.hex()

    def unwrap_key(self, wrapped: str, key_id: str) -> bytes:
        self.calls.append(("unwrap", key_id))
        if key_id in self.denied:
            raise DeniedError(key_id)
        return bytes.fromhex(wrapped)


def write(client: Client, columns: dict[str, list[str]]) -> bytes:
    config = pe.EncryptionConfiguration(
        footer_key="foot", column_keys=columns, double_wrapping=False, data_key_length_bits=256
    )
    factory = pe.CryptoFactory(lambda _: client)
    sink = io.BytesIO()
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(sink, TABLE.schema, encryption_properties=properties) as writer:
        writer.write_table(TABLE, row_group_size=2)
    return sink.getvalue()


def reader(data: bytes, client: Client, **options: Any) -> pq.ParquetFile:
    factory = pe.CryptoFactory(lambda _: client)
    properties = factory.file_decryption_properties(pe.KmsConnectionConfig(), pe.DecryptionConfiguration())
    return pq.ParquetFile(pa.BufferReader(data), decryption_properties=properties, **options)


ALL = {"ka": ["a", "c"], "kb": ["b"]}


def test_deks_are_wrapped_footer_first_then_columns_in_the_order_given() -> None:
    """`parquet.writing`: commitments are matched to leaves by this order."""
    client = Client()
    write(client, ALL)
    assert client.calls == [("wrap", "foot"), ("wrap", "ka"), ("wrap", "ka"), ("wrap", "kb")]
    other = Client()
    write(other, {"kb": ["b"], "ka": ["a", "c"]})
    assert other.calls == [("wrap", "foot"), ("wrap", "kb"), ("wrap", "ka"), ("wrap", "ka")]


def test_a_dek_is_asked_for_anew_in_every_row_group() -> None:
    """`Handle.read`: rows leave only if the committed DEKs were asked for in that very read."""
    client = Client()
    file = reader(write(Client(), ALL), client)
    for row_group in range(file.num_row_groups):
        client.calls.clear()
        file.read_row_group(row_group, columns=["a"])
        assert {key_id for _, key_id in client.calls} == {"ka"}
        client.calls.clear()
        file.read_row_group(row_group, columns=["a", "b"])
        assert {key_id for _, key_id in client.calls} == {"ka", "kb"}


def test_a_column_that_is_not_listed_is_written_in_clear() -> None:
    """`Policy.assign` names every leaf."""
    file = reader(write(Client(), {"ka": ["a", "c"]}), client := Client(("ka",)))
    assert file.read_row_group(0, columns=["b"])["b"].to_pylist() == ["w", "x"]
    assert ("unwrap", "kb") not in client.calls


def test_a_reader_with_decryption_properties_accepts_a_plaintext_file() -> None:
    """`parquet.reading` checks the magic itself."""
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    client = Client()
    assert reader(sink.getvalue(), client).read().equals(TABLE)
    assert client.calls == []


def test_our_error_arrives_when_a_denied_column_is_read() -> None:
    """`translated` gives out what the key client raised."""
    file = reader(write(Client(), ALL), Client(("kb",)))
    assert file.read_row_group(1, columns=["a"])["a"].to_pylist() == [3, 4]
    with pytest.raises(DeniedError, match="kb"):
        file.read_row_group(1, columns=["a", "b"])


def test_our_error_arrives_when_the_footer_key_is_denied() -> None:
    with pytest.raises(DeniedError, match="foot"):
        reader(write(Client(), ALL), Client(("foot",)))


@pytest.mark.parametrize("row_group", [0, 1])
def test_a_read_of_no_rows_asks_for_every_key_and_raises(row_group: int) -> None:
    """`Handle.check_chunks`: before PyArrow is let near column metadata. No page is opened: here they are
    all zeros."""
    data = write(Client(), ALL)
    client = Client()
    (footer_bytes,) = struct.unpack("<I", data[-8:-4])
    pages = len(data) - 8 - footer_bytes - 4
    file = reader(b"PARE" + bytes(pages) + data[4 + pages :], client, buffer_size=1)
    client.calls.clear()
    assert list(file.reader.iter_batches(0, [row_group], [0, 1], use_threads=False)) == []
    assert {key_id for _, key_id in client.calls} == {"ka", "kb"}
    denied = reader(data, Client(("kb",)), buffer_size=1)
    with pytest.raises(DeniedError, match="kb"):
        list(denied.reader.iter_batches(0, [row_group], [0, 1], use_threads=False))


def test_a_reader_that_got_anothers_metadata_asks_that_ones_client() -> None:
    """`SealedFile`: handles share no footer, else one thread's client answers for another's reads."""
    data = write(Client(), ALL)
    first, second = Client(), Client()
    opened = reader(data, first)
    first.calls.clear()
    shared = reader(data, second, metadata=opened.metadata)
    shared.read_row_group(0, columns=["a"])
    assert second.calls == []
    assert first.calls


def test_two_files_of_one_properties_object_share_their_deks() -> None:
    """`SealedWriter` makes properties for every file."""
    client = Client()
    factory = pe.CryptoFactory(lambda _: client)
    config = pe.EncryptionConfiguration(footer_key="foot", column_keys=ALL, double_wrapping=False)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    for _ in range(2):
        with pq.ParquetWriter(io.BytesIO(), TABLE.schema, encryption_properties=properties) as writer:
            writer.write_table(TABLE)
    assert len(client.calls) == 4


# What ends the process. Each runs in a child, which must die of SIGABRT.

ABORTS: dict[str, str] = {
    "column metadata": "file.metadata.row_group(0).column(1)",
    "metadata to_dict": "file.metadata.to_dict()",
    "fragment subset": """
        form = ds.ParquetFileFormat(
            default_fragment_scan_options=ds.ParquetFragmentScanOptions(decryption_properties=properties)
        )
        form.make_fragment(pa.BufferReader(data)).subset(pc.field("b") == "w", schema=facts.TABLE.schema)
    """,
}


@pytest.mark.parametrize("what", ABORTS)
def test_metadata_of_a_denied_column_aborts_the_process(what: str) -> None:
    """`Dataset.scan` unwraps all KEKs and `check_chunks` asks for all DEKs first. If this fails, PyArrow
    mended it: drop the preparations."""
    code = f"""
        import pyarrow as pa, pyarrow.compute as pc, pyarrow.dataset as ds, pyarrow.parquet.encryption as pe
        import test_pyarrow_facts as facts
        data = facts.write(facts.Client(), facts.ALL)
        client = facts.Client(("kb",))
        file = facts.reader(data, client)
        factory = pe.CryptoFactory(lambda _: client)
        settings = pe.KmsConnectionConfig(), pe.DecryptionConfiguration()
        properties = factory.file_decryption_properties(*settings)
        print("ready", flush=True)
        {textwrap.indent(textwrap.dedent(ABORTS[what]).strip(), " " * 8).strip()}
        print("survived", flush=True)
    """
    done = _run(code)
    assert done.stdout.split() == ["ready"]
    assert done.returncode == -signal.SIGABRT


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
