"""After a shred nobody opens what was shredded; nothing that does is left where encpipe puts things."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scene import KEYS, PII, Scene, ids, on_s3, people

import encpipe
from encpipe import (
    Config,
    ConfigError,
    EncpipeError,
    KmsUnavailableError,
    ShreddedError,
    SignatureError,
    StaleDatasetError,
)
from encpipe.aead import Label
from encpipe.audit import verify_audit
from encpipe.config import AuditConfig, SigningConfig, TrustConfig
from encpipe.lifecycle import ShredReport
from encpipe.manifest import Manifest
from encpipe.signing import SigningKey, create_key_file
from encpipe.state import read_manifest

MANIFEST = "_encpipe/manifest.json"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    """Two generations: six rows, then six more."""
    if request.param == "local":
        made = Scene(str(tmp_path / "dataset"))
    else:
        bucket = request.getfixturevalue("bucket")
        made = on_s3(request.getfixturevalue("seaweed"), f"s3://{bucket}/folder")
    made.write(people(0))
    made.append(people(10))
    return made


@pytest.fixture
def local(tmp_path: Path) -> Scene:
    made = Scene(str(tmp_path / "dataset"))
    made.write(people(0))
    made.append(people(10))
    return made


def manifest_of(scene: Scene) -> Manifest:
    storage = scene.storage()
    try:
        return read_manifest(storage)[1]
    finally:
        storage.close()


def shred(scene: Scene, *names: str, **more: Any) -> ShredReport:
    arguments = {"confirm": manifest_of(scene).core.dataset_id, "key_names": names or None}
    return encpipe.shred(scene.url, **{**arguments, **scene.access, **more})


def states(scene: Scene) -> dict[str, str]:
    return {kek.key_name: kek.state for kek in manifest_of(scene).core.keks}


# A dataset


def test_nobody_opens_a_shredded_dataset(scene: Scene) -> None:
    before = manifest_of(scene)
    report = shred(scene)
    assert (report.scope, report.verdict, report.key_names) == ("dataset", "removed", ("footer", "pii"))
    assert report.master_keys == ("memory:main", "memory:pii")
    assert report.remaining == ()
    found = manifest_of(scene)
    assert (found.core.dataset_id, found.core.generation) == (before.core.dataset_id, 3)
    assert (found.wrappings, found.retained, found.revision) == ({}, (), before.revision + 1)
    assert states(scene) == {"footer": "shredded", "pii": "shredded"}
    keys = scene.access
    for attempt in (
        scene.open,
        lambda: scene.append(people(20)),
        lambda: scene.write(people(20), overwrite=True),
        lambda: encpipe.rewrap(scene.url, **keys),
        lambda: encpipe.grant(scene.url, "pii", "memory:main", **keys),
        lambda: encpipe.gc(scene.url, **keys),
        scene.verify,
    ):
        with pytest.raises(ShreddedError):
            attempt()
    with pytest.raises(StaleDatasetError):
        scene.open(generation=1)
    assert {kek.state for kek in scene.inspect().keks} == {"shredded"}


def test_it_needs_no_key(local: Scene) -> None:
    anybody = replace(local, config=Config())
    unwraps = local.kms.unwraps
    assert shred(anybody).verdict == "removed"
    assert local.kms.unwraps == unwraps


@pytest.mark.parametrize("confirm", [None, "", "0" * 32, "yes"])
def test_it_asks_for_the_dataset_id(local: Scene, confirm: str | None) -> None:
    before = (local.folder / MANIFEST).read_bytes()
    with pytest.raises(ConfigError, match="confirmed") as refused:
        shred(local, confirm=confirm)
    assert refused.value.code == "usage"
    with pytest.raises(ConfigError):
        shred(local, confirm="0" * 32, dry_run=True)
    assert (local.folder / MANIFEST).read_bytes() == before


def test_done_twice_it_changes_nothing(scene: Scene) -> None:
    first = shred(scene)
    before = manifest_of(scene)
    again = shred(scene)
    assert manifest_of(scene) == before
    assert (again.verdict, again.generation, again.keks) == ("removed", first.generation, first.keks)


# A key name


def test_the_columns_of_a_key_name_go_and_the_rest_stays(scene: Scene) -> None:
    report = shred(scene, "pii")
    assert (report.scope, report.verdict, report.key_names) == ("key-names", "removed", ("pii",))
    assert report.master_keys == ("memory:pii",)
    assert states(scene) == {"footer": "active", "pii": "shredded"}
    for generation, rows in ((None, [*range(6), *range(10, 16)]), (2, None), (1, list(range(6)))):
        with pytest.raises(ShreddedError, match="'pii'"):
            scene.table(["name"], generation=generation)
        if rows is not None:
            assert ids(scene.table(["id"], generation=generation)) == rows
    table = scene.table(on_missing_key="null")
    assert table.column("name").null_count == table.num_rows == 12
    with pytest.raises(ShreddedError):
        scene.append(people(20))
    assert encpipe.rewrap(scene.url, **scene.access).changes != ()
    assert encpipe.gc(scene.url, **scene.access).kept == (1, 2, 3)


def test_the_key_name_can_be_used_anew(local: Scene) -> None:
    old = manifest_of(local).core.active("pii").id
    shred(local, "pii")
    local.write(people(30), overwrite=True)
    assert manifest_of(local).core.active("pii").id != old
    assert local.table(["name"]).column("name").to_pylist()[0] == "name 30"
    with pytest.raises(ShreddedError):
        local.table(["name"], generation=2)


def test_every_kek_of_the_key_name_goes(local: Scene) -> None:
    local.kms.create("new")
    local.config = replace(local.config, keys={**KEYS, "pii": ("memory:new",)})
    local.write(people(30), overwrite=True)
    old = sorted(w.master_key for some in manifest_of(local).wrappings.values() for w in some)
    assert old == ["memory:main", "memory:new", "memory:pii"]
    report = shred(local, "pii")
    assert sorted(report.master_keys) == ["memory:new", "memory:pii"]
    assert len(report.keks) == 2
    assert [w.master_key for some in manifest_of(local).wrappings.values() for w in some] == ["memory:main"]


def test_a_generation_whose_footer_key_goes_leaves(local: Scene) -> None:
    other = replace(PII, footer_key="pii", columns={})
    local.write(people(20), overwrite=True, policy=other, drop_column_keys=True)
    local.write(people(30), overwrite=True)
    assert len(manifest_of(local).retained) == 3
    shred(local, "pii")
    assert [t.core.footer_key for t in manifest_of(local).retained] == ["footer"] * 3
    assert encpipe.gc(local.url, **local.access).kept == (1, 2, 4, 5)


@pytest.mark.parametrize("names", [("footer",), ("pii", "footer"), ("money",), ()])
def test_the_footer_key_an_unknown_name_and_none_are_refused(local: Scene, names: tuple[str, ...]) -> None:
    before = (local.folder / MANIFEST).read_bytes()
    with pytest.raises(ConfigError):
        shred(local, key_names=names)
    assert (local.folder / MANIFEST).read_bytes() == before


def test_it_needs_the_key_names_that_stay_and_not_the_one_that_goes(local: Scene) -> None:
    local.kms.forget("pii")
    assert shred(local, "pii").verdict == "removed"


def test_without_a_key_name_that_stays_nothing_happens(local: Scene) -> None:
    policy = replace(PII, columns={"pii": ("name",), "money": ("id",)})
    local.kms.create("money")
    local.config = replace(local.config, keys={**KEYS, "money": ("memory:money",)})
    local.write(people(30), overwrite=True, policy=policy)
    before = (local.folder / MANIFEST).read_bytes()
    local.kms.forget("money")
    with pytest.raises(EncpipeError):
        shred(local, "pii")
    assert (local.folder / MANIFEST).read_bytes() == before
    assert not [path for path in local.objects("_encpipe/") if "files-4-" in path]


def test_what_is_already_shredded_stays_so(local: Scene) -> None:
    shred(local, "pii")
    before = manifest_of(local)
    assert shred(local, "pii").generation == before.core.generation
    assert manifest_of(local) == before
    shred(local)
    assert states(local) == {"footer": "shredded", "pii": "shredded"}


# Copies


def test_a_dry_run_tells_and_changes_nothing(local: Scene) -> None:
    copy = local.folder / "_encpipe" / ".tmp-0123"
    copy.write_bytes((local.folder / MANIFEST).read_bytes())
    before = {path: (local.folder / path).read_bytes() for path in local.objects()}
    report = shred(local, confirm=None, dry_run=True)
    assert (report.verdict, report.dry_run, report.removed) == ("", True, ("_encpipe/.tmp-0123",))
    assert {path: (local.folder / path).read_bytes() for path in local.objects()} == before


@pytest.mark.parametrize("names", [(), ("pii",)])
def test_a_temp_manifest_goes(local: Scene, names: tuple[str, ...]) -> None:
    (local.folder / "_encpipe" / ".tmp-0123").write_bytes((local.folder / MANIFEST).read_bytes())
    report = shred(local, *names)
    assert (report.verdict, report.removed) == ("removed", ("_encpipe/.tmp-0123",))
    assert not (local.folder / "_encpipe" / ".tmp-0123").exists()


def test_a_torn_one_goes_with_the_dataset_and_is_told_of_with_a_key_name(local: Scene) -> None:
    torn = local.folder / "_encpipe" / ".tmp-0123"
    torn.write_bytes((local.folder / MANIFEST).read_bytes()[:-200])
    report = shred(local, "pii")
    assert report.verdict == "incomplete"
    (left,) = report.remaining
    assert (left.place, left.why) == ("_encpipe/.tmp-0123", "a temp file, not readable")
    assert shred(local).verdict == "removed"
    assert not torn.exists()


def test_a_copy_of_somebodys_own_is_left_and_told_of(local: Scene) -> None:
    copy = local.folder / "_encpipe" / "manifest.json.bak"
    copy.write_bytes((local.folder / MANIFEST).read_bytes())
    report = shred(local)
    assert report.verdict == "incomplete"
    assert {(left.place, left.master_key) for left in report.remaining} == {
        ("_encpipe/manifest.json.bak", "memory:main"),
        ("_encpipe/manifest.json.bak", "memory:pii"),
    }
    copy.unlink()
    assert shred(local).verdict == "removed"


def test_copies_of_another_dataset_stay(local: Scene, tmp_path: Path) -> None:
    other = local.at(str(tmp_path / "other"))
    other.write(people(0))
    copy = local.folder / "_encpipe" / ".tmp-0123"
    copy.write_bytes((other.folder / MANIFEST).read_bytes())
    assert (shred(local).verdict, copy.exists()) == ("removed", True)


def test_data_files_stay(local: Scene) -> None:
    files = local.objects("data/")
    shred(local)
    assert local.objects("data/") == files


# Signed, and told


def signing(scene: Scene, folder: Path) -> str:
    signer = create_key_file(folder / "signer.pem")
    scene.config = replace(
        scene.config, signing=SigningConfig(folder / "signer.pem"), trust=TrustConfig(signers=(signer,))
    )
    return signer


def test_a_signed_report_is_known_again(local: Scene, tmp_path: Path) -> None:
    signer = signing(local, tmp_path)
    trusting = local.config
    local.config = replace(trusting, trust=TrustConfig())
    encpipe.sign_dataset(local.url, **local.access)
    local.config = trusting
    report = shred(local)
    assert report.signer == signer
    report.save(tmp_path / "report.json")
    found = encpipe.verify_shred_report(tmp_path / "report.json", config=local.config)
    assert (found["verdict"], found["dataset_id"]) == ("removed", report.dataset_id)
    with pytest.raises(ConfigError, match="there already"):
        report.save(tmp_path / "report.json")
    with pytest.raises(ShreddedError):
        local.open()
    pretty = tmp_path / "pretty.json"
    pretty.write_text(json.dumps(report.as_json(), indent=2))
    assert encpipe.verify_shred_report(pretty, signers=[signer]) == found


def test_a_report_that_cannot_be_signed_is_told_unsigned(
    local: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.config = replace(local.config, signing=SigningConfig(tmp_path / "signer.pem"))
    create_key_file(tmp_path / "signer.pem")
    encpipe.sign_dataset(local.url, **local.access)
    real = SigningKey.sign_bytes

    def sign(self: SigningKey, label: Label, data: bytes) -> str:
        if label is Label.SHRED_REPORT:
            raise KmsUnavailableError("the service is away")
        return real(self, label, data)

    monkeypatch.setattr(SigningKey, "sign_bytes", sign)
    report = shred(local)
    assert (report.verdict, report.signer, report.signature) == ("removed", "", "")
    assert report.notes[-1] == "not signed: the service is away"


@pytest.mark.parametrize(
    ("field", "value"),
    [("verdict", "destroyed"), ("url", "elsewhere"), ("notes", []), ("signature", "A" * 86), ("signer", "")],
)
def test_an_edited_report_is_refused(local: Scene, tmp_path: Path, field: str, value: object) -> None:
    signer = create_key_file(tmp_path / "signer.pem")
    local.config = replace(local.config, signing=SigningConfig(tmp_path / "signer.pem"))
    encpipe.sign_dataset(local.url, **local.access)
    edited = tmp_path / "report.json"
    edited.write_text(json.dumps(shred(local).as_json() | {field: value}))
    with pytest.raises(SignatureError):
        encpipe.verify_shred_report(edited, signers=[signer])


def test_a_dataset_with_a_shredded_key_name_can_be_signed(local: Scene, tmp_path: Path) -> None:
    shred(local, "pii")
    signer = create_key_file(tmp_path / "signer.pem")
    local.config = replace(local.config, signing=SigningConfig(tmp_path / "signer.pem"))
    assert encpipe.sign_dataset(local.url, **local.access).signers == (signer,)


def test_a_temp_file_of_what_is_sealed_is_no_torn_manifest(local: Scene) -> None:
    sealed = next((local.folder / "_encpipe").glob("files-2-*")).read_bytes()
    (local.folder / "_encpipe" / ".tmp-0123").write_bytes(sealed)
    assert shred(local, "pii").verdict == "removed"


def test_an_unsigned_report_and_that_of_a_stranger_are_refused(local: Scene, tmp_path: Path) -> None:
    shred(local).save(tmp_path / "report.json")
    signer = create_key_file(tmp_path / "signer.pem")
    with pytest.raises(SignatureError, match="not signed"):
        encpipe.verify_shred_report(tmp_path / "report.json", signers=[signer])
    with pytest.raises(ConfigError, match="whose signature"):
        encpipe.verify_shred_report(tmp_path / "report.json", config=Config())


def test_a_dataset_that_no_trusted_signer_signed_is_not_shredded(local: Scene, tmp_path: Path) -> None:
    signing(local, tmp_path)
    before = (local.folder / MANIFEST).read_bytes()
    for names in ((), ("pii",)):
        with pytest.raises(SignatureError):
            shred(local, *names)
    assert (local.folder / MANIFEST).read_bytes() == before


def test_it_is_a_line_of_the_audit_log(local: Scene, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    local.config = replace(local.config, audit=AuditConfig(f"file:{log}"))
    with pytest.raises(ConfigError):
        shred(local, confirm="no")
    shred(local, "pii")
    shred(local)
    verify_audit(log).check()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [line for line in lines if "shred" in (line["event"], line.get("of"))]
    assert [(line["event"], line.get("how"), line.get("key_names")) for line in told] == [
        ("refusal", None, None),
        ("shred", "key-names", ["pii"]),
        ("shred", "dataset", ["footer", "pii"]),
    ]
    assert [key["uri"] for key in told[1]["master_keys"]] == ["memory:pii"]


def test_without_its_line_nothing_is_shredded(local: Scene, tmp_path: Path) -> None:
    local.config = replace(local.config, audit=AuditConfig(f"file:{tmp_path / 'no' / 'audit.jsonl'}"))
    before = (local.folder / MANIFEST).read_bytes()
    with pytest.raises(EncpipeError):
        shred(local)
    assert (local.folder / MANIFEST).read_bytes() == before
