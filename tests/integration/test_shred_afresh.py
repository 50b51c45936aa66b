"""A shred that destroys master keys, too, and the fresh process that tries to open what was shredded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steps
from scene import Scene, ids, people
from test_shred import manifest_of, shred, states

import encpipe
from encpipe import Config, ConfigError, KeyNotFoundError, KmsUnavailableError, MasterKeys, ShreddedError
from encpipe.config import KeyringConfig
from encpipe.keys import WrappedKey
from encpipe.kms.base import Destroyed
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.unlock import create_key_file
from encpipe.lifecycle import shredtrial
from encpipe.lifecycle.shredchecks import may_be_one
from encpipe.lifecycle.shredmaster import Retirement
from encpipe.testing import InMemoryKms

KEYS = {"footer": ("local:main",), "pii": ("local:pii",)}


class Local(Scene):
    """A dataset under the keys of a local keyring, which another process can open, too."""

    @property
    def keys(self) -> MasterKeys:
        return MasterKeys(self.config)


@pytest.fixture
def scene(tmp_path: Path) -> Local:
    create_key_file(tmp_path / "key")
    keyring = KeyringConfig(tmp_path / "keyring.json", f"key-file:{tmp_path / 'key'}")
    KeyringFile.from_config(keyring).create("main", "pii", "new")
    made = Local(str(tmp_path / "dataset"), config=Config(keys=KEYS, keyring=keyring))
    made.write(people(0))
    return made


def opening(scene: Scene) -> dict[str, set[str]]:
    """Key name -> the master keys of its KEKs, retired ones too."""
    found = manifest_of(scene)
    opened: dict[str, set[str]] = {}
    for kek in found.core.keks:
        opened.setdefault(kek.key_name, set()).update(w.master_key for w in found.wrappings.get(kek.id, ()))
    return opened


# The fresh process


def test_it_finds_the_dataset_shredded(scene: Local) -> None:
    report = shred(scene)
    assert [(one.what, one.code) for one in report.tried] == [("the dataset", "shredded")]


def test_it_finds_each_kek_shredded(scene: Local) -> None:
    kek = manifest_of(scene).core.active("pii").id
    report = shred(scene, "pii")
    assert [(one.what, one.code) for one in report.tried] == [(f"KEK {kek} of pii", "shredded")]
    assert report.verdict == "removed"


def test_what_it_opens_makes_the_shred_incomplete(scene: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["encpipe.lifecycle.shred"]
    monkeypatch.setattr(module, "is_shredded", lambda *_: True)  # so nothing is committed
    for names in ((), ("pii",)):
        report = shred(scene, *names)
        assert report.verdict == "incomplete"
        assert [left.why for left in report.remaining] == ["a fresh process opens it"]


def test_it_is_handed_a_typed_passphrase(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(what: str) -> str:
        asked.append(what)
        return "correct horse"

    keyring = KeyringConfig(tmp_path / "keyring.json", "prompt")
    KeyringFile.from_config(keyring, ask).create("main")
    config = Config(keys={"footer": ("local:main",), "pii": ("local:main",)}, keyring=keyring)
    made = Scene(str(tmp_path / "dataset"), config=config)
    keys = MasterKeys(config, ask_passphrase=ask)
    made.write(people(0), master_keys=keys)
    before = len(asked)
    report = shred(made, "pii", master_keys=keys)
    assert [one.code for one in report.tried] == ["shredded"]
    assert len(asked) == before


def test_no_secret_is_in_its_arguments_or_environment(scene: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = subprocess.run

    def run(command: list[str], **more: Any) -> Any:
        seen.append((command, {k: v for k, v in more["env"].items() if os.environ.get(k) != v}))
        return real(command, **more)

    monkeypatch.setattr(subprocess, "run", run)
    shred(scene, "pii")
    ((command, added),) = seen
    assert command[1:] == ["-P", "-m", "encpipe.lifecycle.shredchild"]
    assert set(added) <= {"PYTHONPATH"}


def test_it_runs_no_code_of_the_working_directory(
    scene: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "work", tmp_path / "work" / "lib"):
        (folder / "encpipe").mkdir(parents=True)
        (folder / "encpipe" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", ["", "lib", *sys.path])
    monkeypatch.setenv("PYTHONPATH", "lib")
    assert [one.code for one in shred(scene).tried] == ["shredded"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("child", ["encpipe.no_such_module", "this"])
def test_one_that_does_not_answer_is_told_of(
    scene: Local, monkeypatch: pytest.MonkeyPatch, child: str
) -> None:
    monkeypatch.setattr(shredtrial, "CHILD", child)
    report = shred(scene)
    assert (report.verdict, report.tried) == ("removed", ())
    assert any(note.startswith("not tried in a fresh process: the process ended") for note in report.notes)


def test_keys_that_no_other_process_has_are_told_of(tmp_path: Path) -> None:
    made = Scene(str(tmp_path / "dataset"))
    made.write(people(0))
    report = shred(made)
    assert any("not tried in a fresh process" in note for note in report.notes)


# Master keys that go


def test_with_its_master_keys_it_is_destroyed(scene: Local) -> None:
    kept = (scene.folder / "_encpipe" / "manifest.json").read_bytes()
    report = shred(scene, retire_master={"local:main": "", "local:pii": ""})
    assert report.verdict == "destroyed"
    assert [one.code for one in report.tried] == ["shredded", "key-not-found", "key-not-found"]
    assert [(master.uri, master.is_gone) for master in report.retired] == [
        ("local:main", True),
        ("local:pii", True),
    ]
    (scene.folder / "_encpipe" / "manifest.json").write_bytes(kept)  # a backup
    with pytest.raises(KeyNotFoundError):
        scene.open()


def test_a_key_name_is_destroyed_and_the_rest_reads_on(scene: Local) -> None:
    report = shred(scene, "pii", retire_master={"local:pii": ""})
    assert report.verdict == "destroyed"
    assert ids(scene.table(["id"])) == list(range(6))


def test_the_configuration_need_not_name_them(scene: Local) -> None:
    scene.config = replace(scene.config, keys={})
    assert shred(scene, retire_master={"local:main": "", "local:pii": ""}).verdict == "destroyed"


def test_one_of_two_master_keys_is_not_enough(scene: Local) -> None:
    report = shred(scene, retire_master={"local:pii": ""})
    assert report.verdict == "removed"
    assert report.retired[0].is_gone


def test_a_copy_that_nothing_opens_is_no_matter(scene: Local) -> None:
    copy = scene.folder / "_encpipe" / "copy"
    copy.write_bytes((scene.folder / "_encpipe" / "manifest.json").read_bytes())
    assert shred(scene).verdict == "incomplete"
    assert shred(scene, retire_master={"local:main": "", "local:pii": ""}).verdict == "destroyed"


def test_what_stays_moves_first(scene: Local, tmp_path: Path) -> None:
    both = replace(scene.config, keys={"footer": ("local:pii",), "pii": ("local:pii",)})
    others = [Local(str(tmp_path / name), config=both) for name in ("one", "two")]
    for other in others:
        other.write(people(0))
    scene.config = both
    scene.write(people(0), overwrite=True)
    report = shred(scene, "pii", retire_master={"local:pii": "local:new"}, also=[o.url for o in others])
    assert report.verdict == "destroyed"
    assert opening(scene) == {"footer": {"local:main", "local:new"}, "pii": set()}
    assert report.retired[0].rewrapped == (scene.url, others[0].url, others[1].url)
    for other in others:
        assert opening(other) == {"footer": {"local:new"}, "pii": {"local:new"}}
        assert other.table(["name"]).num_rows == 6
    assert ids(scene.table(["id"])) == list(range(6))


def test_without_a_master_key_to_move_to_nothing_happens(scene: Local) -> None:
    shared = replace(scene.config, keys={"footer": ("local:main",), "pii": ("local:main",)})
    scene.config = shared
    scene.write(people(0), overwrite=True)
    before = (scene.folder / "_encpipe" / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="stays"):
        shred(scene, "pii", retire_master={"local:main": ""})
    with pytest.raises(ConfigError, match="destroyed itself"):
        shred(scene, retire_master={"local:main": "local:pii", "local:pii": "local:new"})
    with pytest.raises(ConfigError, match="other datasets"):
        shred(scene, also=[scene.url])
    with pytest.raises(ConfigError, match="move to"):
        shred(scene, retire_master={"local:main": ""}, also=[scene.url])
    assert (scene.folder / "_encpipe" / "manifest.json").read_bytes() == before
    assert ids(scene.table()) == list(range(6))


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_new_master_key_that_is_not_there_is_told_of_even_where_nothing_moves(
    scene: Local, dry_run: bool
) -> None:
    with pytest.raises(KeyNotFoundError):
        shred(scene, retire_master={"local:pii": "local:absent"}, dry_run=dry_run)
    assert states(scene) == {"footer": "active", "pii": "active"}
    assert ids(scene.table()) == list(range(6))


def test_a_dataset_that_cannot_move_stops_it_all(scene: Local, tmp_path: Path) -> None:
    other = Local(str(tmp_path / "other"), config=scene.config)
    other.write(people(0))
    with pytest.raises(KeyNotFoundError):
        shred(scene, retire_master={"local:pii": "local:absent"}, also=[other.url])
    with pytest.raises(encpipe.StorageError):
        shred(scene, retire_master={"local:pii": "local:new"}, also=[str(tmp_path / "nothing")])
    assert states(scene) == {"footer": "active", "pii": "active"}
    assert other.table(["name"]).num_rows == scene.table(["name"]).num_rows == 6


def test_a_master_key_that_cannot_be_destroyed_is_told_before_anything_is_done(tmp_path: Path) -> None:
    made = Scene(str(tmp_path / "dataset"), config=Config(keys={"footer": ("bare:x",), "pii": ("bare:x",)}))
    inner = made.kms.master_key("memory:main")

    class Bare:
        uri = "bare:x"
        binds_context = True

        def wrap(self, kek: Any, *, aad: Any) -> WrappedKey:
            return replace(inner.wrap(kek, aad=aad), master_key=self.uri)

        def unwrap(self, wrapped: WrappedKey, *, aad: Any) -> Any:
            return inner.unwrap(replace(wrapped, master_key="memory:main"), aad=aad)

    class BareKms:
        def master_key(self, uri: str) -> Bare:
            return Bare()

        def trusts(self, uri: str) -> bool:
            return False

    keys = MasterKeys(made.config, extra={"bare": BareKms()})
    made.write(people(0), master_keys=keys)
    with pytest.raises(ConfigError, match="cannot be destroyed from here"):
        shred(made, master_keys=keys, retire_master={"bare:x": ""})
    assert states(made) == {"footer": "active", "pii": "active"}


def test_one_that_is_not_destroyed_after_all_is_told_and_done_by_the_next_run(
    scene: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(scene.keys.get("local:pii", key_name="pii"))

    def fail(self: object) -> None:
        raise KmsUnavailableError("the service is away")

    with monkeypatch.context() as patched:
        patched.setattr(kind, "destroy", fail)
        report = shred(scene, retire_master={"local:main": "", "local:pii": ""})
    assert report.verdict == "incomplete"
    assert [left.why for left in report.remaining] == ["not destroyed: the service is away"] * 2
    again = shred(scene, retire_master={"local:main": "", "local:pii": ""})
    assert again.verdict == "removed"  # there is no old wrapping any more to try it with
    assert all(master.is_gone for master in again.retired)
    assert not (scene.folder / "_encpipe" / "retiring.json").exists()
    with pytest.raises(ShreddedError):
        scene.open()
    last = shred(scene, retire_master={"local:main": "", "local:pii": ""})
    assert (last.verdict, [master.missing for master in last.retired]) == ("removed", [True, True])
    with pytest.raises(ConfigError, match="local:new wraps nothing"):
        shred(scene, retire_master={"local:new": ""})


# What a master key still opens


def with_ring(scene: Local, folder: Path, *names: str) -> Local:
    """The same dataset for somebody with another keyring."""
    ring = KeyringConfig(folder / "other.json", scene.config.keyring.unlock)
    KeyringFile.from_config(ring).create(*names)
    return replace(scene, config=replace(scene.config, keyring=ring))


def test_the_wrong_keyring_destroys_nothing_and_says_so(scene: Local, tmp_path: Path) -> None:
    kept = (scene.folder / "_encpipe" / "manifest.json").read_bytes()
    wrong = with_ring(scene, tmp_path, "unrelated")
    report = shred(wrong, retire_master={"local:main": "", "local:pii": ""})
    assert report.verdict == "removed"
    assert [(one.missing, one.is_gone) for one in report.retired] == [(True, False)] * 2
    assert any(note.startswith("local:main was not there") for note in report.notes)
    (scene.folder / "_encpipe" / "manifest.json").write_bytes(kept)
    assert ids(scene.table()) == list(range(6))  # a backup, which the right keyring opens


def test_a_master_key_that_wraps_nothing_here_is_not_destroyed(scene: Local, tmp_path: Path) -> None:
    payroll = replace(scene, url=str(tmp_path / "payroll"))
    payroll.config = replace(scene.config, keys={"footer": ("local:new",), "pii": ("local:new",)})
    payroll.write(people(0))
    for names in ((), ("pii",)):
        for dry_run in (False, True):
            with pytest.raises(ConfigError, match="local:new wraps nothing of this dataset"):
                shred(scene, *names, retire_master={"local:new": ""}, dry_run=dry_run)
    assert states(scene) == {"footer": "active", "pii": "active"}
    assert ids(payroll.table()) == list(range(6))
    report = shred(scene, retire_master={"local:new": "local:main"}, also=[payroll.url])
    assert report.retired[0].is_gone
    assert ids(payroll.table()) == list(range(6))


def test_this_dataset_is_none_of_the_others(scene: Local) -> None:
    with pytest.raises(ConfigError, match="what is to be shredded"):
        shred(scene, retire_master={"local:pii": "local:new"}, also=[scene.url])


def between(monkeypatch: pytest.MonkeyPatch, other: Callable[[], object]) -> None:
    """After all moved and was committed, `other` happens; then the master keys are destroyed."""
    real = Retirement.destroy

    def late(self: Retirement) -> Any:
        other()
        return real(self)

    monkeypatch.setattr(Retirement, "destroy", late)


MOVED = {"local:main": "local:new", "local:pii": "local:new"}


def test_what_a_writer_wrapped_by_the_old_key_meanwhile_moves_again(
    scene: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(scene, url=str(tmp_path / "other"))
    other.write(people(0))
    between(monkeypatch, lambda: other.write(people(20), overwrite=True))
    report = shred(scene, retire_master=MOVED, also=[other.url])
    assert report.verdict == "destroyed"
    assert opening(other) == {"footer": {"local:new"}, "pii": {"local:new"}}
    assert ids(other.table()) == list(range(20, 26))


def test_the_shredded_dataset_moves_again_too(scene: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.config = replace(scene.config, keys={"footer": ("local:pii",), "pii": ("local:pii",)})
    scene.write(people(0), overwrite=True)
    between(monkeypatch, lambda: scene.write(people(20), overwrite=True))
    assert shred(scene, "pii", retire_master={"local:pii": "local:new"}).retired[0].is_gone
    assert scene.table(["id", "name"]).num_rows == 6
    assert opening(scene)["footer"] == {"local:main", "local:new"}


def test_what_came_under_it_and_cannot_move_keeps_it(scene: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        between(patched, lambda: scene.write(people(20), overwrite=True))
        report = shred(scene, "pii", retire_master={"local:pii": ""})
    assert report.verdict == "incomplete"
    assert "'pii' stays" in report.retired[0].failed
    assert ids(scene.table()) == list(range(20, 26))


def test_one_that_always_comes_back_keeps_it(
    scene: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(scene, url=str(tmp_path / "other"))
    other.write(people(0))
    real = Retirement._move

    def move(self: Retirement, access: Any, names: Any) -> None:
        real(self, access, names)
        other.write(people(20), overwrite=True)

    monkeypatch.setattr(Retirement, "_move", move)
    report = shred(scene, retire_master=MOVED, also=[other.url])
    assert report.verdict == "incomplete"
    assert all("still under it" in one.failed for one in report.retired)
    assert ids(other.table()) == list(range(20, 26))


def test_a_live_write_of_another_dataset_keeps_it_until_it_ended(
    scene: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(scene, url=str(tmp_path / "other"))
    other.write(people(0))
    reports: list[Any] = []
    log = steps.install(monkeypatch)

    def before(n: int, step: str) -> None:
        if step == "commit _encpipe/manifest.json" and not reports:
            reports.append(None)
            reports.append(shred(scene, retire_master=MOVED, also=[other.url]))

    log.before = before
    other.write(people(20), overwrite=True)
    assert reports[1].verdict == "incomplete"
    assert "journal.json" in reports[1].retired[0].failed
    assert ids(other.table()) == list(range(20, 26))
    again = shred(scene, retire_master=MOVED, also=[other.url])
    assert all(one.is_gone for one in again.retired)
    assert ids(other.table()) == list(range(20, 26))


TOKEN = "pkcs11:token=t;object=k"
ARN = "aws-kms:arn:aws:kms:eu-central-1:111122223333:key/1234"


@pytest.mark.parametrize(
    ("one", "other", "may_be"),
    [
        ("local:a", "local:a", True),
        ("local:a", "local:b", False),
        (TOKEN, f"{TOKEN};id=%01", True),
        ("pkcs11:token=t;serial=1;object=k", f"{TOKEN};id=%01", True),
        ("pkcs11:token=t;serial=1;object=k", "pkcs11:token=t;serial=2;object=k", False),
        (f"{TOKEN};id=%02", f"{TOKEN};id=%01", False),
        (TOKEN, "pkcs11:token=t;object=l", False),
        (TOKEN, "pkcs11:nonsense", False),
        (ARN, "aws-kms:1234", True),
        (ARN, "aws-kms:alias/k", True),
        (ARN, ARN.replace("1234", "5678").replace("11115678", "11112222"), False),
        ("vault:a", "local:a", False),
    ],
)
def test_two_spellings_that_may_name_one_key_are_known(one: str, other: str, may_be: bool) -> None:
    assert may_be_one(one, other) is may_be_one(other, one) is may_be


def test_another_spelling_of_a_key_that_goes_is_refused(tmp_path: Path) -> None:
    inner = InMemoryKms(["main"])
    made = Scene(str(tmp_path / "dataset"), config=Config(keys={"footer": (TOKEN,), "pii": (TOKEN,)}))

    class Token:
        def trusts(self, uri: str) -> bool:
            return True

        def master_key(self, uri: str) -> Any:
            return Spelled(uri)

    class Spelled:
        binds_context = True

        def __init__(self, uri: str) -> None:
            self.uri, self._key = uri, inner.master_key("memory:main")

        def wrap(self, kek: Any, *, aad: Any) -> WrappedKey:
            return replace(self._key.wrap(kek, aad=aad), master_key=self.uri)

        def unwrap(self, wrapped: WrappedKey, *, aad: Any) -> Any:
            return self._key.unwrap(replace(wrapped, master_key="memory:main"), aad=aad)

        def check_destroyable(self) -> None:
            pass

        def destroy(self) -> Destroyed:
            inner.forget("main")
            return Destroyed(self.uri)

    keys = MasterKeys(made.config, extra={"pkcs11": Token()})
    made.write(people(0), master_keys=keys)
    for moves in (
        {TOKEN: f"{TOKEN};id=%01"},
        {TOKEN: "", f"{TOKEN};id=%01": ""},
        {f"{TOKEN};id=%01": "pkcs11:token=t;object=other"},
    ):
        with pytest.raises(ConfigError, match="may be one master key"):
            shred(made, "pii", master_keys=keys, retire_master=moves)
    assert made.table(master_keys=keys).num_rows == 6
