"""The audit log in a file: a chain that shows what was edited, removed or moved, and that mends itself."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scene import ended, forked

from encpipe.audit import Audit, AuditCheck, audit_of, files, verify_audit
from encpipe.audit.files import FileSink
from encpipe.audit.lines import NOTHING
from encpipe.config import AuditConfig
from encpipe.errors import ConfigError, IntegrityError, KeyAccessDeniedError, StorageError
from encpipe.keys import Secret, WrappedKey


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audit(path: Path) -> Audit:
    return audit_of(AuditConfig(f"file:{path}"))


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(audit: Audit, lines: int) -> None:
    for n in range(lines):
        audit.record("open", dataset=f"data/{n}")


def wrong_lines(found: AuditCheck) -> list[int]:
    return [problem.line for problem in found.problems]


# Lines


def test_a_line_names_the_one_before_it_by_its_sha256(path: Path, audit: Audit) -> None:
    write(audit, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    before = [NOTHING, *(hashlib.sha256(line).hexdigest() for line in lines)]
    assert [line["prev"] for line in told(path)] == before[:-1]
    found = verify_audit(path)
    found.check()
    assert (found.lines, found.chains[0].head, found.collected) == (3, before[-1], False)


def test_a_line_says_who_did_what_where(path: Path, audit: Audit) -> None:
    wrapped = WrappedKey("aws-kms:arn:x", b"\xab" * 60, "7", "2026-01-01T00:00:00Z")
    audit.record(
        "unwrap",
        dataset_id="ab" * 16,
        generation=3,
        key_names=("footer", "pii"),
        master_keys=(wrapped,),
        counts={"files": 2},
    )
    (line,) = told(path)
    assert line.pop("time").endswith("Z")
    assert line.pop("user")
    assert line == {
        "prev": NOTHING,
        "v": 1,
        "event": "unwrap",
        "uid": os.geteuid(),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "dataset_id": "ab" * 16,
        "generation": 3,
        "key_names": ["footer", "pii"],
        "master_keys": [{"uri": "aws-kms:arn:x", "version": "7"}],
        "counts": {"files": 2},
    }


@pytest.mark.parametrize("value", [Secret(b"k" * 32), b"bytes", 1.5, None])
def test_a_line_takes_no_bytes_and_no_secret(path: Path, audit: Audit, value: object) -> None:
    with pytest.raises(TypeError):
        audit.record("open", dataset=value)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(TypeError):
        audit.record("open", key_names=[value])  # type: ignore[list-item]  # the mistake under test
    assert not path.exists()


def test_long_texts_are_cut_and_any_text_is_one_line(path: Path, audit: Audit) -> None:
    audit.record("open", dataset="x" * 10_000, key_names=["\n\x1b\udc80"] * 1000)
    audit.record("open")
    first, _ = told(path)
    assert (first["dataset"], len(first["key_names"])) == ("x" * 1000 + "...", 51)
    assert first["key_names"][50] == "and 950 more"
    assert first["key_names"][0] == "\n\x1b\udc80"
    verify_audit(path).check()


def test_the_log_is_ours_alone_and_is_never_cut(path: Path, audit: Audit) -> None:
    write(audit, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.read_bytes()
    audit_of(AuditConfig(f"file:{path}")).record("open")
    assert path.read_bytes().startswith(first)


def test_lines_longer_than_what_is_looked_at_first_are_chained(path: Path, audit: Audit) -> None:
    for _ in range(3):
        audit.record("open", key_names=["n" * 999] * 40)
    assert max(map(len, path.read_bytes().splitlines())) > 30_000
    found = verify_audit(path)
    found.check()
    assert (found.lines, found.recovered) == (3, 0)


# What verify finds


EDITS: dict[str, tuple[Callable[[list[bytes]], None], list[int]]] = {
    "edited": (lambda lines: lines.__setitem__(3, lines[3].replace(b"data/3", b"data/9")), [5]),
    "removed": (lambda lines: lines.__delitem__(3), [4]),
    "first removed": (lambda lines: lines.__delitem__(0), [1]),
    "moved": (lambda lines: lines.insert(2, lines.pop(5)), [3, 4, 7]),
    "doubled": (lambda lines: lines.insert(2, lines[1]), [3]),
    "put in": (lambda lines: lines.insert(2, lines[1].replace(b"data/1", b"data/9")), [3, 4]),
    "made text": (lambda lines: lines.__setitem__(3, b"nothing to see\n"), [4, 5]),
    "blanked": (lambda lines: lines.__setitem__(3, b"\n"), [4, 5]),
    "prev edited": (lambda lines: lines.__setitem__(3, lines[3].replace(b'"prev":"', b'"prev":"0')), [4, 5]),
    "blank added": (lambda lines: lines.__setitem__(3, lines[3].replace(b"}\n", b"} \n")), [4, 5]),
    "not json": (lambda lines: lines.__setitem__(7, lines[7].replace(b"}\n", b"\n")), [8]),
    "cut within": (lambda lines: lines.__setitem__(7, lines[7][:-20]), [8]),
    "of a process": (
        lambda lines: lines.__setitem__(3, lines[3].replace(b'"v"', b'"chain":"' + b"a" * 32 + b'","v"')),
        [4, 5],
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_verify_finds_what_was_done_to_the_lines(path: Path, audit: Audit, name: str) -> None:
    write(audit, 8)
    edit, wrong = EDITS[name]
    lines = path.read_bytes().splitlines(keepends=True)
    edit(lines)
    path.write_bytes(b"".join(lines))
    found = verify_audit(path)
    assert wrong_lines(found) == wrong
    with pytest.raises(IntegrityError, match=f"line {wrong[0]}:") as caught:
        found.check()
    assert caught.value.code == "audit-chain"


def test_a_cut_end_shows_only_to_who_knows_the_head(path: Path, audit: Audit) -> None:
    write(audit, 3)
    head = verify_audit(path).chains[0].head
    write(audit, 2)
    verify_audit(path, head=head).check()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    verify_audit(path).check()
    with pytest.raises(IntegrityError, match="the end was cut off"):
        verify_audit(path, head=head).check()


def test_an_edited_last_line_shows_to_who_knows_the_head(path: Path, audit: Audit) -> None:
    write(audit, 3)
    head = verify_audit(path).chains[0].head
    path.write_bytes(path.read_bytes().replace(b"data/2", b"data/7"))
    verify_audit(path).check()
    assert wrong_lines(verify_audit(path, head=head)) == [3]


def test_an_emptied_log_shows_to_who_knows_the_head(path: Path, audit: Audit) -> None:
    write(audit, 3)
    head = verify_audit(path).chains[0].head
    path.write_bytes(b"")
    verify_audit(path).check()
    assert verify_audit(path, head=head).problem_count == 1


def test_a_head_is_64_hex_digits(path: Path, audit: Audit) -> None:
    write(audit, 1)
    with pytest.raises(ConfigError, match="64"):
        verify_audit(path, head="5d2c")


def test_problems_are_counted_and_the_first_ones_listed(path: Path) -> None:
    path.write_text("x\n" * 1)
    assert verify_audit(path).problem_count == 1
    path.write_text('{"prev":"' + "1" * 64 + '","v":1}\n')
    path.write_text(path.read_text() * 300)
    found = verify_audit(path)
    assert (found.problem_count, len(found.problems)) == (300, 100)


def test_a_log_that_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        verify_audit(path)
    assert caught.value.code == "not-found"


def test_lines_of_a_newer_version_are_no_lines(path: Path, audit: Audit) -> None:
    write(audit, 1)
    path.write_bytes(path.read_bytes().replace(b'"v":1', b'"v":2'))
    assert wrong_lines(verify_audit(path)) == [1]


# Lines cut short


@pytest.mark.parametrize("keep", [1, 9, 60, 90, 150])
def test_a_line_cut_short_is_closed_by_the_next(path: Path, audit: Audit, keep: int) -> None:
    write(audit, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
    write(audit, 2)
    assert [json.loads(line)["event"] for line in path.read_bytes().splitlines()[3:]] == [
        "recovered",
        "open",
        "open",
    ]
    found = verify_audit(path)
    found.check()
    assert (found.recovered, found.lines) == (1, 5)


def test_a_line_that_lacks_only_its_newline_gets_it(path: Path, audit: Audit) -> None:
    write(audit, 3)
    path.write_bytes(path.read_bytes()[:-1])
    write(audit, 1)
    found = verify_audit(path)
    found.check()
    assert (found.recovered, found.lines) == (0, 4)


def test_a_first_line_cut_short_is_closed_too(path: Path, audit: Audit) -> None:
    path.write_bytes(b'{"prev":"00')
    write(audit, 1)
    found = verify_audit(path)
    found.check()
    assert (found.recovered, found.lines) == (1, 2)


def test_what_closes_a_line_can_be_cut_short_too(path: Path, audit: Audit) -> None:
    write(audit, 2)
    with path.open("ab") as file:
        file.write(b'{"prev":"torn\n{"prev":"and torn')
    write(audit, 1)
    with path.open("ab") as file:
        file.write(b"torn, and a newline\n")
    write(audit, 1)
    found = verify_audit(path)
    found.check()
    assert (found.recovered, found.lines) == (2, 6)


def test_a_line_removed_before_one_cut_short_is_found(path: Path, audit: Audit) -> None:
    write(audit, 3)
    with path.open("ab") as file:
        file.write(b'{"pr')
    write(audit, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[2]
    path.write_bytes(b"".join(lines))
    assert wrong_lines(verify_audit(path)) == [4]


@pytest.mark.parametrize("put_in", ["of a process", "of another version", "json"])
def test_a_record_put_in_before_a_line_cut_short_is_found(path: Path, audit: Audit, put_in: str) -> None:
    write(audit, 3)
    with path.open("ab") as file:
        file.write(b'{"pr')
    write(audit, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    forged = {
        "of a process": lines[1].replace(b'"v"', b'"chain":"' + b"a" * 32 + b'","v"'),
        "of another version": lines[1].replace(b'"v":1', b'"v":2'),
        "json": b' {"event":"revoke"}\n',
    }
    path.write_bytes(b"".join([*lines[:3], forged[put_in], *lines[3:]]))
    assert wrong_lines(verify_audit(path)) == [4]


def test_a_file_that_is_no_log_is_not_written_to(path: Path, audit: Audit) -> None:
    path.write_bytes(b"\0" * (4 << 20))
    with pytest.raises(StorageError, match="no audit log"):
        write(audit, 1)
    assert path.stat().st_size == 4 << 20


# A log that fails


def fail_to_write(audit: Audit) -> StorageError:
    with pytest.raises(StorageError) as caught:
        audit.record("open")
    assert caught.value.code == "audit"
    assert "audit.required" in caught.value.hint
    with pytest.raises(StorageError):
        audit.check()
    return caught.value


def test_a_missing_folder_refuses(tmp_path: Path) -> None:
    fail_to_write(audit_of(AuditConfig(f"file:{tmp_path}/no/audit.jsonl")))


def test_a_folder_in_its_place_refuses(tmp_path: Path) -> None:
    fail_to_write(audit_of(AuditConfig(f"file:{tmp_path}")))


def test_a_pipe_in_its_place_refuses_and_does_not_wait(path: Path, audit: Audit) -> None:
    os.mkfifo(path)
    assert "regular" in fail_to_write(audit).message


def test_a_full_disk_refuses(path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: first a line that is cut short, then none at all."""
    code = f"""
import resource, signal
from encpipe.audit import audit_of
from encpipe.config import AuditConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
audit = audit_of(AuditConfig("file:{path}"))
audit.record("open")
resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        audit.record("open")
    except Exception as error:
        print(error.code)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
audit.record("open")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "audit\naudit\n"
    verify_audit(path).check()


def test_a_log_that_stays_locked_refuses(path: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    write(audit, 1)
    monkeypatch.setattr(files, "LOCK_WAIT_SECONDS", 0.05)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "locked" in fail_to_write(audit).message
    write(audit, 1)


def test_where_the_log_is_not_required_the_next_line_says_what_was_lost(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    audit = audit_of(AuditConfig(f"file:{folder}/audit.jsonl", required=False))
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="going on without"):
            audit.record("open")
    with pytest.warns(RuntimeWarning):
        audit.check()
    folder.mkdir()
    audit.record("open")
    audit.record("open")
    assert [line.get("lost") for line in told(folder / "audit.jsonl")] == [2, None]
    assert verify_audit(folder / "audit.jsonl").lost == 2


def test_no_sink_is_no_log() -> None:
    audit = audit_of(AuditConfig())
    assert not audit.enabled
    audit.check()
    audit.record("open", dataset=b"not looked at")  # type: ignore[arg-type]  # the mistake under test
    with audit.attempt("gc"):
        pass


@pytest.mark.parametrize("sink", ["file:", "logger:", "syslog", "stdout", ""])
def test_other_sinks_are_refused(sink: str) -> None:
    with pytest.raises(ConfigError, match="sink is"):
        audit_of(AuditConfig(sink))


# Operations


def test_an_attempt_is_told_before_it_is_made(path: Path, audit: Audit) -> None:
    with audit.attempt("rewrap", dataset="d"):
        assert [line["event"] for line in told(path)] == ["rewrap"]
    assert len(told(path)) == 1


def test_a_failure_is_told_by_its_code_and_not_by_its_message(path: Path, audit: Audit) -> None:
    with pytest.raises(KeyAccessDeniedError), audit.attempt("revoke", dataset="d"):
        raise KeyAccessDeniedError("column 'salary' is denied")
    for error, code in ((KeyboardInterrupt(), "interrupted"), (ValueError("salary"), "internal")):
        with pytest.raises(type(error)), audit.refusals("open"):
            raise error
        assert told(path)[-1]["code"] == code
    line = told(path)[1]
    assert (line["event"], line["of"], line["code"], line["dataset"]) == (
        "refusal",
        "revoke",
        "key-denied",
        "d",
    )
    assert "salary" not in path.read_text()


def test_no_attempt_without_its_line(tmp_path: Path) -> None:
    audit = audit_of(AuditConfig(f"file:{tmp_path}/no/audit.jsonl"))
    entered = False
    with pytest.raises(StorageError), audit.attempt("rewrap"):
        entered = True
    assert not entered


def test_a_refusal_that_was_not_taken_leaves_the_error_as_it_is(tmp_path: Path) -> None:
    audit = audit_of(AuditConfig(f"file:{tmp_path}/no/audit.jsonl"))
    with pytest.raises(KeyAccessDeniedError) as caught, audit.refusals("open"):
        raise KeyAccessDeniedError("denied", hint="ask")
    assert caught.value.hint.startswith("ask; also, the audit log")
    with pytest.raises(ValueError, match="x"), audit.refusals("open"):
        raise ValueError("x")


# Threads, processes, rotation


def test_threads_and_processes_share_a_file(path: Path, audit: Audit) -> None:
    code = f"""
from encpipe.audit import audit_of
from encpipe.config import AuditConfig
audit = audit_of(AuditConfig("file:{path}"))
for n in range(100):
    audit.record("open", generation=n)
"""
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    threads = [threading.Thread(target=write, args=(audit, 50)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0, 0]
    found = verify_audit(path)
    found.check()
    assert (found.lines, found.recovered) == (500, 0)
    assert len({line["pid"] for line in told(path)}) == 4


def test_a_log_is_verified_while_it_is_written(path: Path, audit: Audit) -> None:
    write(audit, 1)
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            audit.record("open")

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        for _ in range(5):
            verify_audit(path).check()
    finally:
        stop.set()
        writer.join()


def test_a_forked_child_writes_lines_of_its_own(path: Path, audit: Audit) -> None:
    write(audit, 1)
    children = [forked(lambda: write(audit, 50)) for _ in range(2)]
    write(audit, 50)
    assert [ended(child) for child in children] == [0, 0]
    verify_audit(path).check()
    lines = told(path)
    assert len(lines) == 151
    assert {line["pid"] for line in lines} == {os.getpid(), *children}


def test_a_process_that_dies_within_a_line_leaves_no_lock_to_its_child(
    path: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT_SECONDS", 1.0)
    held, release = os.pipe()

    def die_within_a_line() -> None:
        def die(*_: int) -> None:
            forked(lambda: os.read(held, 1))
            os._exit(0)

        FileSink(path).locked(die)

    try:
        assert ended(forked(die_within_a_line)) == 0
        write(audit, 1)
    finally:
        os.write(release, b"x")
        os.close(release)
        os.close(held)


def test_a_log_that_is_moved_away_is_begun_anew(path: Path, audit: Audit) -> None:
    write(audit, 2)
    path.rename(path.with_suffix(".1"))
    write(audit, 3)
    path.unlink()
    write(audit, 1)
    assert [verify_audit(p).lines for p in (path.with_suffix(".1"), path)] == [2, 1]
    verify_audit(path).check()


def test_the_file_is_closed_with_what_uses_it(path: Path) -> None:
    audit = audit_of(AuditConfig(f"file:{path}"))
    write(audit, 1)
    link = Path("/proc/self/fd")
    open_now = [fd for fd in link.iterdir() if fd.is_symlink() and os.path.realpath(fd) == str(path)]
    assert len(open_now) == 1
    del audit
    assert not open_now[0].is_symlink() or os.path.realpath(open_now[0]) != str(path)
