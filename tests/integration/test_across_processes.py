"""An open dataset goes to other processes: forked, spawned, by pickle; never with a key in the pickle."""

from __future__ import annotations

import base64
import contextlib
import copy
import gc
import multiprocessing
import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from scene import PII, Scene, ended, forked, ids, people
from servers.seaweed import Seaweed

import encpipe
from encpipe import (
    Config,
    ConfigError,
    Dataset,
    EncpipeError,
    KeyAccessDeniedError,
    ManifestError,
    MasterKeys,
    StaleDatasetError,
    manifest,
)
from encpipe.access import open_access
from encpipe.config import KeyringConfig, TlsConfig
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey
from encpipe.kms.keyringfile import KeyringFile
from encpipe.kms.keyringformat import KdfParams
from encpipe.kms.unlock import PassphraseUnlock, create_key_file
from encpipe.parquet import keyclients
from encpipe.storage import memory
from encpipe.testing import InMemoryKms

PASSPHRASE = "correct horse battery"
METHODS = ("fork", "spawn", "forkserver")
ROWS = people(rows=10)


class LoggedKms(InMemoryKms):
    """`memory:NAME` with the key in the file NAME of a folder, and every unwrap a line in `log` there: which
    process, which key. Denies a key while a file `NAME.denied` is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__([])
        self.folder = folder
        for file in folder.glob("*.key"):
            self._keys[file.stem] = {1: Secret(file.read_bytes())}

    def __reduce__(self) -> tuple[Callable[..., LoggedKms], tuple[Any, ...]]:
        return LoggedKms, (self.folder,)

    def master_key(self, uri: str) -> MasterKey:
        return LoggedKey(super().master_key(uri), self.folder)

    def calls(self, pid: int | None = None) -> Counter[str]:
        """Key -> how often it was asked for, by one process or all."""
        log = self.folder / "log"
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return Counter(name for by, name in lines if pid in (None, int(by)))


class LoggedKey:
    binds_context = True

    def __init__(self, inner: MasterKey, folder: Path) -> None:
        self.inner, self.folder = inner, folder
        self.uri = inner.uri

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        return self.inner.wrap(kek, aad=aad)

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        name = self.uri.partition(":")[2]
        with (self.folder / "log").open("a") as log:
            log.write(f"{os.getpid()} {name}\n")
        if (self.folder / f"{name}.denied").exists():
            raise KeyAccessDeniedError(f"{self.uri} is denied")
        return self.inner.unwrap(wrapped, aad=aad)


@pytest.fixture
def kms(tmp_path: Path) -> LoggedKms:
    folder = tmp_path / "kms"
    folder.mkdir()
    for name in ("main", "pii"):
        (folder / f"{name}.key").write_bytes(os.urandom(32))
    return LoggedKms(folder)


@pytest.fixture
def scene(tmp_path: Path, kms: LoggedKms) -> Scene:
    made = Scene(str(tmp_path / "dataset"), kms)
    made.write(ROWS)
    return made


def in_process(method: str, work: Callable[..., None], *args: object) -> int:
    """Run `work` in a process of its own, to its end; the pid it had."""
    process = multiprocessing.get_context(method).Process(target=work, args=args)  # type: ignore[attr-defined]  # the base context has one
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()  # else it would keep the whole run from ending
        process.join(60)
    assert process.exitcode == 0
    return int(process.pid or 0)


def reads(dataset: Dataset, table: pa.Table, columns: list[str] | None = None) -> None:
    """In the other process: the rows are these."""
    assert dataset.to_table(columns).equals(table)


def again(dataset: Dataset) -> Dataset:
    """What another process gets."""
    made = pickle.loads(pickle.dumps(dataset))
    assert isinstance(made, Dataset)
    return made


# Reading in other processes


@pytest.mark.parametrize("method", METHODS)
def test_a_process_reads_what_its_parent_opened(scene: Scene, kms: LoggedKms, method: str) -> None:
    with scene.open() as dataset:
        assert dataset.to_table().equals(ROWS)
        before = kms.calls(os.getpid())
        pids = [in_process(method, reads, dataset, ROWS) for _ in range(2)]
        assert dataset.to_table().equals(ROWS)
    once = {} if method == "fork" else {"main": 1, "pii": 1}
    assert [kms.calls(pid) for pid in pids] == [once, once]
    assert kms.calls(os.getpid()) == before


@pytest.mark.parametrize("method", METHODS)
def test_a_process_asks_only_for_the_keys_it_needs(scene: Scene, kms: LoggedKms, method: str) -> None:
    with scene.open() as dataset:
        pid = in_process(method, reads, dataset, ROWS.select(["id"]), ["id"])
    assert kms.calls(pid) == ({} if method == "fork" else {"main": 1})


def test_a_forked_child_asks_for_what_its_parent_had_not(scene: Scene, kms: LoggedKms) -> None:
    with scene.open() as dataset:
        pid = in_process("fork", reads, dataset, ROWS)
    assert kms.calls(pid) == {"pii": 1}


def test_threads_of_a_process_share_one_unwrap(scene: Scene, kms: LoggedKms) -> None:
    with scene.open() as dataset:
        other = again(dataset)
    before = kms.calls()
    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        tables = list(threads.map(lambda _: (start.wait(30), other.to_table())[1], range(8)))
    assert all(table.equals(ROWS) for table in tables)
    assert kms.calls() - before == {"main": 1, "pii": 1}
    assert other.kms_calls == 2


def test_nothing_is_asked_or_read_before_the_first_use(scene: Scene, kms: LoggedKms) -> None:
    with scene.open() as dataset:
        before = kms.calls()
        other = again(again(dataset))
        assert other.url == dataset.url
        assert "not used yet" in repr(other)
        assert kms.calls() == before
        assert (other.dataset_id, other.generation, other.core_digest, other.schema) == (
            dataset.dataset_id,
            dataset.generation,
            dataset.core_digest,
            dataset.schema,
        )
        assert repr(other) == repr(dataset)


def test_a_relative_path_is_the_same_place_everywhere(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("dataset", "file://dataset"):
        with scene.at(url).open() as dataset:
            other = again(dataset)
            monkeypatch.chdir("/")
            reads(other, ROWS)
            pid = forked(lambda dataset=dataset: reads(dataset, ROWS))
            assert ended(pid) == 0
            monkeypatch.chdir(tmp_path)


def test_a_process_reads_from_a_bucket(
    seaweed: Seaweed, bucket: str, kms: LoggedKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.secret_key)
    place = {"endpoint_url": seaweed.https, "region_name": seaweed.region}
    made = Scene(f"s3://{bucket}/dataset", kms, options=place)
    made.config = Config(keys=made.config.keys, tls=TlsConfig(ca_file=Path(seaweed.ca)))
    made.write(ROWS)
    with made.open() as dataset:
        assert dataset.to_table().equals(ROWS)
        assert seaweed.secret_key.encode() not in pickle.dumps(dataset)
        for method in ("fork", "spawn"):
            in_process(method, reads, dataset, ROWS)
        assert dataset.to_table().equals(ROWS)


# The same generation, the same missing keys


def test_a_newer_generation_is_not_read(scene: Scene) -> None:
    with scene.open() as dataset:
        carried = pickle.dumps(dataset)
    scene.append(people(10))
    reads(pickle.loads(carried), ROWS)
    with scene.open(generation=1) as dataset:
        carried = pickle.dumps(dataset)
    scene.append(people(16))
    reads(pickle.loads(carried), ROWS)
    assert len(scene.table()) == 22


def test_a_generation_that_was_removed_is_stale(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "RETAINED_GENERATIONS", 1)
    with scene.open() as dataset:
        carried = pickle.dumps(dataset)
        (scene.folder / dataset._state.view.core.list_name).rename(scene.folder / "aside")
    with pytest.raises(ManifestError) as caught:  # nobody removed it: damage
        pickle.loads(carried).to_table()
    assert caught.value.code == "file-missing"
    (scene.folder / "aside").rename(scene.folder / dataset._state.view.core.list_name)
    scene.append(people(10))
    scene.append(people(16))
    (scene.folder / dataset._state.view.core.list_name).unlink()
    with pytest.raises(StaleDatasetError, match=r"generation 1 .* is gone"):
        pickle.loads(carried).to_table()


def test_the_list_is_checked_in_every_process(scene: Scene) -> None:
    with scene.open() as dataset:
        carried = pickle.dumps(dataset)
        path = scene.folder / dataset._state.view.core.list_name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ManifestError):
        pickle.loads(carried).to_table()


def test_the_manifest_in_a_pickle_is_checked_like_one_on_the_storage(scene: Scene) -> None:
    with scene.open() as dataset:
        other = again(dataset)
        known = other._open._known
    edited = known.manifest_bytes.replace(b'"revision":1', b'"revision":9')
    assert edited != known.manifest_bytes
    object.__setattr__(known, "manifest_bytes", edited)
    with pytest.raises(ManifestError):
        other.to_table()


def test_the_manifest_is_not_read_again(scene: Scene) -> None:
    with scene.open() as dataset:
        other = again(dataset)
    (scene.folder / "_encpipe" / "manifest.json").unlink()
    reads(other, ROWS)


def test_a_wrapping_that_was_replaced_is_found_on_the_storage(scene: Scene, kms: LoggedKms) -> None:
    with scene.open() as dataset:
        state = dataset._state
        keks = {kek.id: state.keys.kek(kek.id) for kek in state.view.core.keks}
        other, late = again(dataset), again(dataset)
    (kms.folder / "new.key").write_bytes(os.urandom(32))
    (kms.folder / "main.denied").touch()
    master, record = LoggedKms(kms.folder).master_key("memory:new"), state.view.core.footer_kek
    context_ = KeyContext(state.view.core.dataset_id, record.key_name, record.id)
    wrappings = {**state.manifest.wrappings, record.id: (master.wrap(keks[record.id], aad=context_),)}
    rewrapped = manifest.build(
        state.view.core, revision=2, wrappings=wrappings, retained=state.manifest.retained, keks=keks
    )
    assert manifest.parse(rewrapped).head.digest == dataset.core_digest
    with pytest.raises(KeyAccessDeniedError):
        other.to_table()
    path = scene.folder / "_encpipe" / "manifest.json"
    path.write_bytes(rewrapped)
    with pytest.raises(encpipe.UntrustedKeyError):
        other.to_table()
    trusting = Config(keys={"footer": ("memory:main", "memory:new"), "pii": ("memory:pii",)})
    for access in (other._open._process.get().access, late._open._process.get().access):
        access.master_keys.config = trusting
        access.master_keys._process.get().loaded["memory"] = LoggedKms(kms.folder)
    reads(other, ROWS)
    path.write_bytes(state.manifest_bytes)
    with pytest.raises(KeyAccessDeniedError):
        late.to_table()
    (kms.folder / "main.denied").rename(kms.folder / "new.denied")
    object.__setattr__(late._open._known, "manifest_bytes", rewrapped)
    with pytest.raises(StaleDatasetError):  # the storage was rolled back to older wrappings
        late.to_table()


def test_a_key_that_was_missing_stays_missing(scene: Scene, kms: LoggedKms) -> None:
    denied = kms.folder / "pii.denied"
    denied.touch()
    with scene.open(on_missing_key="null") as dataset:
        other = again(dataset)
    denied.unlink()
    before = kms.calls()
    assert other.missing_keys == ("pii",)
    assert other.schema == dataset.schema
    assert other.to_table().column("name").null_count == len(ROWS)
    assert kms.calls() - before == {"main": 1}
    with pytest.raises(ConfigError):
        other.scan(filter=[("name", "==", "x")])


@pytest.mark.parametrize("outcome", ["skip", "null", "error"])
def test_a_key_that_is_missing_only_there_is_an_error(scene: Scene, kms: LoggedKms, outcome: str) -> None:
    with scene.open(on_missing_key=outcome) as dataset:
        other = again(dataset)
    (kms.folder / "pii.denied").touch()
    assert ids(other.to_table(["id"])) == list(range(10))
    with pytest.raises(KeyAccessDeniedError):
        other.to_table()


def test_the_age_of_keys_is_limited_there_too(scene: Scene, kms: LoggedKms) -> None:
    with scene.open(max_key_age=0.0) as dataset:
        other = again(dataset)
    reads(other, ROWS)
    (kms.folder / "main.denied").touch()
    with pytest.raises(KeyAccessDeniedError):
        other.to_table()


# Forked children and the locks of their parents


def locks(dataset: Dataset) -> Iterator[threading.Lock]:
    """Every lock of an open dataset that a thread of ours might hold at the moment of a fork."""
    here = dataset._open._process.get()
    yield here.lock
    services = here.access.master_keys._process.get()
    yield services.lock
    local: Any = services.loaded.get("local")
    if local is not None:
        yield local._process.get().lock
    if here.state is not None:
        keys = here.state.keys._process.get()
        yield keys.count
        yield from (held.lock for held in keys.held.values())


@contextlib.contextmanager
def all_locked(*datasets: Dataset) -> Iterator[None]:
    found = {id(lock): lock for dataset in datasets for lock in locks(dataset)}
    with contextlib.ExitStack() as stack:
        for lock in found.values():
            stack.enter_context(lock)
        yield


def test_a_forked_child_is_not_stopped_by_a_lock_of_its_parent(scene: Scene, kms: LoggedKms) -> None:
    with scene.open() as dataset:
        unused = again(dataset)
        with all_locked(dataset, unused):
            for handle in (dataset, unused):
                in_process("fork", reads, handle, ROWS)


def test_a_forked_child_has_its_own_connections(scene: Scene) -> None:
    with scene.open() as dataset:
        parents = dataset._storage

        def check() -> None:
            assert dataset._storage is not parents
            assert dataset._storage is dataset._storage
            dataset.close()

        assert ended(forked(check)) == 0
        assert dataset._storage is parents


def test_a_child_of_a_forked_child_reads_too(scene: Scene, kms: LoggedKms) -> None:
    with scene.open() as dataset:
        dataset.to_table()
        before = kms.calls()

        def fork_once_more() -> None:
            assert ended(forked(lambda: reads(dataset, ROWS))) == 0

        assert ended(forked(fork_once_more)) == 0
    assert kms.calls() == before


# The local keyring


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    file = KeyringFile(path, PassphraseUnlock(lambda _: PASSPHRASE))
    file.create("main", "pii", kdf=KdfParams.FAST_FOR_TESTS)
    return path


LOCAL = {"footer": ("local:main",), "pii": ("local:pii",)}


class Typed:
    """A dataset under a keyring whose passphrase is typed, and who was asked for it."""

    def __init__(self, folder: Path, keyring: Path) -> None:
        self.url = folder / "dataset"
        self.config = Config(keyring=KeyringConfig(keyring), keys=LOCAL)
        self.asked: list[int] = []
        encpipe.write_dataset(ROWS, self.url, policy=PII, config=self.config, master_keys=self.keys())
        self.asked.clear()

    def keys(self) -> MasterKeys:
        def ask(_: str) -> str:
            assert not self.asked
            self.asked.append(os.getpid())
            return PASSPHRASE

        return MasterKeys(self.config, ask_passphrase=ask)

    def open(self, **more: Any) -> Dataset:
        return encpipe.open_dataset(self.url, config=self.config, master_keys=self.keys(), **more)


@pytest.fixture
def typed(tmp_path: Path, keyring: Path) -> Typed:
    return Typed(tmp_path, keyring)


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are wanted


@pytest.mark.parametrize("method", METHODS)
def test_a_typed_passphrase_is_asked_for_once(typed: Typed, method: str) -> None:
    with typed.open() as dataset:
        in_process(method, reads, dataset, ROWS)
        in_process(method, hands_on, dataset, method)
    assert typed.asked == [os.getpid()]


def hands_on(dataset: Dataset, method: str) -> None:
    """In the other process: hand the dataset to one more, unused."""
    in_process(method, reads, dataset, ROWS)


def test_a_forked_child_stays_unlocked_whatever_its_parent_locks(typed: Typed) -> None:
    with typed.open() as dataset:
        unused = again(dataset)
        unused._open._process.get().access = dataset._open._process.get().access
        with all_locked(dataset, unused):
            in_process("fork", reads, unused, ROWS)
    assert typed.asked == [os.getpid()]


def test_processes_at_once_get_a_pipe_each_and_none_stays_open(typed: Typed) -> None:
    spawn = multiprocessing.get_context("spawn")
    with typed.open() as dataset:
        dataset.to_table()
        in_process("spawn", reads, dataset, ROWS)  # starts multiprocessing's own helper, which stays
        gc.collect()
        before = open_fds()
        processes = [spawn.Process(target=reads, args=(dataset, ROWS)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
            process.close()
        del process, processes
        gc.collect()
        assert open_fds() == before
    assert typed.asked == [os.getpid()]


def test_no_pipe_stays_open_when_a_process_cannot_be_started(typed: Typed) -> None:
    with typed.open() as dataset:
        in_process("spawn", reads, dataset, ROWS)
        gc.collect()
        before = open_fds()
        spawn = multiprocessing.get_context("spawn")
        with pytest.raises((AttributeError, pickle.PicklingError)):
            spawn.Process(target=reads, args=(dataset, lambda: None)).start()
        gc.collect()
        assert open_fds() == before


def test_two_datasets_of_the_same_master_keys_are_handed_over_together(typed: Typed) -> None:
    keys = typed.keys()
    with (
        encpipe.open_dataset(typed.url, config=typed.config, master_keys=keys) as one,
        encpipe.open_dataset(typed.url, config=typed.config, master_keys=keys) as two,
    ):
        in_process("spawn", both_read, one, two)
        first, second = pickle.loads(pickle.dumps((one, two)))
        a, b = (dataset._open._process.get().access for dataset in (first, second))
        assert a.master_keys is b.master_keys
    assert typed.asked == [os.getpid()]


def both_read(one: Dataset, two: Dataset) -> None:
    reads(one, ROWS)
    reads(two, ROWS)


def test_without_a_process_being_started_nobody_is_asked(typed: Typed) -> None:
    with typed.open() as dataset:
        dataset.to_table()
        other = again(dataset)
    with pytest.raises(ConfigError, match="nobody to ask") as caught:
        other.to_table()
    assert caught.value.code == "config-missing"
    assert "key-file" in caught.value.hint


@pytest.mark.parametrize("unlock", ["env", "file", "key-file"])
def test_what_unlocks_by_itself_needs_no_handover(
    tmp_path: Path, keyring: Path, monkeypatch: pytest.MonkeyPatch, unlock: str
) -> None:
    config = Config(keyring=unlocked_by(unlock, tmp_path, keyring, monkeypatch), keys=LOCAL)
    encpipe.write_dataset(ROWS, tmp_path / "dataset", policy=PII, config=config)
    with encpipe.open_dataset(tmp_path / "dataset", config=config) as dataset:
        reads(again(dataset), ROWS)


def unlocked_by(unlock: str, folder: Path, path: Path, patch: pytest.MonkeyPatch) -> KeyringConfig:
    if unlock == "env":
        patch.setenv("TEST_PASSPHRASE", PASSPHRASE)
        return KeyringConfig(path, "env:TEST_PASSPHRASE")
    if unlock == "file":
        (folder / "passphrase").touch(0o600)
        (folder / "passphrase").write_text(PASSPHRASE)
        return KeyringConfig(path, f"file:{folder / 'passphrase'}")
    create_key_file(folder / "key")
    by_file = KeyringConfig(folder / "by-file.json", f"key-file:{folder / 'key'}")
    KeyringFile.from_config(by_file).create("main", "pii")
    return by_file


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_variable_that_the_other_process_lacks_is_handed_over(
    tmp_path: Path, keyring: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = Config(keyring=unlocked_by("env", tmp_path, keyring, monkeypatch), keys=LOCAL)
    encpipe.write_dataset(ROWS, tmp_path / "dataset", policy=PII, config=config)
    with encpipe.open_dataset(tmp_path / "dataset", config=config) as dataset:
        monkeypatch.delenv("TEST_PASSPHRASE")
        in_process(method, reads, dataset, ROWS)


# What a pickle holds


class Starting:
    """Stands for a process that is being started."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    class DupFd:
        def __init__(self, fd: int) -> None:
            self.fd = fd

        def detach(self) -> int:
            return os.dup(self.fd)  # the real one has another process's number


@contextlib.contextmanager
def starting() -> Iterator[Starting]:
    made = Starting()
    context.set_spawning_popen(made)
    try:
        yield made
    finally:
        context.set_spawning_popen(None)


def spellings(secret: bytes) -> Iterator[bytes]:
    """The secret itself, in hex, and as base64 would show it wherever in a text it starts."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + secret)[4 if shift else 0 : -4]
        yield text
        yield text.replace(b"+", b"-").replace(b"/", b"_")


@pytest.mark.parametrize("unlock", ["prompt", "env", "file", "key-file"])
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_holds_no_key_and_no_passphrase(
    tmp_path: Path, keyring: Path, monkeypatch: pytest.MonkeyPatch, unlock: str, protocol: int
) -> None:
    secrets = [PASSPHRASE.encode()]
    opened = keyclients.UnwrappingClient._open

    def noted(*args: Any) -> bytes:
        dek = opened(*args)
        secrets.append(dek)
        return dek

    monkeypatch.setattr(keyclients.UnwrappingClient, "_open", noted)
    where = (
        KeyringConfig(keyring) if unlock == "prompt" else unlocked_by(unlock, tmp_path, keyring, monkeypatch)
    )
    config = Config(keyring=where, keys=LOCAL)
    keys = MasterKeys(config, ask_passphrase=lambda _: PASSPHRASE)
    url = tmp_path / "dataset"
    encpipe.write_dataset(ROWS, url, policy=PII, config=config, master_keys=keys)
    with encpipe.open_dataset(url, config=config, master_keys=keys) as dataset:
        dataset.to_table()
        local: Any = keys._service("local")
        root = local._root(local._file.read())
        secrets.append(root.reveal())
        secrets += [v.reveal() for v in local.open_keyring()._secrets.values()]
        state = dataset._state
        secrets += [state.keys.kek(kek.id).reveal() for kek in state.view.core.keks]
        if unlock == "key-file":
            secrets.append((tmp_path / "key").read_bytes().strip())
        assert len(set(secrets)) >= 8
        with starting() as process:
            carried = [pickle.dumps(dataset, protocol), pickle.dumps(dataset._open, protocol)]
            assert len(process.fds) == 2
            pickle.loads(carried[0]).to_table()  # it is a whole one
        carried.append(pickle.dumps(dataset, protocol))
        carried.append(pickle.dumps(copy.deepcopy(dataset), protocol))
    assert all(part not in data for data in carried for secret in secrets for part in spellings(secret))
    assert b"local:main" in carried[0]


def test_the_search_for_keys_in_a_pickle_finds_them() -> None:
    key = os.urandom(32)
    for spelled in (
        key,
        key.hex().encode(),
        base64.b64encode(key),
        base64.urlsafe_b64encode(b"xy" + key),
        base64.b64encode(b"x" + key + b"more"),
    ):
        data = pickle.dumps({"inside": [spelled, spelled.decode("latin-1")]})
        assert any(part in data for part in spellings(key))


def test_a_ready_made_key_service_goes_into_no_pickle(tmp_path: Path) -> None:
    made = Scene(str(tmp_path / "dataset"))
    made.write(ROWS)
    with made.open() as dataset:
        with pytest.raises(EncpipeError) as caught:
            pickle.dumps(dataset)
        assert caught.value.code == "unsupported"
        assert "config=" in caught.value.hint
        in_process("fork", reads, dataset, ROWS)
        reads(copy.deepcopy(dataset), ROWS)


@pytest.mark.parametrize("where", ["options", "config", "kms"])
def test_credentials_go_into_no_pickle(where: str) -> None:
    secret = {"key": "AKIA", "secret": "hush-hush", "token": "hush"}
    config = Config(storage={"s3": secret} if where == "config" else {})
    if where == "kms":
        config = Config(kms={"local": {"vault_token": "hush-hush"}})
    access = open_access(
        "s3://bucket/x", config=config, storage_options=secret if where == "options" else None
    )
    with pytest.raises(EncpipeError) as caught:
        pickle.dumps(access)
    assert caught.value.code == "unsupported"
    assert "hush" not in f"{caught.value} {caught.value.hint}"
    assert "AWS_PROFILE" in caught.value.hint


def test_options_that_are_no_secret_go_along(tmp_path: Path) -> None:
    config = Config(
        kms={"aws-kms": {"region": "eu-central-1", "profile": "p"}},
        storage={"s3": {"region_name": "x", "single_writer": True}},
    )
    options = {"anon": True, "client_kwargs": {"endpoint_url": "https://127.0.0.1:1"}, "token": None}
    access = open_access("s3://bucket/x", config=config, storage_options=options)
    other = pickle.loads(pickle.dumps(access))
    assert (other.config, other.options, other.place) == (config, options, "s3://bucket/x")
    assert other.storage is not access.storage


def test_a_dataset_in_memory_is_not_there_for_others(kms: LoggedKms, tmp_path: Path) -> None:
    made = Scene(f"memory://{tmp_path.name}-{os.getpid()}", kms)
    made.write(ROWS)
    with made.open() as dataset:
        reads(again(dataset), ROWS)
        in_process("fork", reads, dataset, ROWS)
        in_process("spawn", finds_nothing, dataset)


def finds_nothing(dataset: Dataset) -> None:
    assert not memory.MemoryFileSystem().store
    with pytest.raises(EncpipeError) as caught:
        dataset.to_table()
    assert caught.value.code == "not-found"


# Copies in the same process


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_the_keys_and_nothing_else(
    scene: Scene, kms: LoggedKms, copied: Callable[[Dataset], Dataset]
) -> None:
    with scene.open(on_missing_key="skip") as dataset:
        before = kms.calls()
        with copied(dataset) as other:
            reads(other, ROWS)
            assert other._storage is not dataset._storage
            assert other.kms_calls == dataset.kms_calls
        reads(dataset, ROWS)
        reads(copied(again(dataset)), ROWS)
    assert kms.calls() - before == {"main": 1, "pii": 1}  # of the one that was unpickled
