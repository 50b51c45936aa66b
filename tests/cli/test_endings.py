"""How a run ends: streams, exit codes, JSON errors, Ctrl-C, closed pipes, and faults of our own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from encpipe import errors
from encpipe.errors import CODES, EncpipeError

ENCPIPE = [sys.executable, "-m", "encpipe"]
ROOT = str(Path(__file__).parents[2])


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


def classes(base: type[EncpipeError] = EncpipeError) -> list[type[EncpipeError]]:
    ours = [c for c in base.__subclasses__() if c.__module__ == errors.__name__]
    return [base, *(found for c in ours for found in classes(c))]


@pytest.mark.parametrize("kind", classes())
def test_every_error_ends_with_its_exit_code(
    kind: type[EncpipeError], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encpipe.initialise.initialise", failing(kind("it broke", hint="mend it")))
    text = cli("init", code=kind.exit_code)
    assert (text.out, text.err) == ("", "encpipe: error: it broke\nhint: mend it\n")
    assert cli("init", "--json", code=kind.exit_code).json == {
        "error": {"code": kind.default_code, "message": "it broke", "hint": "mend it"}
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "no such command 'nothing'"),
        (("keys", "lst"), "no such command 'lst'"),
        (("head",), "missing argument 'URL'"),
        (("decrypt", "x"), "missing option '--plaintext-to'"),
        (("head", "x", "--nothing"), "no such option: --nothing"),
        (("head", "x", "-n", "many"), "invalid value for '--rows'"),
        (("head", "x", "--on-missing-key", "guess"), "invalid value for '--on-missing-key'"),
        (("encrypt", "a", "b", "--key", "pii"), "--key takes NAME=VALUE"),
        (("encrypt", "a", "b", "--key", "pii=default"), "'default' is not a master key URI"),
        (("head", "x", "--storage-option", "secret=abc"), "may hold a secret"),
        (("head", "x", "--storage-option", "abc"), "--storage-option takes NAME=VALUE"),
    ],
)
def test_a_command_line_that_does_not_fit(args: tuple[str, ...], message: str, cli: Cli) -> None:
    text = cli(*args, code=2)
    assert text.out == ""
    lines = text.err.splitlines()
    assert lines[0].startswith("encpipe: error: ")
    assert message in lines[0]
    assert not lines[0].endswith(".")
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2
    assert cli(*args, "--json", code=2).json["error"]["code"] == "usage"


def test_a_fault_of_our_own_tells_where_and_not_what(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encpipe.initialise.initialise", failing(ValueError("S3cret-marker")))
    ran = cli("init", code=1)
    assert ran.err.startswith("encpipe: error: unexpected ValueError in init.py:")
    assert "S3cret" not in ran.err
    assert "Traceback" not in ran.err
    assert cli("init", "--json", code=1).json["error"]["code"] == "internal"
    debug = cli("init", code=1, env={"ENCPIPE_DEBUG": "1"})
    assert "Traceback" in debug.err


def test_what_others_wrote_cannot_steer_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = EncpipeError("file '\x1b[2J\u202e' is gone", hint="\x07")
    monkeypatch.setattr("encpipe.initialise.initialise", failing(evil))
    ran = cli("init", code=1)
    assert ran.err == "encpipe: error: file '\\x1b[2J\\u202e' is gone\nhint: \\x07\n"


def test_ctrl_c_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encpipe.initialise.initialise", failing(KeyboardInterrupt()))
    assert cli("init", code=130).err == "encpipe: error: stopped\n"
    assert cli("init", "--json", code=130).json["error"]["code"] == "interrupted"
    monkeypatch.setattr("encpipe.config.load_config", failing(KeyboardInterrupt()))
    assert "the same command again" in cli("encrypt", "a", "b", code=130).err


def test_an_unconfigured_write_names_init(cli: Cli) -> None:
    error = cli("encrypt", "a.parquet", "b", "--json", code=2).json["error"]
    assert error["code"] == "config-missing"
    assert "encpipe init" in error["hint"]


def test_codes_are_listed() -> None:
    assert {"usage", "interrupted", "internal"} <= set(CODES)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ROOT}


def test_a_closed_pipe_is_quiet(ready: Cli, home: Path) -> None:
    for args in (["keys", "list"], ["--help"]):
        read, write = os.pipe()
        os.close(read)
        ran = subprocess.run([*ENCPIPE, *args], stdout=write, stderr=subprocess.PIPE, env=environment())
        os.close(write)
        assert ran.stderr == b""
        assert ran.returncode != 0


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_full_standard_output_is_no_fault_of_ours(ready: Cli, home: Path, flags: list[str]) -> None:
    for args, why in (
        (["keys", "list"], b"No space left on device"),
        (["head", "absent"], b"no encpipe dataset"),
    ):
        with Path("/dev/full").open("wb") as full:
            command = [*ENCPIPE, *args, *flags]
            ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment())
        assert ran.returncode == 5
        assert why in ran.stderr
        assert b"fault of encpipe" not in ran.stderr
        assert len(ran.stderr.splitlines()) == 2


def test_help_is_quick_because_nothing_heavy_is_imported(home: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "encpipe", "--help"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}
    assert not imported & {"pyarrow", "rich", "torch", "boto3", "numpy", "cryptography", "pandas", "fsspec"}
    assert "typer" in imported


def test_a_terminal_without_utf8_is_no_reason_to_fail(home: Path) -> None:
    env = {**environment(), "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([*ENCPIPE, "head", "Zürich"], capture_output=True, env=env)
    assert ran.returncode == 5
    assert b"Z\\xfcrich" in ran.stderr


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Terminal:
    """`encpipe` on a pseudo terminal."""

    def __init__(self, *args: str) -> None:
        self._fd, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *ENCPIPE[1:], *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment(), "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(slave)
        self.seen = ""
        self._read_to = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def answer(self, before: str, prompt: str, answer: str) -> None:
        """Wait for a message, then for a whole prompt after it, then type."""
        for text in (before, prompt, ": "):
            self.wait_for(text)
        self.send(f"{answer}\n")

    def wait_for(self, text: str) -> None:
        """Read on until `text` comes, after what was waited for before."""
        while self.seen.find(text, self._read_to) < 0:
            more = self._read()
            assert more, f"never saw {text!r} in {self.seen[self._read_to :]!r}"
        self._read_to = self.seen.find(text, self._read_to) + len(text)

    def send(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        while self._read():
            pass
        return self._process.wait()

    def _read(self) -> str:
        try:
            more = os.read(self._fd, 4096).decode()
        except OSError:  # Linux's way to say that the other side is closed
            return ""
        self.seen += more
        return more


def test_a_terminal_is_asked_twice_for_a_new_passphrase_and_never_shown_one(home: Path) -> None:
    with Terminal("init") as terminal:
        for before, prompt, answer in (
            ("", "new passphrase", "short"),
            ("at least 8 characters", "new passphrase", "correct horse"),
            ("", "the same again", "correct house"),
            ("the two differ", "new passphrase", "correct horse"),
            ("", "the same again", "correct horse"),
        ):
            terminal.answer(before, prompt, answer)
        assert terminal.end() == 0
        assert "a lost keyring is lost data" in terminal.seen
        assert "horse" not in terminal.seen


def test_the_current_passphrase_is_asked_for_before_the_new_one(cli: Cli) -> None:
    cli("init", env={"ENCPIPE_PASSPHRASE": "correct horse"})
    with Terminal("keys", "passphrase") as terminal:
        terminal.answer("", "current passphrase of", "correct horse")
        terminal.answer("", "new passphrase of", "correct house")
        terminal.answer("", "the same again", "correct house")
        assert terminal.end() == 0
    cli("keys", "create", "a", env={"ENCPIPE_PASSPHRASE": "correct house"})


def test_ctrl_c_at_a_prompt_writes_nothing(home: Path) -> None:
    with Terminal("init") as terminal:
        terminal.wait_for("new passphrase")
        terminal.send("\x03")
        assert terminal.end() == 130
        assert "stopped" in terminal.seen
        assert "Traceback" not in terminal.seen
    assert list(home.iterdir()) == []
