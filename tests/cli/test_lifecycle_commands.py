"""`rewrap`, `grant` and `revoke` on the command line."""

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


def test_a_rotated_master_key_is_shown_and_rewrapped(data: Cli) -> None:
    assert "to be re-wrapped" not in data("inspect", "enc").out
    data("keys", "rotate", "pii")
    assert "to be re-wrapped by encpipe rewrap: pii (newer version)" in data("inspect", "enc").out
    found = data("rewrap", "enc", "--older-than", "90d", "--json").json
    assert [(c["key_name"], c["added"], c["removed"]) for c in found["changes"]] == [
        ("pii", [["local:pii", "2"]], [["local:pii", "1"]])
    ]
    assert (found["kms_calls"], found["leftovers"], found["dry_run"]) == (3, [], False)
    assert "nothing was to be changed" in data("rewrap", "enc", "--older-than", "90d").out
    assert "to be re-wrapped" not in data("inspect", "enc").out
    assert "Ada" in data("head", "enc").out


def test_to_another_master_key(data: Cli) -> None:
    data("keys", "create", "new")
    before = MANIFEST.read_bytes()
    shown = data("rewrap", "enc", "--key", "pii=local:new", "--dry-run").out
    assert "nothing was changed: --dry-run" in shown
    assert MANIFEST.read_bytes() == before
    shown = data("rewrap", "enc", "--key", "pii=local:new", "--prove").out
    assert "local:new (version 1)" in shown
    assert "4 calls" in shown
    assert "no other wrapping is left" in shown
    keks = data("inspect", "enc", "--json").json["keks"]
    assert [k["wrappings"][0]["master_key"] for k in keks] == ["local:default", "local:new"]


def test_grant_and_revoke(data: Cli) -> None:
    data("keys", "create", "glass")
    data("grant", "enc", "--key", "footer=local:glass")
    shown = data("inspect", "enc").out
    assert "who can open what" in shown
    assert "local:glass" in shown
    openers = {o["master_key"]: o["key_names"] for o in data("inspect", "enc", "--json").json["openers"]}
    assert openers == {"local:default": ["footer"], "local:glass": ["footer"], "local:pii": ["pii"]}
    assert data("revoke", "enc", "--key", "footer=local:glass", "--dry-run", "--json").json["dry_run"] is True
    data("revoke", "enc", "--key", "footer=local:glass")
    error = data("revoke", "enc", "--key", "footer=local:glass", "--json", code=2).json["error"]
    assert error["code"] == "no-wrapping"
    error = data("revoke", "enc", "--key", "footer=local:default", "--json", code=2).json["error"]
    assert error["code"] == "last-wrapping"


@pytest.mark.parametrize(
    "arguments",
    [
        ("rewrap", "enc", "--older-than", "soon"),
        ("rewrap", "enc", "--key", "pii"),
        ("grant", "enc", "--key", "pii=glass"),
        ("revoke", "enc", "--key", "=local:pii"),
    ],
)
def test_what_is_no_time_or_no_key_is_an_error_of_use(data: Cli, arguments: tuple[str, ...]) -> None:
    before = MANIFEST.read_bytes()
    assert data(*arguments, "--json", code=2).json["error"]["code"] == "usage"
    assert MANIFEST.read_bytes() == before


def test_a_copy_in_a_temp_file_is_shown(data: Cli) -> None:
    data("keys", "create", "new")
    Path("enc/_encpipe/.tmp-0123").write_bytes(MANIFEST.read_bytes())
    shown = data("rewrap", "enc", "--key", "pii=local:new").out
    assert "left elsewhere" in shown
    assert "_encpipe/.tmp-0123" in shown


def test_signatures_hold_on(data: Cli, home: Path) -> None:
    data("keys", "create", "new")
    signer = data("keys", "create-signer", home / "ann.pem", "--json").json["signer"]
    config = Path("encpipe.toml")
    config.write_text(f'{config.read_text()}\n[trust]\nsigners = ["{signer}"]\n')
    before = MANIFEST.read_bytes()
    refused = data("rewrap", "enc", "--json", code=4).json["error"]
    assert refused["code"] == "signature", "nobody signed it yet"
    assert MANIFEST.read_bytes() == before
    config.write_text(f'{config.read_text()}\n[signing]\nkey_file = "{home / "ann.pem"}"\n')
    data("sign", "enc")
    data("rewrap", "enc", "--key", "pii=local:new")
    assert data("inspect", "enc", "--json").json["signers"] == [{"signer": signer, "trusted": True}]
    assert "Ada" in data("head", "enc").out
