"""On S3 a lost answer is settled, not guessed; a server that cannot keep writers apart is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from servers.seaweed import Seaweed

from encpipe.config import Config
from encpipe.errors import ConflictError, EncpipeError, StorageError
from encpipe.storage import open_storage, s3_client, s3_lease, s3_objects
from encpipe.storage.s3 import S3Storage
from encpipe.testing.faultproxy import Fault, FaultProxy
from encpipe.testing.storage_contract import LIMIT, MANIFEST, OWNER, expect

pytestmark = pytest.mark.server

BIG = bytes(range(256)) * (80 << 10)  # 20 MiB: two parts


@pytest.fixture(scope="module")
def shared_bucket(seaweed: Seaweed) -> str:
    return seaweed.create_bucket()


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    parts = urlsplit(seaweed.http)
    assert parts.hostname is not None
    assert parts.port is not None
    with FaultProxy(parts.hostname, parts.port) as proxy:
        yield proxy


@pytest.fixture
def url(shared_bucket: str) -> str:
    return f"s3://{shared_bucket}/{uuid.uuid4().hex}"


Make = Callable[..., S3Storage]


@pytest.fixture
def make(seaweed: Seaweed, url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes storages at one place, through the proxy; two tries of each request."""
    monkeypatch.setattr(s3_client, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(s3_client, "READ_SECONDS", 5)
    with contextlib.ExitStack() as stack:

        def make(**more: Any) -> S3Storage:
            place = more.pop("url", url)
            options = {
                "key": seaweed.access_key,
                "secret": seaweed.secret_key,
                "endpoint_url": proxy.url,
                "region_name": seaweed.region,
                **more,
            }
            storage = open_storage(place, config=Config(), options=options)
            assert isinstance(storage, S3Storage)
            return stack.enter_context(contextlib.closing(storage))

        yield make


@pytest.fixture
def storage(make: Make) -> S3Storage:
    storage = make()
    storage._conditions.prove()  # so that faults meet the request that a test is about
    return storage


def put(path: str) -> Callable[[str, str], bool]:
    return lambda method, target: method == "PUT" and urlsplit(target).path.endswith(path)


def commit(storage: S3Storage, data: bytes, *, seen: bytes | None, ours: bytes | None = None) -> None:
    def check(current: bytes | None) -> None:
        assert current == seen

    storage.commit(MANIFEST, data, check=check, is_ours=lambda current: (ours or data) in current)


# lost answers


@pytest.mark.parametrize("times", [1, 2, None])
@pytest.mark.parametrize("seen", [None, b"before"])
def test_a_commit_whose_answer_is_lost_has_happened(
    storage: S3Storage, proxy: FaultProxy, times: int | None, seen: bytes | None
) -> None:
    if seen is not None:
        commit(storage, seen, seen=None)
    proxy.faults.append(Fault("drop_answer", put(MANIFEST), times=times))
    commit(storage, b"ours", seen=seen)
    assert storage.read(MANIFEST, limit=LIMIT) == b"ours"


def test_a_commit_whose_answer_is_lost_counts_although_another_one_followed(
    storage: S3Storage, make: Make, proxy: FaultProxy
) -> None:
    proxy.faults.append(Fault("drop_answer", put(MANIFEST)))
    settled = storage._happened

    def follow(*args: Any) -> bool:
        proxy.faults.clear()
        commit(make(), b"theirs, after ours", seen=b"ours")
        return settled(*args)

    storage._happened = follow  # type: ignore[method-assign] # between the lost answer and the look
    commit(storage, b"ours", seen=None)
    assert storage.read(MANIFEST, limit=LIMIT) == b"theirs, after ours"


@pytest.mark.parametrize("fault", [Fault("status", code=403), Fault("status", code=301)])
def test_a_lost_answer_that_cannot_be_settled_is_an_outage(
    storage: S3Storage, proxy: FaultProxy, fault: Fault
) -> None:
    """Whatever the read-back says: the commit may have happened, and here it has."""
    commit(storage, b"before", seen=None)

    def read_back(method: str, target: str) -> bool:
        return method == "GET" and lost.hits > 0

    lost = Fault("drop_answer", put(MANIFEST))
    proxy.faults += [lost, dataclasses.replace(fault, match=read_back)]
    with expect("storage-unavailable") as outage:
        commit(storage, b"ours", seen=b"before")
    assert "not known" in outage.value.message
    proxy.faults.clear()
    assert storage.read(MANIFEST, limit=LIMIT) == b"ours"


def test_a_commit_that_never_arrived_tries_again(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault("reset", put(MANIFEST), times=4))
    commit(storage, b"ours", seen=None)
    assert storage.read(MANIFEST, limit=LIMIT) == b"ours"


def test_a_commit_that_cannot_arrive_is_an_outage_and_changes_nothing(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    commit(storage, b"before", seen=None)
    proxy.faults.append(Fault("status", put(MANIFEST), code=503))
    with expect("storage-unavailable"):
        commit(storage, b"ours", seen=b"before")
    assert storage.read(MANIFEST, limit=LIMIT) == b"before"


def test_a_commit_behind_another_is_a_conflict(storage: S3Storage, make: Make) -> None:
    other = make()

    def check(current: bytes | None) -> None:
        assert current is None
        commit(other, b"theirs", seen=None)

    with pytest.raises(ConflictError, check=lambda error: error.code == "conflict"):
        storage.commit(MANIFEST, b"ours", check=check, is_ours=lambda current: current == b"ours")
    assert storage.read(MANIFEST, limit=LIMIT) == b"theirs"


def test_a_false_refusal_is_told_as_what_it_is(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault("status", put(MANIFEST), code=412))
    with expect("conditional-writes"):
        commit(storage, b"ours", seen=None)


def busy(path: str, times: int | None = None) -> Fault:
    body = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
    return Fault("status", put(path), times=times, code=409, body=body)


def test_a_busy_object_is_tried_again(
    storage: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(s3_objects.time, "sleep", pauses.append)
    proxy.faults.append(busy("a/x", times=4))
    storage.create("a/x", b"x")
    assert storage.read("a/x", limit=LIMIT) == b"x"
    assert len(pauses) == 4
    assert sum(pauses) > 0.3


def test_an_object_that_stays_busy_is_an_outage_and_no_reason_for_a_single_writer(
    storage: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_objects, "BUSY_PAUSE_SECONDS", 0.001)
    commit(storage, b"before", seen=None)
    proxy.faults += [busy("a/x"), busy(MANIFEST)]
    for action in (lambda: storage.create("a/x", b"x"), lambda: commit(storage, b"ours", seen=b"before")):
        with expect("storage-unavailable") as outage:
            action()
        assert "another write" in outage.value.message
        assert "single" not in outage.value.hint
    assert storage.read(MANIFEST, limit=LIMIT) == b"before"


def test_a_created_object_whose_answer_is_lost_is_ours(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault("drop_answer", put("a/x"), times=1))
    storage.create("a/x", b"same")
    with expect("exists"):
        storage.create("a/x", b"same")


def test_an_upload_whose_last_answer_is_lost_is_ours(storage: S3Storage, proxy: FaultProxy) -> None:
    fault = Fault("drop_answer", lambda method, path: method == "POST" and "uploadId=" in path, times=1)
    proxy.faults.append(fault)
    with storage.create_file("data/x") as stream:
        stream.write(BIG)
    assert fault.hits == 1
    assert storage.read("data/x", limit=len(BIG)) == BIG


# uploads


@pytest.mark.parametrize("match", ["partNumber=2", "uploads", "uploadId="])
def test_an_upload_that_fails_leaves_nothing(
    storage: S3Storage, proxy: FaultProxy, seaweed: Seaweed, shared_bucket: str, match: str
) -> None:
    def hit(method: str, path: str) -> bool:
        return method in ("PUT", "POST") and match in path

    proxy.faults.append(Fault("status", hit, code=503))
    with expect("storage-unavailable"), storage.create_file("data/x") as stream:
        stream.write(BIG)
        stream.write(BIG)
    assert list(storage.list()) == []
    prefix = storage.url.rpartition("/")[2]
    pending = seaweed.client().list_multipart_uploads(Bucket=shared_bucket, Prefix=prefix)
    assert pending.get("Uploads", []) == []


def test_an_upload_damaged_on_its_way_is_refused(storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("s3_objects", "s3_upload"):
        monkeypatch.setattr(f"encpipe.storage.{module}.md5", lambda _: "AAAAAAAAAAAAAAAAAAAAAA==")
    for data in (b"x", BIG):
        with expect("storage"), storage.create_file("a/x") as stream:
            stream.write(data)
    assert list(storage.list()) == []


# reads


@pytest.mark.parametrize(("kind", "times"), [("truncate", 2), ("reset", 1)])
def test_a_read_cut_short_is_tried_again(
    storage: S3Storage, proxy: FaultProxy, kind: Any, times: int
) -> None:
    storage.create("a/x", bytes(1000))
    proxy.faults.append(
        Fault(kind, lambda method, path: method == "GET" and path.endswith("a/x"), times=times)
    )
    assert storage.read("a/x", limit=LIMIT) == bytes(1000)


def test_a_read_that_stays_cut_short_is_an_outage(storage: S3Storage, proxy: FaultProxy) -> None:
    storage.create("a/x", bytes(1000))
    proxy.faults.append(Fault("truncate", lambda method, path: method == "GET" and path.endswith("a/x")))
    with expect("storage-unavailable"):
        storage.read("a/x", limit=LIMIT)


def test_first_bytes_fetch_no_more_and_are_tried_again(
    storage: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.create("a/x", bytes(1 << 20))
    fault = Fault("truncate", lambda method, path: method == "GET" and path.endswith("a/x"), times=2)
    proxy.faults.append(fault)
    asked, get_object = [], storage._objects.client.get_object

    def get(**more: Any) -> Any:
        asked.append(more["Range"])
        return get_object(**more)

    monkeypatch.setattr(storage._objects.client, "get_object", get)
    assert storage.first_bytes("a/x", 4) == bytes(4)
    assert asked == ["bytes=0-3"] * 3
    fault.times = None
    with expect("storage-unavailable"):
        storage.first_bytes("a/x", 4)


def test_random_access_cut_short_is_tried_again_or_an_error(storage: S3Storage, proxy: FaultProxy) -> None:
    data = BIG[: 1 << 20]
    storage.create("a/x", data)
    fault = Fault("truncate", lambda method, path: method == "GET", times=1)
    with storage.open_input("a/x") as file:
        proxy.faults.append(fault)
        assert file.read_at(100_000, 5) == data[5:100_005]
        assert fault.hits == 1
        fault.times = None
        with pytest.raises(OSError, match="AWS Error"):
            file.read_at(100_000, 5)


# servers that cannot keep writers apart


def probe(number: int) -> Callable[[str, str], bool]:
    """The n-th PUT of a probe."""
    seen = iter(range(1, 1000))
    return lambda method, path: method == "PUT" and "probe-" in path and next(seen) == number


IGNORES = {"code": 200, "headers": {"ETag": '"0123456789abcdef0123456789abcdef"'}}


@pytest.mark.parametrize(
    ("number", "answer", "what"),
    [
        (1, {"code": 412}, "refuses a write whose IfNoneMatch holds"),
        (2, IGNORES, "ignores IfNoneMatch"),
        (3, IGNORES, "ignores IfMatch"),
        (4, {"code": 412}, "refuses a write whose IfMatch holds"),
    ],
)
def test_a_server_without_conditional_writes_is_refused(
    make: Make, proxy: FaultProxy, number: int, answer: dict[str, Any], what: str
) -> None:
    proxy.faults.append(Fault("status", probe(number), **answer))
    ways: tuple[Callable[[S3Storage], object], ...] = (
        lambda storage: commit(storage, b"x", seen=None),
        lambda storage: storage.create("a", b""),
        lambda storage: storage.hold(OWNER).__enter__(),
    )
    way = ways[number % 3]
    storage = make()
    with pytest.raises(StorageError, match=what) as refused:
        way(storage)
    assert refused.value.code == "conditional-writes"
    assert "--single-writer" in refused.value.hint
    assert list(storage.list()) == []
    commit(make(single_writer=True), b"x", seen=None)


def test_the_probe_runs_once_for_a_place(make: Make, proxy: FaultProxy) -> None:
    for storage in (make(), make()):
        storage.create(uuid.uuid4().hex, b"")
        with storage.hold(OWNER):
            pass
    probes = [path for method, path in proxy.requests if method == "PUT" and "probe-" in path]
    assert len(probes) == 4


# leases


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long enough for Last-Modified, which counts whole seconds."""
    monkeypatch.setattr(s3_lease, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(s3_lease, "RENEW_SECONDS", 0.2)


def test_a_lease_is_renewed_while_its_owner_lives(
    short_lease: None, make: Make, storage: S3Storage, proxy: FaultProxy
) -> None:
    renewed = threading.Event()
    puts = 0

    def count(method: str, path: str) -> bool:
        nonlocal puts
        puts += put(OWNER)(method, path)
        if puts == 22:  # 4 s: longer than the lease
            renewed.set()
        return False

    proxy.faults.append(Fault("delay", count))
    other = make()
    with storage.hold(OWNER):
        assert renewed.wait(30)
        with expect("locked"), other.hold(OWNER):
            pytest.fail("two owners")
    with other.hold(OWNER):
        pass


def test_a_dead_owner_s_lease_is_taken_over_by_one(
    short_lease: None, make: Make, storage: S3Storage, proxy: FaultProxy
) -> None:
    dead = s3_lease.Lease(storage._objects, OWNER, storage._conditions, renew=3600)
    dead.acquire()
    other = make()
    with pytest.raises(ConflictError, match="another live process") as refused, other.hold(OWNER):
        pytest.fail("two owners")
    assert "if it was killed, try again in 3 s" in refused.value.hint
    taken = threading.Event()
    for _ in range(150):
        with contextlib.suppress(ConflictError), other.hold(OWNER):
            taken.set()
            dead.release()  # wakes up late: the lease is no longer its own, and stays
            with expect("locked"), storage.hold(OWNER):
                pytest.fail("two owners")
        if taken.wait(0.1):
            break
    assert taken.is_set()


def test_an_outage_shorter_than_the_lease_does_not_lose_it(
    short_lease: None, make: Make, storage: S3Storage, proxy: FaultProxy
) -> None:
    with storage.hold(OWNER):
        fault = Fault("drop_answer", put(OWNER), times=3)
        proxy.faults.append(fault)
        recovered = threading.Event()

        def notice(method: str, path: str) -> bool:
            if put(OWNER)(method, path):
                recovered.set()
            return False

        proxy.faults.append(Fault("delay", notice))
        assert recovered.wait(30)
        assert fault.hits == 3
        with expect("locked"), make().hold(OWNER):
            pytest.fail("two owners")
    assert list(storage.list()) == []


# who may, and where


def code_of(action: Callable[[], object]) -> str:
    with pytest.raises(EncpipeError) as raised:
        action()
    assert "secret" not in raised.value.message
    return raised.value.code


def test_denied_and_absent_are_told_apart(seaweed: Seaweed, make: Make, storage: S3Storage) -> None:
    storage.create("a/x", b"x")
    reader = make(key=seaweed.ro_access_key, secret=seaweed.ro_secret_key)
    assert reader.read("a/x", limit=LIMIT) == b"x"
    with reader.open_input("a/x") as file:
        assert file.read() == b"x"
    assert code_of(lambda: reader.create("a/y", b"")) == "storage-denied"
    assert code_of(lambda: reader.delete("a/x")) == "storage-denied"
    stranger = make(key="nobody", secret="nothing")
    assert code_of(lambda: stranger.read("a/x", limit=LIMIT)) == "storage-denied"
    assert code_of(lambda: stranger.open_input("a/x")) == "storage-denied"
    assert code_of(lambda: stranger.size("a/x")) == "storage-denied"
    nowhere = make(url="s3://no-such-bucket-here/x")
    for action in (
        lambda: nowhere.read("a/x", limit=LIMIT),
        lambda: list(nowhere.list()),
        lambda: commit(nowhere, b"", seen=None),
        lambda: nowhere.open_input("a/x"),
    ):
        assert code_of(action) == "not-found"


def test_a_server_that_is_gone_is_an_outage(make: Make, seaweed: Seaweed) -> None:
    gone = make(endpoint_url="http://127.0.0.1:9")
    assert code_of(lambda: gone.read("a", limit=1)) == "storage-unavailable"
    assert code_of(lambda: gone.open_input("a")) == "storage-unavailable"


def test_an_untrusted_certificate_is_told_as_such(make: Make, seaweed: Seaweed) -> None:
    stranger = make(endpoint_url=seaweed.https)
    assert code_of(lambda: stranger.read("a", limit=1)) == "untrusted-certificate"
    assert code_of(lambda: stranger.open_input("a")) == "untrusted-certificate"


def test_without_arrow_ranges_are_read_by_boto3(
    make: Make, storage: S3Storage, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.create("a/x", b"whole")
    storage.create("a/empty", b"")
    monkeypatch.setattr(s3_client.Connection, "arrow_can", False)
    with storage.open_input("a/empty") as file:
        assert (file.size(), file.read()) == (0, b"")
    with storage.open_input("a/x") as file:
        assert file.read_at(3, 2) == b"ole"
        assert (file.read_at(9, 3), file.read_at(3, 7), file.size()) == (b"le", b"", 5)
        file.seek(1)
        assert (file.read(2), file.read()) == (b"ho", b"le")
        proxy.faults.append(Fault("truncate", lambda method, _: method == "GET", times=1))
        assert file.read_at(5, 0) == b"whole"
        proxy.faults.append(Fault("shorten", lambda method, _: method == "GET"))
        assert code_of(lambda: file.read_at(5, 0)) == "storage-unavailable"
    assert code_of(lambda: storage.open_input("a/none")) == "not-found"
    assert code_of(lambda: storage.arrow_path("a/x")) == "unsupported"
