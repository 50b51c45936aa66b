"""`encpipe sign`, `keys create-signer` and `keys show-signer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from scene import people
from servers.softhsm import MODULE, PIN, SoftHsm

Cli = Callable[..., Any]


@pytest.fixture
def signer(ready: Cli, home: Path) -> str:
    """A signing key at ~/ann.pem, and a dataset `people` that nobody signed."""
    pq.write_table(people(), "people.parquet")
    ready("encrypt", "people.parquet", "people", "--columns", "pii=name")
    found: str = ready("keys", "create-signer", "~/ann.pem", "--json").json["signer"]
    return found


def configure(text: str) -> None:
    path = Path("encpipe.toml")
    path.write_text(f"{path.read_text()}\n{text}\n")


def test_a_dataset_is_signed_and_then_read_by_who_asks_for_it(ready: Cli, signer: str) -> None:
    configure(f'[trust]\nsigners = ["{signer}"]')
    for command in (("head", "people"), ("verify", "people"), ("inspect", "people")):
        ran = ready(*command, "--json", code=4)
        assert '"code": "signature"' in ran.out or '"code":"signature"' in ran.out
    assert "key_file" in ready("sign", "people", code=2).err
    configure('[signing]\nkey_file = "~/ann.pem"')
    report = ready("sign", "people", "--json").json
    assert (report["signer"], report["signers"], report["generation"]) == (signer, [signer], 1)
    assert ready("head", "people", "--json").json["total_rows"] == 6
    inspected = ready("inspect", "people", "--json").json
    assert inspected["signers"] == [{"signer": signer, "trusted": True}]
    assert signer in ready("inspect", "people").out
    ready("append", "people.parquet", "people")
    assert ready("verify", "people", "--deep", "--json").json["problems"] == []


def test_a_state_can_be_named(ready: Cli, signer: str) -> None:
    configure('[signing]\nkey_file = "~/ann.pem"')
    core = ready("inspect", "people", "--json").json["core_digest"]
    ran = ready("sign", "people", "--expect-core", "0" * 64, "--json", code=4)
    assert "stale" in ran.out
    shown = ready("sign", "people", "--expect-core", core, "--generation", "1").out
    assert core in shown
    assert f"signed by   {signer}" in shown


def test_the_signer_is_shown_again(ready: Cli, signer: str, home: Path) -> None:
    assert ready("keys", "show-signer", home / "ann.pem", "--json").json["signer"] == signer
    assert "create-signer" in ready("keys", "show-signer", code=2).err
    configure('[signing]\nkey_file = "~/ann.pem"')
    assert signer in ready("keys", "show-signer").out


def test_a_signing_key_is_not_overwritten_and_never_shown(ready: Cli, signer: str, home: Path) -> None:
    pem = (home / "ann.pem").read_text()
    assert "exists" in ready("keys", "create-signer", "~/ann.pem", code=2).err
    assert (home / "ann.pem").read_text() == pem
    secret = pem.splitlines()[1]
    configure('[signing]\nkey_file = "~/ann.pem"')
    for command in (("sign", "people"), ("keys", "show-signer"), ("inspect", "people", "--json")):
        assert secret not in ready(*command).out


def test_files_are_compared_with_their_hash_on_request(ready: Cli, signer: str) -> None:
    (file,) = Path("people/data").iterdir()
    data = bytearray(file.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little")
    data[-8 - footer - 1] ^= 1  # the last page of `name`
    file.write_bytes(data)
    assert ready("head", "people", "--select", "id", "--json").json["total_rows"] == 6
    for command in (("head", "people"), ("decrypt", "people", "--plaintext-to", "plain")):
        ran = ready(*command, "--select", "id", "--integrity", "file-hash", code=4)
        assert "other bytes than committed" in ran.err
    assert list(Path("plain").iterdir()) == []


@pytest.mark.system
def test_a_key_on_a_token_signs(
    ready: Cli, signer: str, softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_PIN", PIN)
    configure('[signing]\nkey = "pkcs11:token=main;object=signer"')
    configure(f'[kms.pkcs11]\nmodule = "{MODULE}"\npin = "env:TOKEN_PIN"')
    shown = ready("keys", "show-signer", "--json").json
    assert shown["key"] == "pkcs11:token=main;object=signer"
    assert shown["signer"] != signer
    assert shown["signer"] in ready("keys", "show-signer").out
    assert ready("sign", "people", "--json").json["signers"] == [shown["signer"]]
    configure(f'[trust]\nsigners = ["{shown["signer"]}"]')
    ready("append", "people.parquet", "people")
    assert ready("verify", "people", "--json").json["problems"] == []


def test_a_service_that_does_not_sign_is_told_apart(ready: Cli, signer: str) -> None:
    configure('[signing]\nkey = "local:default"')
    for command in (("keys", "show-signer"), ("sign", "people"), ("append", "people.parquet", "people")):
        ran = ready(*command, code=2)
        assert "signs with no key of this service" in ran.err
        assert "create-signer" in ran.err
