"""`encpipe doctor`: what it notices on machines and set-ups of all kinds, and that it touches nothing."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from encpipe import machine
from encpipe.checkup import check_up, memory, setup
from encpipe.machine import Machine

KEY = base64.b64encode(bytes(range(32))).decode()


def levels(payload: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["level"] for finding in payload["findings"]}


def finding(payload: dict[str, Any], check: str) -> dict[str, str]:
    (found,) = (finding for finding in payload["findings"] if finding["check"] == check)
    return dict(found)


def test_a_set_up_that_works_has_no_failure(ready: Cli, home: Path) -> None:
    payload = ready("doctor", "--json").json
    assert payload["failed"] == 0
    found = levels(payload)
    assert [
        found[check] for check in ("packages", "configuration", "certificates", "keyring", "unlocking")
    ] == ["ok"] * 5
    assert found["guard"] == "ok"
    assert found.keys() >= {"core dumps", "swap", "locked memory", "debuggers", "shared memory"}
    assert found.keys() >= {"temporary files", "caches", "decryption", "cores", "TLS", "extra torch"}
    assert str(Path("encpipe.toml").absolute()) in finding(payload, "configuration")["found"]
    assert "default, pii" in finding(payload, "keyring")["found"]
    assert str(home / "encpipe.key") in finding(payload, "unlocking")["found"]


def test_for_people_there_is_a_table_and_advice(ready: Cli) -> None:
    out = ready("doctor").out
    assert "check" in out.splitlines()[0]
    assert "what to do, where it matters to you\n" in out
    assert "nothing is in the way" in out or "warning" in out


def test_before_anything_is_set_up_it_says_how_to_begin(cli: Cli) -> None:
    payload = cli("doctor", "--json").json
    assert finding(payload, "configuration")["level"] == "warn"
    assert "./encpipe.toml" in finding(payload, "configuration")["found"]
    assert "encpipe init" in finding(payload, "configuration")["hint"]
    assert "nothing is in the way" not in cli("doctor").out
    assert finding(payload, "keyring")["level"] == "note"


def test_a_configuration_that_does_not_load_is_a_failure(cli: Cli) -> None:
    Path("encpipe.toml").write_text("[keyrin]\n")
    ran = cli("doctor", "--json", code=1)
    assert ran.json["failed"] == 1
    assert "keyrin" in finding(ran.json, "configuration")["found"]
    assert "keyring" in finding(ran.json, "configuration")["hint"]
    assert "1 failure" in cli("doctor", code=1).out
    assert finding(cli("doctor", "--config", "other.toml", "--json", code=1).json, "configuration")["hint"]


def test_a_keyring_that_others_may_read_is_a_failure(ready: Cli, home: Path) -> None:
    keyring = home / ".local/share/encpipe/keyring.json"
    keyring.chmod(0o644)
    found = finding(ready("doctor", "--json", code=1).json, "keyring")
    assert (found["level"], found["hint"]) == ("fail", f"chmod 600 {keyring}")


def test_a_keyring_that_is_gone_is_a_failure_where_a_key_name_needs_it(ready: Cli, home: Path) -> None:
    (home / ".local/share/encpipe/keyring.json").unlink()
    found = finding(ready("doctor", "--json", code=1).json, "keyring")
    assert "restore a backup" in found["hint"]


@pytest.mark.parametrize("fault", ["gone", "open to others"])
def test_what_unlocks_the_keyring_has_to_be_there_and_private(ready: Cli, home: Path, fault: str) -> None:
    key = home / "encpipe.key"
    key.unlink() if fault == "gone" else key.chmod(0o640)
    assert finding(ready("doctor", "--json", code=1).json, "unlocking")["level"] == "fail"


def test_a_passphrase_comes_from_a_variable_that_is_set(ready: Cli) -> None:
    config = Path("encpipe.toml")
    lines = [
        'unlock = "env:JOB"' if line.startswith("unlock") else line for line in config.read_text().split("\n")
    ]
    config.write_text("\n".join(lines))
    assert "JOB is not set" in finding(ready("doctor", "--json", code=1).json, "unlocking")["found"]
    payload = ready("doctor", "--json", env={"JOB": "not to be shown"}).json
    assert finding(payload, "unlocking")["level"] == "ok"
    assert "not to be shown" not in str(payload)


def test_a_key_in_the_environment_is_checked_and_not_shown(cli: Cli) -> None:
    payload = cli("doctor", "--json", env={"ENCPIPE_MASTER_KEY": KEY}).json
    assert finding(payload, "keyring")["level"] == "ok"
    assert KEY not in str(payload)
    ran = cli("doctor", "--json", env={"ENCPIPE_MASTER_KEY": KEY[:20]}, code=1)
    assert finding(ran.json, "keyring")["level"] == "fail"
    assert KEY[:20] not in ran.out


def test_a_ca_file_that_is_not_there_is_a_failure(ready: Cli) -> None:
    with Path("encpipe.toml").open("a") as file:
        file.write('[tls]\nca_file = "gone.pem"\n')
    assert "gone.pem" in finding(ready("doctor", "--json", code=1).json, "certificates")["found"]


def test_an_extra_that_is_missing_matters_where_a_key_needs_it(
    ready: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "installed", lambda name: None if name == "boto3" else "1.0")
    found = finding(ready("doctor", "--json").json, "extra aws")
    assert (found["level"], found["hint"]) == ("note", "pip install 'encpipe[aws]'")
    ready("init", "--config", "aws.toml", "--key", "footer=aws-kms:alias/main")
    found = finding(ready("doctor", "--config", "aws.toml", "--json", code=1).json, "key service")
    assert (found["level"], found["hint"]) == ("fail", "pip install 'encpipe[aws]'")


def test_it_changes_nothing(ready: Cli, home: Path) -> None:
    def everything() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in home.parent.rglob("*")}

    before, dumpable = everything(), machine.dumpable()
    ready("doctor")
    assert everything() == before
    assert machine.dumpable() == dumpable


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """The level of a check on a machine that has just these files."""

    def other(check: str, **files: str) -> str:
        root = tmp_path / "root"
        for path, text in files.items():
            target = root / path.replace("__", "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        (level,) = (
            finding.level for finding in check_up(machine=Machine(root)).findings if finding.check == check
        )
        return str(level)

    return other


SWAPS = "Filename Type Size Used Priority\n/dev/sda2 partition 8 0 -2\n"


def test_machines_that_let_plaintext_out_are_noticed(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        other("core dumps", proc__sys__kernel__core_pattern="|/usr/lib/systemd/systemd-coredump %P") == "note"
    )
    assert other("swap") == "ok"
    assert other("swap", proc__swaps=SWAPS) == "warn"
    assert other("debuggers", proc__sys__kernel__yama__ptrace_scope="0\n") == "note"
    assert other("debuggers", proc__sys__kernel__yama__ptrace_scope="1\n") == "ok"
    assert other("shared memory", proc__mounts="a / ext4 rw 0 0\nb /dev/shm tmpfs rw 0 0\n") != "fail"
    assert other("shared memory", proc__mounts="a / ext4 rw 0 0\n") == "warn"


def test_core_dumps_without_a_pipe_go_by_the_limit(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "core_limit", lambda: 0)
    assert other("core dumps", proc__sys__kernel__core_pattern="core\n") == "ok"
    monkeypatch.setattr(memory, "core_limit", lambda: None)
    assert other("core dumps") == "note"


def test_a_processor_without_aes_instructions_is_noticed(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.aead, "open_speed", lambda: 3e9)
    assert other("decryption", proc__cpuinfo="flags\t\t: fpu aes avx\n") == "ok"
    assert other("decryption", proc__cpuinfo="Features\t: fp asimd\n") == "warn"
    monkeypatch.setattr(memory.aead, "open_speed", lambda: 1e8)
    assert other("decryption", proc__cpuinfo="flags\t\t: fpu aes avx\n") == "warn"


def test_shared_memory_of_a_container_is_small(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = os.statvfs_result((4096, 4096, 16384, 16384, 16384, 0, 0, 0, 0, 255))
    monkeypatch.setattr(memory.os, "statvfs", lambda _: sizes)
    assert other("shared memory") == "warn"


def test_a_guard_that_is_refused_is_a_failure(ready: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Any:
        raise memory.ConfigError("no", hint="Guard(forbid_core_dumps=False)")

    monkeypatch.setattr(memory.guard, "hold", refuse)
    assert "forbid_core_dumps" in finding(ready("doctor", "--json", code=1).json, "guard")["hint"]
