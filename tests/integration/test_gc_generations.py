"""gc and generations: which leave, what goes with them and when, and what readers of them see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gcscene import (
    DAY,
    MORE,
    NEW,
    NOW,
    OLD,
    age,
    assert_clean,
    collect,
    hashes,
    local,
)
from scene import KEYS, PII, Scene, ids, people

from encpipe import (
    Config,
    IntegrityError,
    StaleDatasetError,
)
from encpipe.lifecycle import gcplan


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return local(tmp_path)


def test_a_generation_leaves_and_its_files_follow_after_the_grace_time(scene: Scene) -> None:
    scene.write(people(0))
    scene.write(people(10), overwrite=True)
    age(scene, 30)
    with scene.open(generation=1) as reader, scene.open() as newest:
        before, core = hashes(scene), newest.core_digest
        found = collect(scene, keep=1)
        assert (found.left, found.kept, found.generation) == ((1,), (2,), 2)
        assert (found.removed, found.waiting) == ((), 2)
        assert found.revision == scene.inspect().revision == 3
        with pytest.raises(StaleDatasetError, match="generation 1 is not in the manifest"):
            scene.open(generation=1)
        assert ids(reader.to_table()) == OLD
        after = hashes(scene)
        changed = {path for path in before if after[path] != before[path]}
        assert changed == {"_encpipe/manifest.json"}
        assert scene.open(expect_core=core, min_generation=2).core_digest == core
        assert collect(scene, keep=1).removed == ()
        assert len(scene.verify().unlisted) == 2, "the file and the list, not the mark"
        assert ids(reader.to_table()) == OLD
    age(scene, 8, "left")
    gone = collect(scene)
    assert len(gone.removed) == 3, "a file, a list and a mark"
    assert gone.revision == 4
    assert_clean(scene, NEW)
    assert collect(scene).revision == 4, "nothing to do, nothing written"


def test_a_reader_that_comes_too_late_is_told_so(scene: Scene) -> None:
    """Not that the dataset is damaged."""
    scene.write(people(0))
    with scene.open() as reader:
        scene.write(people(10), overwrite=True)
        collect(scene, keep=1, grace=NOW)
        with pytest.raises(StaleDatasetError, match=r"generation 1 of .* is gone: gc removed it") as refused:
            reader.to_table()
        assert "open the dataset again" in refused.value.hint
        scene.write(people(20), overwrite=True)
        (path,) = (entry.path for entry in scene.open().files)
        (scene.folder / path).unlink()
        with pytest.raises(IntegrityError) as missing:
            scene.table()
        assert missing.value.code == "file-missing"


def test_files_that_a_later_generation_keeps_stay(scene: Scene) -> None:
    scene.write(people(0))
    scene.append(people(10))
    scene.append(people(20))
    found = collect(scene, keep=2, grace=NOW)
    assert found.left == (1,)
    assert [path for path in found.removed if path.endswith(".parquet")] == []
    assert ids(scene.table(generation=2)) == OLD + NEW
    assert_clean(scene, OLD + NEW + MORE)


def test_without_being_asked_no_readable_generation_goes(scene: Scene) -> None:
    scene.write(people(0))
    scene.write(people(10), overwrite=True)
    age(scene, 400)
    found = collect(scene)
    assert (found.left, found.removed, found.kept) == ((), (), (1, 2))
    assert ids(scene.table(generation=1)) == OLD
    assert collect(scene, older_than=500 * DAY).left == ()
    assert collect(scene, older_than=300 * DAY).left == (1,)


def test_generations_that_commits_pushed_out_go_after_the_grace_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(people(0))
    reader = scene.open()
    monkeypatch.setattr("encpipe.manifest.RETAINED_GENERATIONS", 1)
    monkeypatch.setattr(gcplan, "RETAINED_GENERATIONS", 1)
    scene.write(people(10), overwrite=True)
    age(scene, 30)
    scene.write(people(20), overwrite=True)
    assert scene.inspect(use_keys=False).retained_generations == (2,)
    found = collect(scene)
    assert (found.removed, found.waiting) == ((), 2)
    assert ids(reader.to_table()) == OLD
    reader.close()
    age(scene, 8)
    assert collect(scene).waiting == 0
    assert_clean(scene, MORE)


def test_keks_go_with_the_last_generation_that_uses_them(scene: Scene) -> None:
    scene.write(people(0))
    scene.kms.create("second")
    both = replace(scene, config=Config(keys={**KEYS, "footer": ("memory:second", "memory:main")}))
    both.write(people(10), overwrite=True, policy=PII)
    old = [kek.id for kek in both.inspect().keks if kek.state == "retired"]
    assert len(old) == 1
    assert collect(both).keks == ()
    found = collect(both, keep=1)
    assert found.keks == tuple(old)
    assert [kek.wrappings for kek in both.inspect().keks if kek.id in old] == [()]
    both.append(people(20))
    age(scene, 8)
    collect(both)
    assert_clean(both, NEW + MORE)
