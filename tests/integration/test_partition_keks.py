"""Files of one partition are under KEKs of their own: written, added to, stopped and read like all others."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import steps
from scene import KEYS, Scene, ended, forked, ids, on_s3, people, save

from encpipe import (
    Config,
    ConflictError,
    FormatError,
    KeyNotFoundError,
    Policy,
    PolicyError,
    UnwrapError,
    open_dataset,
    rekey,
    rewrap,
    write_dataset,
)
from encpipe.commit import Target, partition_keks_of
from encpipe.config import KeyringConfig
from encpipe.torch import MapDataset

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"
POLICY = Policy(columns={"pii": ("name",)}, partition_keys=("year",))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(str(tmp_path / "dataset"))


def tree(folder: Path, *years: object, first: int = 0) -> Path:
    """Two files of 6 rows a year; the ids count up from `first`."""
    for n, year in enumerate(years):
        at = first + n * 12
        save(folder / f"year={year}", people(at), people(at + 6))
    return folder


def keks_by_year(scene: Scene, **more: Any) -> dict[str | None, set[tuple[str, ...]]]:
    """Year -> the KEK ids of its files."""
    found: dict[str | None, set[tuple[str, ...]]] = {}
    with scene.open(**more) as dataset:
        for entry in dataset.files:
            found.setdefault(entry.partition["year"], set()).add(entry.partition_keks)
    return found


def requires(scene: Scene) -> list[str]:
    core = json.loads((scene.folder / "_encpipe/manifest.json").read_bytes().splitlines()[0])
    found: list[str] = core["requires"]
    return found


def test_each_partition_has_a_kek_for_each_key_name(scene: Scene, tmp_path: Path) -> None:
    report = scene.write(tree(tmp_path / "in", 2020, 2021), policy=POLICY)
    assert (report.files, report.kms_calls) == (4, 2)
    found = keks_by_year(scene)
    (of_2020,), (of_2021,) = found["2020"], found["2021"]
    assert len({*of_2020, *of_2021}) == 4
    with scene.open() as dataset:
        assert sorted(ids(dataset.to_table())) == list(range(24))
        assert dataset.kms_calls == 2
        for entry in dataset.files:
            data = (scene.folder / entry.path).read_bytes()
            footer = entry.partition_keks[0]
            assert set(re.findall(rb"footer\.([0-9a-f]{32})", data)) == {footer.encode()}
    assert requires(scene) == ["partition-keks"]
    contents = scene.inspect().contents
    assert contents is not None
    assert contents.partition_keks == {"footer": 2, "pii": 2}
    scene.check_whole()


def test_an_older_reader_is_told_to_be_upgraded(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(tree(tmp_path / "in", 2020), policy=POLICY)
    monkeypatch.setattr("encpipe.core.REQUIRES", frozenset())
    with pytest.raises(FormatError, match="'partition-keks'"):
        scene.open()


def test_null_and_several_columns(scene: Scene, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for n, who in enumerate(("anna", "__HIVE_DEFAULT_PARTITION__", "x%2Fy")):
        save(source / "year=2020" / f"who={who}" / "month=1", people(n * 6))
        save(source / "year=2020" / f"who={who}" / "month=2", people(100 + n * 6))
    policy = Policy(partition_keys=("who", "year"), plaintext_partitions=("year",))
    scene.write(source, policy=policy)
    with scene.open() as dataset:
        by_who = {(e.partition["who"], e.partition_keks) for e in dataset.files}
        assert {who for who, _ in by_who} == {"anna", None, "x/y"}
        assert len(by_who) == len({keks for _, keks in by_who}) == 3
        assert len(dataset.to_table()) == 36
    scene.check_whole()


def test_an_append_uses_what_is_there_and_makes_what_is_not(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020, 2021), policy=POLICY)
    before = keks_by_year(scene)
    report = scene.append(tree(tmp_path / "more", 2021, 2022, first=24))
    assert report.kms_calls == 2
    after = keks_by_year(scene)
    assert {year: after[year] for year in before} == before
    assert len(after["2022"]) == 1
    assert not after["2022"] & (after["2020"] | after["2021"])
    assert sorted(ids(scene.table())) == list(range(48))
    assert sorted(ids(scene.table(generation=1))) == list(range(24))
    scene.check_whole()


def test_an_overwrite_drops_what_no_file_uses(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020, 2021), policy=POLICY)
    before = keks_by_year(scene)
    scene.write(tree(tmp_path / "new", 2021), policy=POLICY, overwrite=True)
    with scene.open() as dataset:
        listed = {kek.id for kek in dataset._state.files.partition_keks}
    assert keks_by_year(scene) == {"2021": before["2021"]}
    assert listed == set(*before["2021"])
    assert ids(scene.table()) == list(range(12))
    assert sorted(ids(scene.table(generation=1))) == list(range(24))
    scene.check_whole()


def test_new_parents_have_new_partition_keks(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020), policy=POLICY)
    before = keks_by_year(scene)
    keys = {**KEYS, "pii": ("memory:main",)}
    other = Scene(scene.url, kms=scene.kms, config=Config(keys=keys))
    other.write(tree(tmp_path / "in", 2020), policy=POLICY, overwrite=True)
    ((footer, pii),), ((old_footer, old_pii),) = keks_by_year(other)["2020"], before["2020"]
    assert (footer == old_footer, pii == old_pii) == (True, False)
    other.check_whole()


def test_a_policy_without_them_ends_it_and_one_by_other_columns_begins_anew(
    scene: Scene, tmp_path: Path
) -> None:
    source = tree(tmp_path / "in", 2020)
    scene.write(source, policy=POLICY)
    scene.write(source, policy=Policy(columns={"pii": ("name",)}), overwrite=True)
    assert (keks_by_year(scene), requires(scene)) == ({"2020": {()}}, [])
    scene.append(source)
    scene.check_whole()
    scene.write(source, policy=POLICY, overwrite=True)
    assert requires(scene) == ["partition-keks"]
    assert [len(ids(scene.table(generation=n))) for n in (1, 2, 3, 4)] == [12, 12, 24, 12]
    scene.check_whole()


def test_other_columns_have_other_keks(scene: Scene, tmp_path: Path) -> None:
    for year in (2020, 2021):
        for who in ("anna", "bob"):
            save(tmp_path / "in" / f"year={year}" / f"who={who}", people(year))
    seen: set[tuple[str, ...]] = set()
    for columns, count in ((("year",), 2), (("who",), 2), (("who", "year"), 4), (("year", "who"), 4)):
        scene.write(tmp_path / "in", policy=Policy(partition_keys=columns), overwrite=True)
        found = set().union(*keks_by_year(scene).values())
        assert len(found) == count
        assert columns == ("year", "who") or not found & seen
        seen |= found
        scene.check_whole()


def test_they_are_by_partition_columns_only(scene: Scene, tmp_path: Path) -> None:
    for source in (people(), tree(tmp_path / "in", 2020)):
        with pytest.raises(PolicyError, match="partition_keys lists 'id'") as refused:
            scene.write(source, policy=Policy(partition_keys=("id",)))
        assert refused.value.code == "policy-partition"


def test_a_re_wrap_changes_nothing_of_them(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020, 2021), policy=POLICY)
    before = keks_by_year(scene)
    rewrap(scene.url, to={"pii": ("memory:main",)}, **scene.access)
    assert keks_by_year(scene) == before
    scene.check_whole()


# Stopped, and at once


def test_killed_at_any_step_it_goes_on(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tree(tmp_path / "old", 2020), tree(tmp_path / "new", 2020, 2021, first=12)

    def fresh(n: int) -> Scene:
        here = scene.at(f"{scene.url}-{n}")
        here.write(old, policy=POLICY)
        return here

    log, here = steps.Log(), fresh(-1)
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        here.append(new, workers=1)
    for n, step in enumerate(log.steps):
        if step.split()[0] in ("create_file", "publish", "create", "commit", "delete"):
            here = fresh(n)
            stop(monkeypatch, lambda here=here: here.append(new, workers=1), n)
            finished = any("/journal.json" in path for path in here.objects("_encpipe/pending/"))
            if finished or here.inspect().generation == 1:
                here.append(new, workers=1)
            assert sorted(ids(here.table())) == list(range(36)), step
            found = keks_by_year(here)
            assert [len(found[year]) for year in ("2020", "2021")] == [1, 1], f"killed before {step}"
            here.verify().check()


def stop(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object], at: int) -> None:
    log = steps.Log()
    log.before = lambda n, step: n == at and os.kill(os.getpid(), signal.SIGKILL)
    with monkeypatch.context() as patched:
        steps.install(patched, log)
        assert ended(forked(run)) == -signal.SIGKILL


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.server)])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    if request.param == "local":
        return Scene(str(tmp_path / "dataset"))
    bucket = request.getfixturevalue("bucket")
    return on_s3(request.getfixturevalue("seaweed"), f"s3://{bucket}/folder")


def test_two_appends_may_both_make_one_for_a_partition(
    anywhere: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere.write(tree(tmp_path / "in", 2020), policy=POLICY)
    log, busy = steps.install(monkeypatch), threading.Event()

    def before(n: int, step: str) -> None:
        if step.startswith("commit") and not busy.is_set():
            busy.set()
            anywhere.append(tree(tmp_path / "one", 2021, first=12))

    log.before = before
    anywhere.append(tree(tmp_path / "two", 2021, first=24))
    assert [len(keks) for keks in keks_by_year(anywhere).values()] == [1, 2]
    assert sorted(ids(anywhere.table())) == list(range(36))
    anywhere.append(tree(tmp_path / "three", 2021, first=36))
    assert [len(keks) for keks in keks_by_year(anywhere).values()] == [1, 2]
    anywhere.check_whole()


def test_files_sealed_at_once_share_one(scene: Scene, tmp_path: Path) -> None:
    save(tmp_path / "in" / "year=2020", *(people(n * 6) for n in range(10)))
    scene.write(tmp_path / "in", policy=POLICY, workers=8)
    assert len(keks_by_year(scene)["2020"]) == 1


def test_a_commit_under_what_is_gone_is_refused(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020), policy=POLICY)
    with scene.open() as dataset:
        state = dataset._state
    records = state.view.core.keks
    target = Target(state.view.core.dataset_id, "footer", records, {}, {}, state)
    assert partition_keks_of(target, state.files.files, ()) == state.files.partition_keks
    gone = dataclasses.replace(state.files.files[0], partition_keks=("9" * 32,))
    with pytest.raises(ConflictError, match="shredded"):
        partition_keks_of(target, [gone], ())
    retired = tuple(dataclasses.replace(record, state="retired") for record in records)
    with pytest.raises(ConflictError, match="re-keyed"):
        partition_keks_of(dataclasses.replace(target, records=retired), state.files.files, ())


# Read


def test_every_way_to_read(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020, 2021), policy=POLICY)
    with scene.open() as dataset:
        assert ids(dataset.to_table(["id"], [("year", "=", 2021)])) == list(range(12, 24))
        assert dataset.count_rows([("name", "=", "name 13")]) == 1
        assert ids(dataset.to_table(["id"], pc.field("name") == "name 13")) == [13]
        assert len(dataset.head(3)) == 3
        trusting = dataset.to_pyarrow(trust_storage_after_the_check=True)
        assert sorted(trusting.to_table(filter=pc.field("id") > 20)["name"].to_pylist()) == [
            "name 21",
            "name 22",
            "name 23",
        ]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda year: dataset.to_table(None, [("year", "=", year)]), (2020, 2021) * 4)
            assert list(map(len, found)) == [12] * 8
        assert dataset.kms_calls == 2
    scene.decrypt(tmp_path / "plain")
    assert len(list((tmp_path / "plain").rglob("*.parquet"))) == 4


def test_one_dek_a_file_under_the_footer_key_alone(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020, 2021), policy=Policy(partition_keys=("year",)))
    assert all(len(keks) == 1 for some in keks_by_year(scene).values() for keks in some)
    with scene.open() as dataset:
        assert sorted(ids(dataset.to_pyarrow().to_table())) == list(range(24))
    scene.check_whole()


def test_who_lacks_a_key_name_reads_the_rest(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020, 2021), policy=POLICY)
    analyst = scene.knowing("footer")
    table = analyst.table(on_missing_key="skip")
    assert (sorted(ids(table)), table.schema.names) == (list(range(24)), ["id", "year"])
    assert analyst.table(on_missing_key="null")["name"].null_count == 24


def test_a_forked_child_and_a_pickle_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCPIPE_MASTER_KEY", "A" * 43 + "=")
    keyring = KeyringConfig(None, "key-env:ENCPIPE_MASTER_KEY")
    config = Config(keys={"footer": ("local:env",), "pii": ("local:env",)}, keyring=keyring)
    url = str(tmp_path / "dataset")
    write_dataset(tree(tmp_path / "in", 2020, 2021), url, policy=POLICY, config=config)
    with open_dataset(url, config=config) as dataset:
        dataset.to_table()

        def read() -> None:
            assert len(dataset.to_table()) == 24

        assert ended(forked(read)) == 0
        again = pickle.loads(pickle.dumps(dataset))
    with again:
        assert sorted(ids(again.to_table())) == list(range(24))


def test_one_that_was_edited_is_an_error_wherever_it_is_asked_for(scene: Scene, tmp_path: Path) -> None:
    """PyArrow ends the process where a key is refused in the wrong place."""
    scene.write(tree(tmp_path / "in", 2020), policy=POLICY)
    name: list[Any] = [("name", "=", "name 3")]
    for read in (
        lambda dataset: dataset.to_table(["name"]),
        lambda dataset: dataset.to_table(["id"], name),
        lambda dataset: dataset.count_rows(name),
        lambda dataset: dataset.to_pyarrow(["name"], trust_storage_after_the_check=True),
    ):
        with scene.open() as dataset:
            (kek,) = (kek for kek in dataset._state.files.partition_keks if kek.key_name == "pii")
            dataset._state.keys.partitions.learn([dataclasses.replace(kek, wrapped=kek.wrapped[::-1])])
            assert len(dataset.to_table(["id"])) == 12
            with pytest.raises(UnwrapError, match="partition KEK"):
                read(dataset)


def test_a_file_of_another_list_is_refused(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020), policy=POLICY)
    with scene.open() as dataset:
        foreign = dataclasses.replace(dataset.files[0], partition_keks=("9" * 32,))
        with pytest.raises(UnwrapError, match="its generation does not have"):
            dataset.scan(files=[foreign]).to_table()


def test_a_denied_parent_stops_the_reader_after_its_age(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020), policy=POLICY)
    with scene.open(max_key_age=0.0) as dataset:
        assert len(dataset.to_table()) == 12
        scene.kms.forget("pii")
        with pytest.raises(KeyNotFoundError):
            dataset.to_table(["name"])
        for kek in dataset._state.files.partition_keks:
            if kek.key_name == "pii":
                with pytest.raises(KeyNotFoundError):
                    dataset._state.keys.kek(kek.id)


def test_rows_by_number(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020, 2021), policy=POLICY)
    with MapDataset(scene.url, **scene.access) as data:
        assert [data[n]["name"] for n in (0, 23, 11)] == ["name 0", "name 23", "name 11"]


def test_without_encpipe_as_the_page_says(scene: Scene, tmp_path: Path) -> None:
    scene.write(tree(tmp_path / "in", 2020, "__HIVE_DEFAULT_PARTITION__"), policy=POLICY)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    with scene.open() as dataset:
        keys, keks = dataset._state.keys, {}
        for kek in dataset._state.files.partition_keks:
            parent = keys.kek(kek.parent).reveal()
            keks[f"{kek.key_name}.{kek.id}"] = names["partition_kek"](
                kek.as_json(), parent, dataset.dataset_id
            )
        found = [names["read"](scene.folder / entry.path, keks)["id"].to_pylist() for entry in dataset.files]
    assert sorted(n for some in found for n in some) == list(range(24))


# Re-keyed


@pytest.mark.parametrize("key_names", [None, ["pii"], ["footer"]])
def test_a_re_key_gives_new_ones_of_the_key_names(
    scene: Scene, tmp_path: Path, key_names: list[str] | None
) -> None:
    scene.write(tree(tmp_path / "in", 2020, 2021), policy=POLICY)
    before = keks_by_year(scene)
    rekey(scene.url, key_names=key_names, **scene.access)
    after = keks_by_year(scene)
    for year in ("2020", "2021"):
        ((footer, pii),), ((old_footer, old_pii),) = after[year], before[year]
        assert (footer != old_footer, pii != old_pii) == (
            "footer" in (key_names or "footer"),
            "pii" in (key_names or "pii"),
        )
    assert sorted(ids(scene.table())) == list(range(24))
    assert sorted(ids(scene.table(generation=1))) == list(range(24))
    scene.check_whole()


def test_a_re_key_takes_what_is_appended_meanwhile(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.write(tree(tmp_path / "in", 2020), policy=POLICY)
    log, busy = steps.install(monkeypatch), threading.Event()

    def before(n: int, step: str) -> None:
        if step.startswith("commit") and not busy.is_set():
            busy.set()
            scene.append(tree(tmp_path / "more", 2020, 2021, first=12))

    log.before = before
    rekey(scene.url, **scene.access)
    assert sorted(ids(scene.table())) == list(range(36))
    assert [len(keks) for keks in keks_by_year(scene).values()] == [1, 1]
    with scene.open() as now, scene.open(generation=2) as then:
        new, old = ({e.partition_keks for e in dataset.files} for dataset in (now, then))
    assert not new & old
    scene.check_whole()
