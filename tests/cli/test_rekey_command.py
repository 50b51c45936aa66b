"""`rekey`, and `revoke --rekey`, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli

MANIFEST = Path("enc/_encpipe/manifest.json")


@pytest.fixture
def data(ready: Cli) -> Cli:
    """An initialised folder with the dataset `enc`."""
    Path("plain.csv").write_text("id,name\n1,Ada\n2,Bob\n")
    ready("encrypt", "plain.csv", "enc", "--columns", "pii=name")
    return ready


def keks(data: Cli) -> dict[str, str]:
    """Key name -> the id of its KEK."""
    found = data("inspect", "enc", "--json").json["keks"]
    return {kek["key_name"]: kek["id"] for kek in found if kek["state"] == "active"}


def test_all_key_names_get_new_keys(data: Cli) -> None:
    before = keks(data)
    shown = data("rekey", "enc").out
    assert "encrypted again" in shown
    assert "1 file, 2 rows" in shown
    assert "opened by local:pii" in shown
    assert "encpipe gc URL --keep 1" in shown
    now = keks(data)
    assert now.keys() == before.keys()
    assert all(now[name] != before[name] for name in before)
    assert "Ada" in data("head", "enc").out


def test_one_key_name_under_another_master_key(data: Cli) -> None:
    before = keks(data)
    data("keys", "create", "new")
    found = data(
        "rekey", "enc", "--key-name", "pii", "--key", "pii=local:new", "--workers", "1", "--json"
    ).json
    assert (found["key_names"], found["master_keys"]) == (["pii"], {"pii": ["local:new"]})
    assert (found["generation"], found["older_generations"], found["dry_run"]) == (2, [1], False)
    assert keks(data)["footer"] == before["footer"]
    assert "Ada" in data("head", "enc").out


def test_a_dry_run_changes_nothing(data: Cli) -> None:
    before = MANIFEST.read_bytes()
    shown = data("rekey", "enc", "--dry-run").out
    assert "would encrypt again" in shown
    assert "nothing was changed: --dry-run" in shown
    assert MANIFEST.read_bytes() == before


def test_revoke_and_rekey(data: Cli) -> None:
    data("keys", "create", "glass")
    data("grant", "enc", "--key", "pii=local:glass")
    before = keks(data)
    assert (
        "nothing was changed" in data("revoke", "enc", "--key", "pii=local:glass", "--rekey", "--dry-run").out
    )
    shown = data("revoke", "enc", "--key", "pii=local:glass", "--rekey").out
    assert "no more by" in shown
    assert "new key of pii" in shown
    assert keks(data)["pii"] != before["pii"]
    openers = {o["master_key"] for o in data("inspect", "enc", "--json").json["openers"]}
    assert openers == {"local:default", "local:pii"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--key-name", "money"), "config"),
        (("--key-name", "pii", "--key", "footer=local:pii"), "config"),
        (("--key", "pii"), "usage"),
        (("--workers", "0"), "usage"),
    ],
)
def test_what_does_not_fit_is_refused(data: Cli, arguments: tuple[str, ...], code: str) -> None:
    before = MANIFEST.read_bytes()
    assert data("rekey", "enc", *arguments, "--json", code=2).json["error"]["code"] == code
    assert MANIFEST.read_bytes() == before
