"""A shred in a bucket that keeps older versions: they go where the bucket lets go of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scene import Scene, ids, on_s3, people, save
from servers.seaweed import Seaweed
from test_shred import shred, states
from test_shred_races import stopped_write, writers

from encpipe import StorageError
from encpipe import journal as journals
from encpipe.storage.base import OldVersion
from encpipe.storage.s3 import S3Storage

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.server


@pytest.fixture
def client(seaweed: Seaweed) -> Iterator[S3Client]:
    made = seaweed.client()
    yield made
    made.close()


@pytest.fixture
def scene(seaweed: Seaweed, bucket: str, client: S3Client) -> Scene:
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    made = on_s3(seaweed, f"s3://{bucket}/folder")
    made.write(people(0))
    made.append(people(10))
    return made


def older(scene: Scene) -> list[str]:
    """The names of objects of which older versions are there."""
    storage = scene.storage()
    try:
        return sorted({old.path.rpartition("/")[2] for old in storage.old_versions("_encpipe/")})
    finally:
        storage.close()


def test_older_manifests_and_journals_go_with_the_dataset(scene: Scene) -> None:
    assert {"manifest.json", "journal.json"} <= set(older(scene))
    report = shred(scene, dry_run=True)
    assert {place.partition("?")[0].rpartition("/")[2] for place in report.removed} == {
        "manifest.json",
        "journal.json",
    }
    report = shred(scene)
    assert (report.verdict, report.remaining) == ("removed", ())
    assert not {"manifest.json", "journal.json"} & set(older(scene))


def test_with_a_key_name_too_and_the_rest_reads_on(scene: Scene) -> None:
    assert shred(scene, "pii").verdict == "removed"
    assert not {"manifest.json", "journal.json"} & set(older(scene))
    assert ids(scene.table(["id"])) == [*range(6), *range(10, 16)]


@pytest.mark.parametrize("names", [(), ("pii",)])
def test_a_stopped_write_leaves_no_version_of_its_journal(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    stopped_write(scene, save(tmp_path / "new", people(50)), monkeypatch)
    storage = scene.storage()
    for writer_id in journals.folders(storage):  # its lease is over
        storage.delete(journals.lock_path(writer_id))
    storage.close()
    assert shred(scene, *names).verdict == "removed"
    assert writers(scene) == []
    assert not {"manifest.json", "journal.json"} & set(older(scene))


def test_one_that_holds_none_of_the_key_name_stays(scene: Scene) -> None:
    shred(scene, "pii")
    scene.table(["id"])
    before = older(scene)
    report = shred(scene, "pii")
    assert (report.removed, older(scene)) == ((), before)


def test_a_version_that_is_locked_is_told_with_its_lock(seaweed: Seaweed, client: S3Client) -> None:
    bucket = f"{seaweed.create_bucket()}-locked"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    client.put_object_lock_configuration(
        Bucket=bucket,
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}},
        },
    )
    scene = on_s3(seaweed, f"s3://{bucket}/folder")
    scene.write(people(0))
    report = shred(scene)
    assert report.verdict == "incomplete"
    assert states(scene)["pii"] == "shredded"
    assert {left.key_name for left in report.remaining} == {"footer", "pii"}
    assert all("object lock (COMPLIANCE) until " in left.why for left in report.remaining)


def test_who_may_not_list_versions_is_told_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: S3Storage, prefix: str = "") -> Iterator[OldVersion]:
        raise StorageError("S3 answered AccessDenied", code="storage-denied")

    monkeypatch.setattr(S3Storage, "old_versions", refuse)
    report = shred(scene, "pii")
    assert report.verdict == "incomplete"
    (left,) = report.remaining
    assert (left.place, left.why) == (
        "_encpipe/",
        "older versions, not looked at: S3 answered AccessDenied",
    )
