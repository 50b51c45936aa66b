"""Re-key: new KEKs and DEKs, the same data; the old keys open nothing that is new."""

from __future__ import annotations

import decimal
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import test_file_hash
from scene import KEYS, Scene, ids, people, save

import encpipe
from encpipe import (
    Config,
    ConfigError,
    EncpipeError,
    IntegrityError,
    KeyNotFoundError,
    KmsError,
    Policy,
    ShreddedError,
    SignatureError,
    StaleDatasetError,
    UntrustedKeyError,
)
from encpipe.audit import verify_audit
from encpipe.config import AuditConfig, SigningConfig, TrustConfig
from encpipe.lifecycle import KeysReport, Rekeyed, rekeysource
from encpipe.manifest import Manifest
from encpipe.signing import create_key_file
from encpipe.state import read_manifest
from encpipe.testing import InMemoryKms

ROWS = list(range(12))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Two generations of two files; `memory:new` and `memory:glass` are there, too."""
    made = Scene(str(tmp_path / "dataset"), kms=InMemoryKms(["main", "pii", "new", "glass"]))
    made.write(save(tmp_path / "first", people(0)))
    made.append(save(tmp_path / "second", people(6)))
    return made


def rekey(scene: Scene, *key_names: str, **more: Any) -> Rekeyed:
    return encpipe.rekey(scene.url, **{"key_names": key_names or None, **scene.access, **more})


def found(scene: Scene) -> Manifest:
    storage = scene.storage()
    made = read_manifest(storage)[1]
    storage.close()
    return made


def active(scene: Scene) -> dict[str, str]:
    """Key name -> the id of its KEK."""
    return {kek.key_name: kek.id for kek in found(scene).core.keks if kek.state == "active"}


def opening(scene: Scene, key_name: str) -> list[tuple[str, str]]:
    """(master key, version) of the wrappings of a key name's KEK."""
    return [(w.master_key, w.version) for w in found(scene).wrappings[active(scene)[key_name]]]


def hashes(scene: Scene) -> dict[str, str]:
    files = [*scene.folder.glob("**/*.parquet"), *scene.folder.glob("_encpipe/files-*")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# What becomes of the dataset


@pytest.mark.parametrize("names", [(), ("pii",), ("footer",)], ids=["all", "pii", "footer"])
def test_the_same_rows_under_new_keys(scene: Scene, names: tuple[str, ...]) -> None:
    before, keks, old = scene.table(), active(scene), hashes(scene)
    with scene.open() as dataset:
        layout = [(f.rows, f.row_groups, f.partition) for f in dataset.files]
        paths = {f.path for f in dataset.files}
    report = rekey(scene, *names)
    assert (report.key_names, report.generation, report.files) == (names or ("footer", "pii"), 3, 2)
    assert report.older_generations == (1, 2)
    now = active(scene)
    assert {name for name in keks if now[name] != keks[name]} == set(report.key_names)
    assert scene.table().equals(before)
    with scene.open() as dataset:
        assert [(f.rows, f.row_groups, f.partition) for f in dataset.files] == layout
        assert paths.isdisjoint(f.path for f in dataset.files)
        assert dataset.schema.equals(before.schema, check_metadata=True)
    assert scene.table(generation=2).equals(before)
    assert old.items() <= hashes(scene).items(), "what is retained is as it was"
    states = {kek.id: kek.state for kek in found(scene).core.keks}
    assert {states[keks[name]] for name in report.key_names} == {"retired"}
    scene.check_whole()


def test_no_old_key_opens_what_is_new(scene: Scene) -> None:
    with scene.open() as dataset:
        core, keys = dataset._state.view.core, dataset._state.keys
        held = {kek.id: keys.kek(kek.id) for kek in core.keks}
    rekey(scene)
    with scene.open() as dataset:
        files = [(scene.folder / f.path).read_bytes() for f in dataset.files]
    assert not any(kek_id.encode() in data for kek_id in held for data in files)


def test_footer_keys_that_change_leave_a_mac_under_the_one_before(scene: Scene) -> None:
    first = active(scene)["footer"]
    rekey(scene, "pii")
    assert set(found(scene).head.macs) == set(active(scene).values())
    rekey(scene, "footer")
    assert set(found(scene).head.macs) == {first, *active(scene).values()}
    with scene.open() as dataset:
        found(scene).head.check(first, dataset._state.keys.kek(first))


def test_an_overwrite_under_another_footer_key_leaves_one_too(scene: Scene) -> None:
    first = active(scene)["footer"]
    scene.config = replace(
        scene.config, keys={**KEYS, "footer": ("memory:new",)}, trust=TrustConfig(("memory:main",))
    )
    scene.write(people(50), overwrite=True)
    assert active(scene)["footer"] != first
    assert set(found(scene).head.macs) == {first, *active(scene).values()}


def wide() -> pa.Table:
    """One column of many kinds each; row groups of 4."""
    n = 9
    return pa.table(
        {
            "name": pa.array([f"n{i}" if i % 3 else None for i in range(n)]),
            "year": pa.array([2020 + i % 2 for i in range(n)], pa.int64()),
            "when": pa.array(range(n), pa.timestamp("ns", "Europe/Berlin")),
            "price": pa.array([decimal.Decimal(i) / 100 for i in range(n)], pa.decimal128(9, 2)),
            "label": pa.array([f"l{i % 2}" for i in range(n)]).dictionary_encode(),
            "large": pa.array([b"x" * i for i in range(n)], pa.large_binary()),
            "half": pa.array([i / 2 for i in range(n)], pa.float16()),
            "vector": pa.array([[float(i)] * 3 for i in range(n)], pa.list_(pa.float32(), 3)),
            "tags": pa.array([[{"k": "a", "v": i}] * (i % 3) for i in range(n)]),
            "deep": pa.array([{"x": i, "y": {"z": str(i)}} if i % 2 else None for i in range(n)]),
            "map": pa.array([[("a", i)] for i in range(n)], pa.map_(pa.string(), pa.int32())),
            "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * n, pa.binary(16))),
        },
        metadata={"made by": "a test"},
    )


def test_every_kind_of_column_and_partition_stays(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    table = wide()
    ds.write_dataset(
        table, tmp_path / "plain", format="parquet", partitioning=["year"], partitioning_flavor="hive"
    )
    policy = Policy(columns={"pii": ("name", "deep.y.z", "vector*")}, plaintext_partitions=("year",))
    scene.write(tmp_path / "plain", policy=policy)
    before = scene.table()
    with scene.open() as dataset:
        partitions = [f.partition for f in dataset.files]
    rekey(scene)
    after = scene.table()
    assert after.equals(before)
    assert after.schema.equals(before.schema, check_metadata=True)
    with scene.open() as dataset:
        assert [f.partition for f in dataset.files] == partitions
        assert {f.path.split("/")[0] for f in dataset.files} == {"year=2020", "year=2021"}
        assert dataset.policy == policy
    scene.check_whole()


def test_each_file_keeps_its_compression(scene: Scene, tmp_path: Path) -> None:
    texts = [f"again and again and again {n * n}" for n in range(5000)]
    noise = pa.table({"id": pa.array([7] * 5000, pa.int64()), "name": texts})
    codecs = ("none", "gzip", "zstd", "lz4", "brotli")
    for n, codec in enumerate(codecs):
        scene.append(save(tmp_path / codec, noise.slice(n), row_group=2000), compression=codec)
    before = compressions(scene)
    assert before[:2] == ["SNAPPY", "SNAPPY"]
    rekey(scene)
    assert compressions(scene) == before
    assert len(set(before[2:])) >= 4, "it is what the files were written with that is kept"


def compressions(scene: Scene) -> list[str]:
    with scene.open() as dataset:
        fragments = dataset.to_pyarrow(trust_storage_after_the_check=True).get_fragments()
        return [fragment.metadata.row_group(0).column(1).compression for fragment in fragments]


def test_files_without_rows_and_none_at_all(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.write(save(tmp_path / "plain", people(0, 0), people(0)))
    rekey(scene)
    with scene.open() as dataset:
        assert [f.rows for f in dataset.files] == [0, 6]
    scene.check_whole()


@pytest.mark.parametrize("workers", [1, 3])
def test_several_files_at_once(scene: Scene, tmp_path: Path, workers: int) -> None:
    scene.append(save(tmp_path / "more", *(people(20 + 6 * n) for n in range(7))))
    before = scene.table()
    seen: list[tuple[int, int]] = []
    report = rekey(scene, workers=workers, progress=lambda p: seen.append((p.files_done, p.files_total)))
    assert report.files == 9
    assert max(seen) == (9, 9)
    assert scene.table().equals(before)


def test_writes_and_changes_go_on_afterwards(scene: Scene) -> None:
    rekey(scene)
    scene.append(people(12))
    encpipe.rewrap(scene.url, **scene.access)
    rekey(scene, "pii")
    assert ids(scene.table()) == [*ROWS, *range(12, 18)]
    scene.write(people(50), overwrite=True)
    assert ids(scene.table()) == list(range(50, 56))
    scene.check_whole()


def test_a_reader_in_flight_reads_on(scene: Scene) -> None:
    with scene.open() as dataset:
        rekey(scene)
        assert ids(dataset.to_table()) == ROWS


def test_old_keys_go_with_the_last_generation_that_uses_them(scene: Scene) -> None:
    old = set(active(scene).values())
    rekey(scene)
    assert old <= found(scene).wrappings.keys()
    encpipe.gc(scene.url, keep=1, grace=timedelta(0), **scene.access)
    assert not old & found(scene).wrappings.keys()
    with scene.open() as dataset:
        assert len(list(scene.folder.glob("**/*.parquet"))) == len(dataset.files)
    assert ids(scene.table()) == ROWS


# Master keys


def test_all_that_wrap_it_now_wrap_the_new_one_in_their_newest_version(scene: Scene) -> None:
    encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
    scene.kms.rotate("pii")
    scene.config = replace(scene.config, trust=TrustConfig(("memory:glass",)))
    unwraps, wraps = scene.kms.unwraps, scene.kms.wraps
    report = rekey(scene, "pii")
    assert opening(scene, "pii") == [("memory:pii", "2"), ("memory:glass", "1")]
    assert report.master_keys == {"pii": ("memory:pii", "memory:glass")}
    assert (scene.kms.unwraps - unwraps, scene.kms.wraps - wraps) == (2, 2)
    assert report.kms_calls == 4


def test_named_master_keys_wrap_instead(scene: Scene) -> None:
    report = rekey(scene, to={"pii": "memory:new"})
    assert report.master_keys == {"footer": ("memory:main",), "pii": ("memory:new",)}
    with pytest.raises(UntrustedKeyError):
        scene.table()
    scene.config = replace(scene.config, trust=TrustConfig(("memory:new",)))
    assert ids(scene.table()) == ROWS
    assert ids(rekeyed_by_list(scene)) == ROWS


def rekeyed_by_list(scene: Scene) -> pa.Table:
    rekey(scene, "pii", to={"pii": ["memory:new", "memory:glass"]})
    assert [uri for uri, _ in opening(scene, "pii")] == ["memory:new", "memory:glass"]
    return scene.table()


@pytest.mark.parametrize("why", ["untrusted", "gone"])
def test_one_that_cannot_wrap_is_told_with_the_way_out(scene: Scene, why: str) -> None:
    """A break-glass key, say, that is offline."""
    encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
    if why == "gone":
        scene.config = replace(scene.config, trust=TrustConfig(("memory:glass",)))
        scene.kms.forget("glass")
    before = (scene.folder / "_encpipe/manifest.json").read_bytes()
    with pytest.raises(UntrustedKeyError if why == "untrusted" else KeyNotFoundError) as refused:
        rekey(scene, "pii")
    assert "--key pii=URI" in refused.value.hint
    assert (scene.folder / "_encpipe/manifest.json").read_bytes() == before
    assert scene.objects("_encpipe/pending/") == []
    rekey(scene, "pii", to={"pii": "memory:pii"})
    assert opening(scene, "pii") == [("memory:pii", "1")]


def test_it_needs_every_key_name(scene: Scene) -> None:
    poor = replace(scene, config=Config(keys={"footer": KEYS["footer"]}))
    for names in (("footer",), ("pii",)):
        with pytest.raises(UntrustedKeyError):
            rekey(poor, *names)
    assert found(scene).core.generation == 2


def test_a_shredded_key_name_cannot_be_encrypted_again(scene: Scene) -> None:
    with scene.open() as dataset:
        confirm = dataset.dataset_id
    encpipe.shred(scene.url, confirm=confirm, key_names=["pii"], **scene.access)
    with pytest.raises(ShreddedError):
        rekey(scene, "footer")
    assert found(scene).core.generation == 3


WRONG: dict[str, dict[str, Any]] = {
    "an unknown key name": {"key_names": ["money"]},
    "no key name": {"key_names": []},
    "one text": {"key_names": "pii"},
    "a master key of an unknown key name": {"to": {"money": "memory:new"}},
    "a master key of a key name that stays": {"key_names": ["pii"], "to": {"footer": "memory:new"}},
}


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_before_anything_happens(
    scene: Scene, arguments: dict[str, Any]
) -> None:
    before = scene.objects()
    with pytest.raises(ConfigError) as refused:
        encpipe.rekey(scene.url, **arguments, **scene.access)
    assert refused.value.hint
    assert scene.objects() == before


def test_a_dry_run_tells_and_changes_nothing(scene: Scene) -> None:
    before, wraps = {p: (scene.folder / p).read_bytes() for p in scene.objects()}, scene.kms.wraps
    report = rekey(scene, "pii", dry_run=True)
    assert (report.dry_run, report.generation, report.files, report.rows) == (True, 3, 2, 12)
    assert report.master_keys == {"pii": ("memory:pii",)}
    assert {p: (scene.folder / p).read_bytes() for p in scene.objects()} == before
    assert scene.kms.wraps == wraps
    scene.kms.forget("pii")
    with pytest.raises(KeyNotFoundError):
        rekey(scene, "footer", dry_run=True)


# Files that somebody changed


@pytest.mark.parametrize("whole", [1 << 20, 0], ids=["in memory", "hashed first"])
@pytest.mark.parametrize("what", ["swapped", "cut", "gone", "plaintext", "flipped"])
def test_a_file_that_is_not_the_committed_one_is_refused(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, whole: int
) -> None:
    monkeypatch.setattr(rekeysource, "WHOLE_BYTES", whole)
    with scene.open() as dataset:
        one, other = (scene.folder / f.path for f in dataset.files)
    if what == "swapped":
        one.write_bytes(other.read_bytes())
    elif what == "cut":
        one.write_bytes(one.read_bytes()[:-1])
    elif what == "gone":
        one.unlink()
    elif what == "plaintext":
        one.write_bytes((tmp_path / "first" / "0.parquet").read_bytes())
    else:
        data = one.read_bytes()
        one.write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])
    with pytest.raises(IntegrityError if what != "gone" or whole else EncpipeError):
        rekey(scene)
    assert found(scene).core.generation == 2


@pytest.mark.parametrize("whole", [1 << 20, 0], ids=["in memory", "hashed first"])
def test_pages_that_a_holder_of_the_old_key_forged_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    """He sealed them under the file's own DEK: every check but that of the whole file takes them."""
    monkeypatch.setattr(rekeysource, "WHOLE_BYTES", whole)
    scene = Scene(str(tmp_path / "dataset"), config=Config(keys={"footer": ("memory:main",)}))
    scene.write(save(tmp_path / "source", people(), people(10)), policy=Policy(), compression="none")
    test_file_hash.forge(scene, b"name 1", b"NAME 1")
    assert "NAME 1" in scene.table().column("name").to_pylist()
    with pytest.raises(IntegrityError) as refused:
        rekey(scene)
    assert refused.value.code == "file-hash"
    assert found(scene).core.generation == 1


def test_large_files_are_read_in_parts(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rekeysource, "WHOLE_BYTES", 0)
    before = scene.table()
    rekey(scene)
    assert scene.table().equals(before)


# Pins and signatures


def test_a_pin_store_follows_with_one_more_call(scene: Scene, tmp_path: Path) -> None:
    store = tmp_path / "pins.json"
    assert ids(scene.table(pin_store=store)) == ROWS
    rekey(scene)
    unwraps = scene.kms.unwraps
    with scene.open(pin_store=store):
        assert scene.kms.unwraps - unwraps == 2
    unwraps = scene.kms.unwraps
    with scene.open(pin_store=store):
        assert scene.kms.unwraps - unwraps == 1


def test_a_pin_store_follows_two_rekeys_and_an_overwrite(scene: Scene, tmp_path: Path) -> None:
    store = tmp_path / "pins.json"
    scene.open(pin_store=store).close()
    rekey(scene)
    scene.append(people(12))
    rekey(scene, "footer")
    config = replace(
        scene.config, keys={**KEYS, "footer": ("memory:new",)}, trust=TrustConfig(("memory:main",))
    )
    replace(scene, config=config).write(people(50), overwrite=True)
    here = replace(scene, config=config)
    assert ids(here.table(pin_store=store)) == list(range(50, 56))


def test_who_saw_no_rekey_before_gc_took_the_old_key_is_told(scene: Scene, tmp_path: Path) -> None:
    store = tmp_path / "pins.json"
    scene.open(pin_store=store).close()
    rekey(scene)
    scene.append(people(12))
    encpipe.gc(scene.url, keep=1, grace=timedelta(0), **scene.access)
    with pytest.raises(StaleDatasetError, match="another footer KEK") as refused:
        scene.open(pin_store=store)
    assert "pin store" in refused.value.hint


def test_whoever_may_wrap_cannot_put_a_dataset_in_its_place(scene: Scene, tmp_path: Path) -> None:
    """Same id, newer generation, every MAC fits: but nothing under the footer KEK that was pinned."""
    store = tmp_path / "pins.json"
    scene.open(pin_store=store).close()
    rekey(scene)
    path = scene.folder / "_encpipe/manifest.json"
    core, keys, tags, _ = path.read_bytes().split(b"\n")
    edited = json.loads(tags)
    del edited["core_macs"][next(k.id for k in found(scene).retained[0].core.keks if k.key_name == "footer")]
    path.write_bytes(b"\n".join((core, keys, json.dumps(edited).encode(), b"")))
    assert ids(scene.table()) == ROWS, "no other check says anything"
    with pytest.raises(StaleDatasetError):
        scene.open(pin_store=store)


def test_what_is_signed_is_signed_again(scene: Scene, tmp_path: Path) -> None:
    signer = create_key_file(tmp_path / "ann.pem")
    signing = replace(scene, config=replace(scene.config, signing=SigningConfig(tmp_path / "ann.pem")))
    with pytest.raises(SignatureError):
        rekey(signing)
    encpipe.sign_dataset(scene.url, **signing.access)
    rekey(signing)
    reader = replace(scene, config=replace(scene.config, trust=TrustConfig(signers=(signer,))))
    assert ids(reader.table()) == ROWS


# Revoke, then re-key


def revoke(scene: Scene, uri: str, **more: Any) -> KeysReport:
    return encpipe.revoke(scene.url, "pii", uri, rekey=True, **{**scene.access, **more})


def test_who_was_revoked_opens_nothing_new_with_what_he_kept(scene: Scene) -> None:
    encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
    kept = (scene.folder / "_encpipe/manifest.json").read_bytes()
    keks = active(scene)
    report = revoke(scene, "memory:glass")
    assert report.rekeyed is not None
    assert report.rekeyed.key_names == ("pii",)
    assert opening(scene, "pii") == [("memory:pii", "1")]
    assert active(scene)["footer"] == keks["footer"]
    assert active(scene)["pii"] != keks["pii"]
    assert not any(w.master_key == "memory:glass" for some in found(scene).wrappings.values() for w in some)
    assert ids(scene.table()) == ROWS
    new = (scene.folder / "_encpipe/manifest.json").read_bytes()
    former = replace(scene, config=Config(keys={**KEYS, "pii": ("memory:glass",)}))
    with pytest.raises(EncpipeError):
        former.table(["name"])
    (scene.folder / "_encpipe/manifest.json").write_bytes(kept)
    assert former.table(["name"]).num_rows == 12, "as documented: until gc"
    (scene.folder / "_encpipe/manifest.json").write_bytes(new)
    encpipe.gc(scene.url, keep=1, grace=timedelta(0), **scene.access)
    (scene.folder / "_encpipe/manifest.json").write_bytes(kept)
    with pytest.raises(IntegrityError):
        former.table(["name"])


def test_a_dry_run_of_both_changes_nothing(scene: Scene) -> None:
    encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
    before = (scene.folder / "_encpipe/manifest.json").read_bytes()
    report = revoke(scene, "memory:glass", dry_run=True)
    assert report.rekeyed is not None
    assert report.rekeyed.dry_run
    assert report.rekeyed.master_keys == {"pii": ("memory:pii",)}
    assert (scene.folder / "_encpipe/manifest.json").read_bytes() == before


def test_the_last_wrapping_is_refused_and_nothing_is_encrypted(scene: Scene) -> None:
    before = scene.objects()
    with pytest.raises(ConfigError) as refused:
        revoke(scene, "memory:pii")
    assert refused.value.code == "last-wrapping"
    assert scene.objects() == before


def test_where_encrypting_fails_it_is_told_what_is_left_to_do(scene: Scene) -> None:
    encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
    with scene.open() as dataset:
        path = scene.folder / dataset.files[0].path
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(IntegrityError) as failed:
        revoke(scene, "memory:glass")
    assert "memory:glass is revoked" in failed.value.hint
    assert "encpipe rekey" in failed.value.hint
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="opens no KEK") as refused:
        revoke(scene, "memory:glass")
    assert "encpipe rekey" in refused.value.hint
    report = rekey(scene, "pii")
    assert opening(scene, "pii") == [("memory:pii", "1")]
    assert report.rows == 12


# Told


def test_the_audit_log_has_it_before_the_commit(scene: Scene, tmp_path: Path) -> None:
    scene.config = replace(scene.config, audit=AuditConfig(f"file:{tmp_path / 'audit.jsonl'}"))
    rekey(scene, "pii")
    verify_audit(tmp_path / "audit.jsonl").check()
    found = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    (line,) = [line for line in found if line["event"] == "rekey"]
    assert (line["key_names"], line["generation"]) == (["pii"], 3)
    assert [key["uri"] for key in line["master_keys"]] == ["memory:pii"]
    assert line["counts"]["rows"] == 12


REFUSALS: dict[str, Callable[[Scene], object]] = {
    "a key that is gone": lambda scene: scene.kms.forget("pii"),
    "a file that is gone": lambda scene: next(scene.folder.glob("data/*.parquet")).unlink(),
}


@pytest.mark.parametrize("spoil", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_told_too(scene: Scene, tmp_path: Path, spoil: Callable[[Scene], object]) -> None:
    scene.config = replace(scene.config, audit=AuditConfig(f"file:{tmp_path / 'audit.jsonl'}"))
    spoil(scene)
    with pytest.raises((KmsError, IntegrityError)):
        rekey(scene)
    found = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["of"] for line in found if line["event"] == "refusal"][-1] == "rekey"


def test_nothing_is_committed_whose_line_was_not_taken(scene: Scene) -> None:
    scene.config = replace(scene.config, audit=AuditConfig("file:/nowhere/audit.jsonl"))
    before = scene.objects()
    with pytest.raises(EncpipeError) as refused:
        rekey(scene)
    assert refused.value.code == "audit"
    assert scene.objects() == before


def test_a_key_name_of_older_generations_only_has_nothing_to_encrypt_again(scene: Scene) -> None:
    scene.write(people(0), overwrite=True, policy=Policy(), drop_column_keys=True)
    encpipe.grant(scene.url, "pii", "memory:glass", **scene.access)
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match="no key name 'pii'"):
            revoke(scene, "memory:glass", dry_run=dry_run)
