"""The table `kms.pkcs11`, `pkcs11:` URIs and where a PIN comes from: what is accepted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from encpipe.config import load_config
from encpipe.errors import ConfigError, MissingExtraError
from encpipe.keys import KeyContext, Secret, WrappedKey
from encpipe.kms import MasterKeys
from encpipe.kms.base import KmsSettings
from encpipe.kms.pkcs11 import Pkcs11Kms
from encpipe.kms.pkcs11_pin import PinSource
from encpipe.kms.pkcs11_settings import KeyPlace, Pkcs11Table

ROOT = Path(__file__).parents[2]
MODULE = {"module": "/usr/lib/token.so"}
URI = "pkcs11:token=main;object=one"


def test_defaults() -> None:
    assert Pkcs11Table.parse(MODULE) == Pkcs11Table("/usr/lib/token.so", "prompt", "aes-gcm", 20.0)


def test_every_key_is_read() -> None:
    table = {**MODULE, "pin": "env:TOKEN_PIN", "mechanism": "aes-key-wrap", "deadline": 3}
    assert Pkcs11Table.parse(table) == Pkcs11Table("/usr/lib/token.so", "env:TOKEN_PIN", "aes-key-wrap", 3)


def test_a_pin_file_may_lie_in_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert Pkcs11Table.parse({**MODULE, "pin": "file:~/pin"}).pin == "file:/home/me/pin"


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'pin_value'") as refused:
        Pkcs11Kms(KmsSettings({**MODULE, "pin_value": "hunter2"}))
    assert refused.value.code == "config-unknown-key"
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("module", "token.so"),
        ("module", 1),
        ("pin", "hunter2"),
        ("pin", "env:hunter 2"),
        ("pin", "file:pins/hunter2"),
        ("pin", ["prompt"]),
        ("mechanism", "aes-cbc"),
        ("mechanism", None),
        ("deadline", 0),
        ("deadline", "20"),
        ("deadline", True),
        ("deadline", float("nan")),
        ("deadline", 1e9),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"kms\.pkcs11\.{key}") as refused:
        Pkcs11Kms(KmsSettings({**MODULE, key: value}))
    assert "hunter" not in f"{refused.value.message} {refused.value.hint}"


def test_without_a_module_the_error_shows_how_to_set_one() -> None:
    with pytest.raises(ConfigError, match="module is not set") as refused:
        Pkcs11Kms(KmsSettings())
    assert refused.value.code == "config-missing"


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        (URI, KeyPlace("main", "one")),
        ("pkcs11:token=team%20two;object=a%3Bb%2Fc", KeyPlace("team two", "a;b/c")),
        ("pkcs11:token=t;serial=05a1;object=o;id=%00%FF", KeyPlace("t", "o", "05a1", b"\0\xff")),
        ("pkcs11:token=m%C3%BCnchen;object=o-._~", KeyPlace("münchen", "o-._~")),
    ],
)
def test_a_uri_names_a_key(uri: str, place: KeyPlace) -> None:
    assert KeyPlace.parse(uri) == place
    assert place.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:object=one;token=main",
        "pkcs11:token=main;object=one;id=a;serial=b",
        "pkcs11:token=m%61in;object=one",
        "pkcs11:token=m%c3%bcnchen;object=one",
        "pkcs11:token=main;token=main;object=one",
        "pkcs11:token=main;object=one;",
        "pkcs11:token=main;object=one;type=secret-key",
        "pkcs11:token=main;object=one?module-path=/tmp/evil.so",
        "pkcs11:token=main;object=%FF",
        "pkcs11:token=main;object=*",
        f"pkcs11:token={'a' * 33};object=one",
        f"pkcs11:token=main;object={'a' * 256}",
        "PKCS11:token=main;object=one",
    ],
)
def test_any_other_spelling_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="not the URI of a key on a PKCS#11 token"):
        KeyPlace.parse(uri)


def test_a_pin_in_a_uri_is_refused_and_not_shown() -> None:
    for uri in (f"{URI}?pin-value=hunter2", f"{URI};pin-value=hunter2", f"{URI}?a=b&pin-source=hunter2"):
        with pytest.raises(ConfigError) as refused:
            KeyPlace.parse(uri)
        assert "hunter2" not in f"{refused.value.message} {refused.value.hint}"


def test_a_kek_of_another_length_is_not_sent() -> None:
    key = Pkcs11Kms(KmsSettings(MODULE)).master_key(URI)
    with pytest.raises(ValueError, match="32 bytes"):
        key.wrap(Secret(b"short"), aad=KeyContext("d", "footer", "k"))


def test_without_the_package_the_error_is_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("pkcs11", "encpipe.kms.pkcs11_"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    key = Pkcs11Kms(KmsSettings(MODULE)).master_key(URI)
    context = KeyContext("d" * 32, "footer", "e" * 32)
    for ask in (
        lambda: key.wrap(Secret.random(), aad=context),
        lambda: key.unwrap(WrappedKey(URI, b"\1" + bytes(60), "", ""), aad=context),
    ):
        with pytest.raises(MissingExtraError) as refused:
            ask()
        assert refused.value.hint == "pip install 'encpipe[pkcs11]'"


def test_naming_a_key_loads_nothing_of_pkcs11() -> None:
    code = f"""
import sys
from encpipe.kms.base import KmsSettings
from encpipe.kms.pkcs11 import Pkcs11Kms
Pkcs11Kms(KmsSettings({MODULE!r})).master_key({URI!r})
sys.exit("pkcs11" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_configuration_reaches_its_keys() -> None:
    config = load_config(ROOT / "configs" / "pkcs11.toml", env={})
    keys = MasterKeys(config)
    assert [len(keys.for_key_name(name)) for name in config.policy.key_names] == [1, 1]
    for uri in config.trust.master_keys:
        assert keys.get(uri, key_name="footer").uri == uri
    assert Pkcs11Table.parse(config.kms["pkcs11"]).deadline == 20


def test_the_page_shows_the_example_configuration() -> None:
    text = (ROOT / "configs" / "pkcs11.toml").read_text()
    assert f"```toml\n{text}```" in (ROOT / "docs" / "kms" / "pkcs11.md").read_text()


# The PIN


def test_a_pin_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    source = PinSource("env:TOKEN_PIN", None)
    monkeypatch.setenv("TOKEN_PIN", "1234")
    assert source.read("main") == Secret(b"1234")
    monkeypatch.setenv("TOKEN_PIN", "5678")
    assert source.read("main") == Secret(b"5678")


def test_a_pin_from_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "pin"
    file.write_bytes(b"1234\r\n")
    file.chmod(0o600)
    source = PinSource(f"file:{file}", None)
    assert source.read("main") == Secret(b"1234")
    file.chmod(0o640)
    with pytest.raises(ConfigError) as refused:
        source.read("main")
    assert refused.value.code == "keyring-permissions"


@pytest.mark.parametrize("value", ["", "9" * 256, "\udcff"], ids=["empty", "long", "not text"])
def test_what_can_be_no_pin_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setitem(os.environ, "TOKEN_PIN", value)
    with pytest.raises(ConfigError) as refused:
        PinSource("env:TOKEN_PIN", None).read("main")
    assert not value or value not in f"{refused.value.message} {refused.value.hint}"


def test_a_person_is_asked_once_by_all_threads_and_again_after_a_mistake() -> None:
    asked: list[str] = []
    start = threading.Barrier(4)

    def ask(what: str) -> str:
        asked.append(what)
        return f"123{len(asked)}"

    source = PinSource("prompt", ask)

    def read(_: int) -> Secret:
        start.wait()
        return source.read("main")

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(read, range(4))) == [Secret(b"1231")] * 4
    assert asked == ["PIN of the token 'main'"]
    source.forget("main")
    assert source.read("main") == Secret(b"1232")
    assert source.read("other") == Secret(b"1233")


def no_terminal(what: str) -> str:
    raise ConfigError(f"the {what} is needed, and this is not a terminal", code="config-missing")


@pytest.mark.parametrize("ask", [None, no_terminal], ids=["nobody", "no terminal"])
def test_with_nobody_to_ask_the_error_names_the_setting(ask: Callable[[str], str] | None) -> None:
    with pytest.raises(ConfigError, match="PIN of the token 'main' is needed") as refused:
        PinSource("prompt", ask).read("main")
    assert refused.value.code == "config-missing"
    assert "kms.pkcs11.pin" in refused.value.hint
