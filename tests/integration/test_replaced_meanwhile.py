"""Files that are good when they are checked and others when they are used; generations nobody looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scene import PII, Scene, people

from encpipe import (
    ConfigError,
    EncpipeError,
    IntegrityError,
    ManifestError,
    Policy,
    UntrustedKeyError,
    fragments,
)
from encpipe.parquet import Handle

PLAIN = Policy()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "dataset"))


def data_file(scene: Scene) -> Path:
    (path,) = scene.objects("data/")
    return scene.folder / path


def forged(scene: Scene, size: int | None = None) -> bytes:
    """A plaintext file of the same columns, padded in front of its footer to `size`."""
    schema = scene.table().schema
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([pa.nulls(6, field.type) for field in schema], schema=schema), sink)
    data = sink.getvalue().to_pybytes()
    if size is None:
        return data
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") :]
    return data[: -len(footer)] + bytes(size - len(data)) + footer


def test_a_pyarrow_dataset_takes_no_plaintext_file_put_there_later(scene: Scene) -> None:
    scene.write(people(), policy=PLAIN)
    evil = forged(scene)
    arrow = scene.open().to_pyarrow()
    assert arrow.to_table().num_rows == 6
    data_file(scene).write_bytes(evil)
    for dataset in (arrow, arrow.replace_schema(arrow.schema.remove_metadata())):
        with pytest.raises(OSError, match=r"[Dd]eserializing|plaintext"):
            dataset.to_table()


def test_a_pyarrow_dataset_with_column_keys_has_to_be_asked_for_by_a_long_name(scene: Scene) -> None:
    scene.write(people(), policy=PII)
    with pytest.raises(EncpipeError, match="plaintext file") as refused:
        scene.open().to_pyarrow()
    assert refused.value.code == "unsupported"
    assert scene.open().to_pyarrow(trust_storage_after_the_check=True).to_table().num_rows == 6


@pytest.mark.parametrize("policy", [PLAIN, PII], ids=["one key", "column keys"])
def test_statistics_come_from_the_file_that_was_checked(
    scene: Scene, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyArrow reads the footer once more for them: a server may then answer with another one."""
    scene.write(people(), policy=policy)
    path = data_file(scene)
    evil = forged(scene, path.stat().st_size)
    assert scene.open().count_rows(pc.field("id") >= 3) == 3
    checked = Handle.check_chunks

    def then_replace(handle: Handle, leaves: object) -> None:
        checked(handle, leaves)  # type: ignore[arg-type]  # passed on as it came
        path.write_bytes(evil)

    monkeypatch.setattr(Handle, "check_chunks", then_replace)
    with pytest.raises(IntegrityError, match="replaced while it was read") as refused:
        scene.open().count_rows(pc.field("id") >= 3)
    assert refused.value.code == "file-foreign"
    assert fragments.surviving is not None


def test_who_expects_a_key_name_notices_that_it_was_dropped(scene: Scene) -> None:
    """Whoever may use the footer key alone can put all columns under it."""
    scene.write(people(), policy=PII)
    assert scene.open(expect_key_names=["pii"]).kms_calls == 2
    with pytest.raises(ManifestError, match="has no key name 'phi'; it has: footer, pii") as refused:
        scene.open(expect_key_names=["phi"])
    assert "someone replaced" in refused.value.hint
    with pytest.raises(ConfigError, match="expect_key_names is a list of names"):
        scene.open(expect_key_names="pii")
    scene.write(people(), policy=PLAIN, overwrite=True, drop_column_keys=True)
    scene.open().close()
    with pytest.raises(ManifestError, match="'pii'"):
        scene.open(expect_key_names=["pii"])


def test_an_expected_key_name_has_to_vouch(scene: Scene) -> None:
    scene.write(people(), policy=PII)
    with pytest.raises(UntrustedKeyError):
        scene.knowing("footer").open(expect_key_names=["pii"])
    path = scene.folder / "_encpipe" / "manifest.json"
    core, keys, tags = path.read_bytes().splitlines()
    kek = scene.inspect().keks[1].id.encode()
    cut = tags.replace(b'"' + kek + b'":"', b'"' + kek[::-1] + b'":"')
    path.write_bytes(b"\n".join((core, keys, cut, b"")))
    scene.open().close()
    with pytest.raises(ManifestError, match="lacks the core MAC"):
        scene.open(expect_key_names=["pii"])


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1" + bytes(100) + b"PAR1")],
    ids=["gone", "plaintext"],
)
@pytest.mark.parametrize("what", ["data/", "_encpipe/files-1-"])
def test_verify_looks_at_retained_generations(
    scene: Scene, what: str, damage: Callable[[Path], None]
) -> None:
    scene.write(people())
    (old,) = [path for path in scene.objects() if path.startswith(what)]
    scene.write(people(), overwrite=True)
    found = scene.verify()
    assert found.problems == ()
    assert found.older_generations == (1,)
    assert found.unlisted == ()
    damage(scene.folder / old)
    found = scene.verify()
    assert [problem.path for problem in found.problems] == [old]
    assert found.unlisted == ()
    with pytest.raises(IntegrityError):
        found.check()


NESTED = pa.table({"id": [1, 2], "s": [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}], "x.y": [{"z": 1}, {"z": 2}]})


def test_a_part_of_a_nested_column_cannot_be_filtered_by_another_part(scene: Scene) -> None:
    scene.write(NESTED, policy=PLAIN)
    with scene.open() as dataset:
        with pytest.raises(ConfigError, match="only a part is selected"):
            dataset.to_table(["s.x"], pc.field("s", "y") == "a")
        assert dataset.to_table(["s"], pc.field("s", "y") == "a")["s"].to_pylist() == [{"x": 1, "y": "a"}]
        assert dataset.to_table(["id"], pc.field("s", "y") == "b")["id"].to_pylist() == [2]


def test_a_nested_column_whose_name_has_a_dot(scene: Scene) -> None:
    scene.write(NESTED, policy=PLAIN)
    assert scene.table(["x.y.z"])["x.y"].to_pylist() == [{"z": 1}, {"z": 2}]


def test_a_nested_column_that_lacks_a_part_says_so(scene: Scene) -> None:
    scene.write(NESTED, policy=replace(PII, columns={"pii": ("s.y",)}))
    analyst = scene.knowing("footer")
    masked = analyst.table(on_missing_key="null")
    assert masked["s"].to_pylist() == [{"x": 1}, {"x": 2}]
    assert masked.schema.field("s").metadata == {b"encpipe.missing_key": b"pii"}
    skipped = analyst.table(on_missing_key="skip")
    assert skipped.schema.field("s").metadata is None
