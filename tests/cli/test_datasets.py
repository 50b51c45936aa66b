"""From a plaintext file to a dataset and back, by commands alone."""

from __future__ import annotations

import base64
import datetime
import json
import os
import shutil
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Cli

from encpipe.cli.write import SourceFormat
from encpipe.sources.opening import FORMATS

ROWS = 5
TABLE = pa.table(
    {
        "id": pa.array(range(ROWS), pa.int32()),
        "name": ["Ada", "Bob\x1b[31m", None, "Dee", "Eve"],
        "score": [0.5, float("nan"), float("inf"), None, 1.0],
        "raw": [b"\x00\xff"] * ROWS,
        "when": pa.array([1] * ROWS, pa.timestamp("ns")),
        "price": pa.array([Decimal("1.50")] * ROWS, pa.decimal128(5, 2)),
        "tags": [["a", "b"]] * ROWS,
        "place": [{"city": "Ulm", "day": datetime.date(2024, 2, 29)}] * ROWS,
    }
)
PII = ("--columns", "pii=name,place.*")


@pytest.fixture
def data(ready: Cli) -> Cli:
    """An initialised folder with the dataset `enc`, made from `plain.parquet`."""
    pq.write_table(TABLE, "plain.parquet")
    ready("encrypt", "plain.parquet", "enc", *PII)
    return ready


def test_a_write_reports_what_it_did(ready: Cli) -> None:
    pq.write_table(TABLE, "plain.parquet")
    found = ready("encrypt", "plain.parquet", "enc", *PII, "--json").json
    assert (found["generation"], found["files"], found["rows"]) == (1, 1, ROWS)
    assert found["master_keys"] == {"footer": ["local:default"], "pii": ["local:pii"]}
    more = ready("append", "plain.parquet", "enc", "--json").json
    assert (more["dataset_id"], more["generation"]) == (found["dataset_id"], 2)


def test_partitions_get_keys_of_their_own(ready: Cli) -> None:
    for year in (2020, 2021):
        folder = Path("tree") / f"year={year}"
        folder.mkdir(parents=True)
        pq.write_table(TABLE, folder / "plain.parquet")
    ready("encrypt", "tree", "enc", *PII, "--partition-keys", "year")
    contents = ready("inspect", "enc", "--json").json["contents"]
    assert contents["policy"]["partition_keys"] == ["year"]
    assert contents["partition_keks"] == {"footer": 2, "pii": 2}
    assert "2 of footer, 2 of pii: by year" in ready("inspect", "enc").out
    assert ready("append", "tree", "enc", "--json").json["generation"] == 2
    assert ready("inspect", "enc", "--json").json["contents"]["partition_keks"] == {"footer": 2, "pii": 2}


def test_flags_change_the_policy_and_the_keys(ready: Cli) -> None:
    pq.write_table(TABLE, "plain.parquet")
    Path("policy.toml").write_text('columns = { pii = ["name"], money = ["price"] }\n')
    flags = ("--policy", "policy.toml", "--columns", "money=score,price", "--key", "money=local:pii")
    found = ready("encrypt", "plain.parquet", "enc", *flags, "--json").json
    assert found["master_keys"]["money"] == ["local:pii"]
    columns = {c[0]: c[2] for c in ready("inspect", "enc", "--json").json["contents"]["columns"]}
    assert (columns["id"], columns["name"], columns["score"], columns["price"]) == (
        *("footer", "pii"),
        *("money", "money"),
    )
    other = ("--footer-key", "pii", "--json")
    assert ready("encrypt", "plain.parquet", "second", *other).json["master_keys"] == {"pii": ["local:pii"]}


def test_a_key_for_a_name_under_which_nothing_falls_is_refused(ready: Cli) -> None:
    pq.write_table(TABLE, "plain.parquet")
    for name in ("foter", "pii"):
        error = ready("encrypt", "plain.parquet", "enc", "--key", f"{name}=local:pii", "--json", code=2).json[
            "error"
        ]
        assert (error["code"], name in error["message"]) == ("usage", True)
    assert not Path("enc").exists()


def test_a_gateway_is_no_storage(ready: Cli) -> None:
    error = ready("inspect", "grpc+tls://localhost:1/flights", "--json", code=2).json["error"]
    assert "encpipe head" in error["hint"]


def test_nothing_is_replaced_without_a_yes(data: Cli) -> None:
    again = ("encrypt", "plain.parquet", "enc", *PII)
    assert data(*again, "--json", code=2).json["error"]["code"] == "exists"
    assert data(*again, "--overwrite", "--json", code=2).json["error"]["code"] == "usage"
    assert data(*again, "--overwrite", "--yes", "--json").json["generation"] == 2
    assert "earlier generations stay readable" in data(*again, "--overwrite", "--yes").out
    assert "earlier" not in data("encrypt", "plain.parquet", "new", "--overwrite", "--yes").out


def test_inspect_tells_with_and_without_keys_apart(data: Cli) -> None:
    found = data("inspect", "enc", "--json").json
    assert found["authenticated"] is True
    assert found["contents"]["rows"] == ROWS
    without = data("inspect", "enc", "--no-keys", "--json").json
    assert without["authenticated"] is False
    assert without["contents"] is None
    assert "not checked" in data("inspect", "enc", "--no-keys").out
    assert "place.city" in data("inspect", "enc").out


def test_head_shows_rows_that_cannot_steer_the_terminal(data: Cli) -> None:
    lines = data("head", "enc", "-n", "2", "--select", "id,name,score").out.splitlines()
    assert [line.split() for line in lines] == [
        ["id", "name", "score"],
        ["0", "Ada", "0.5"],
        ["1", "Bob\\x1b[31m", "nan"],
    ]


def test_head_as_json_keeps_every_value(data: Cli) -> None:
    found = data("head", "enc", "--json").json
    assert found["columns"] == TABLE.schema.names
    assert found["total_rows"] == ROWS
    assert found["missing_keys"] == []
    assert [row["score"] for row in found["rows"]] == [0.5, "nan", "inf", None, 1.0]
    first = found["rows"][0]
    assert base64.b64decode(first["raw"]) == b"\x00\xff"
    assert first["when"] == "1970-01-01 00:00:00.000000001"
    assert first["price"] == "1.50"
    assert first["tags"] == ["a", "b"]
    assert first["place"] == {"city": "Ulm", "day": "2024-02-29"}


def test_head_with_a_missing_key(data: Cli, home: Path) -> None:
    """A second keyring has the footer's master key and not the column key's."""
    data("keys", "export", "default", "default.json", "--protect", f"key-file:{home / 'encpipe.key'}")
    config = f'[keyring]\npath = "default.json"\nunlock = "key-file:{home / "encpipe.key"}"\n'
    Path("less.toml").write_text(config)
    less = ("head", "enc", "--config", "less.toml", "--select")
    both = (*less, "id,name")
    error = data(*both, "--json", code=2).json["error"]
    assert error["code"] == "untrusted-key"
    assert "keys export pii" in error["hint"]
    assert "--on-missing-key skip" in error["hint"]
    skipped = data(*both, "--on-missing-key", "skip", "--json").json
    assert (skipped["columns"], skipped["missing_keys"]) == (["id"], ["pii"])
    assert {row["name"] for row in data(*both, "--on-missing-key", "null", "--json").json["rows"]} == {None}
    text = data(*both, "--on-missing-key", "skip")
    assert text.out.split() == ["id", *map(str, range(ROWS))]
    assert text.err == "encpipe: without columns under pii\n"
    assert "null for want of a key: columns under pii" in data(*both, "--on-missing-key", "null").err
    nothing = data(*less, "name", "--on-missing-key", "skip", "--json", code=2).json["error"]
    assert nothing["code"] == "filter"


def test_decrypt_writes_only_where_it_is_told(data: Cli) -> None:
    found = data("decrypt", "enc", "--plaintext-to", "out", "--json").json
    assert (found["files"], found["rows"]) == (1, ROWS)
    back = pq.read_table("out")
    assert back.drop_columns(["score"]).equals(TABLE.drop_columns(["score"]))
    assert data("decrypt", "enc", "--plaintext-to", "out", "--json", code=2).json["error"]["code"] == "exists"


def test_verify_finds_damage_and_ends_with_4(data: Cli) -> None:
    assert "no problem found" in data("verify", "enc", "--deep").out
    file = next(Path("enc/data").iterdir())
    whole = file.read_bytes()
    Path("enc/data/stray").write_bytes(b"x")
    assert data("verify", "enc", "--json").json["unlisted"] == ["data/stray"]
    file.write_bytes(whole[:-1])
    problems = data("verify", "enc", "--json", code=4).json["problems"]
    assert [(p["path"], p["code"]) for p in problems] == [(f"data/{file.name}", "file-size")]
    text = data("verify", "enc", code=4).out
    assert "data/stray" in text
    assert "1 problem:" in text


def test_pins_refuse_another_and_an_older_dataset(data: Cli) -> None:
    dataset = json.loads(data("inspect", "enc", "--json").out)["dataset_id"]
    for command in ("head", "verify"):
        data(command, "enc", "--expect-dataset", dataset, "--min-generation", "1")
        for pin in (("--expect-dataset", "0" * 32), ("--min-generation", "2")):
            assert data(command, "enc", *pin, "--json", code=4).json["error"]["code"] == "stale"


def test_errors_of_storage_and_sources_keep_their_codes(data: Cli) -> None:
    assert data("head", "absent", "--json", code=5).json["error"]["code"] == "not-found"
    assert data("head", "enc", "--select", "nothing", "--json", code=2).json["error"]["code"] == "filter"
    Path("bad.parquet").write_bytes(b"not parquet")
    error = data("encrypt", "bad.parquet", "x", "--json", code=1).json["error"]
    assert error["code"] == "source-unreadable"


def test_a_name_that_tells_no_format_needs_one(ready: Cli) -> None:
    Path("people.txt").write_text("name,age\nAda,36\n")
    for command in ("encrypt", "append"):
        error = ready(command, "people.txt", "enc", "--json", code=1).json["error"]
        assert "--format" in error["hint"]
        ready(command, "people.txt", "enc", "--format", "csv")
    assert ready("head", "enc", "--json").json["total_rows"] == 2
    assert [*SourceFormat] == [*FORMATS]


def test_a_pattern_that_finds_nothing_is_doubted(ready: Cli) -> None:
    error = ready("encrypt", "raw/*.csv", "enc", "--json", code=1).json["error"]
    assert error["code"] == "source-empty"
    assert "the pattern" in error["hint"]


def test_a_container_needs_one_variable_only(cli: Cli) -> None:
    pq.write_table(TABLE, "plain.parquet")
    env = {"ENCPIPE_MASTER_KEY": base64.b64encode(os.urandom(32)).decode()}
    cli("encrypt", "plain.parquet", "enc", env=env)
    assert cli("head", "enc", "--json", env=env).json["total_rows"] == ROWS
    other = {"ENCPIPE_MASTER_KEY": base64.b64encode(os.urandom(32)).decode()}
    assert cli("head", "enc", "--json", env=other, code=4).json["error"]["code"] == "unwrap"


def test_a_moved_dataset_stays_readable(data: Cli, home: Path) -> None:
    shutil.move("enc", home / "elsewhere")
    assert data("head", home / "elsewhere", "--json").json["total_rows"] == ROWS
