"""A resume state of a stored dataset outlives appends and a re-wrap, and nothing that changes the data."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from scene import Scene, people, save
from simulation.dataset import MANIFEST, DatasetSim, Kek

from encpipe import ConfigError, EncpipeError
from encpipe.keys import KeyContext
from encpipe.torch import Loader
from encpipe.torch.source import ScanSource

ROWS = 400


def scene_of(folder: Path, *, rows: int = ROWS) -> Scene:
    """Three files, ids from 0 on, in row groups of 16."""
    third = rows // 3
    tables = (people(0, third), people(third, third), people(2 * third, rows - 2 * third))
    scene = Scene(str(folder / "sealed"))
    scene.write(save(folder / "plain", *tables, row_group=16))
    return scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return scene_of(tmp_path)


def loader(scene: Scene, **options: Any) -> Loader:
    return Loader(scene.url, **{"batch_size": 16, "shuffle": True, "seed": 3, **scene.access, **options})


def ids(loader: Loader, batches: int | None = None) -> list[int]:
    return [n for batch in itertools.islice(loader, batches) for n in batch["id"].tolist()]


def stopped(scene: Scene, batches: int = 7, **options: Any) -> tuple[list[int], dict[str, Any]]:
    with loader(scene, **options) as running:
        return ids(running, batches), json.loads(json.dumps(running.state_dict()))


def rest_of(scene: Scene, state: dict[str, Any], **options: Any) -> list[int]:
    with loader(scene, **options) as resumed:
        resumed.load_state_dict(state)
        return ids(resumed)


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_goes_on_with_other_threads_and_ranks(scene: Scene, shuffle: bool) -> None:
    options = {"shuffle": shuffle, "batch_size": 8}
    before = [stopped(scene, 9, rank=rank, world_size=2, threads=1, **options) for rank in range(2)]
    seen, states = [n for numbers, _ in before for n in numbers], [state for _, state in before]
    assert states[0] == states[1]
    after = [
        rest_of(scene, states[0], rank=rank, world_size=4, threads=3, prefetch=1, **options)
        for rank in range(4)
    ]
    assert len({len(numbers) for numbers in after}) == 1
    given_out = seen + [n for numbers in after for n in numbers]
    assert len(set(given_out)) == len(given_out) >= ROWS - 64
    assert sorted(seen + rest_of(scene, states[0], **options)) == list(range(ROWS))


def test_a_state_taken_before_an_append_reopens_its_generation(scene: Scene) -> None:
    seen, state = stopped(scene)
    scene.append(people(ROWS, 100))
    with loader(scene) as resumed:
        assert len(resumed) == 32
        resumed.load_state_dict(state)
        assert len(resumed) == 25
        assert sorted(seen + ids(resumed)) == list(range(ROWS))
        assert sorted(ids(resumed)) == list(range(ROWS))
        assert resumed.state_dict()["generation"] == 1
    with loader(scene) as fresh:
        assert sorted(ids(fresh)) == list(range(ROWS + 100))


def test_a_state_of_another_generation_is_refused_by_an_open_dataset(scene: Scene) -> None:
    _, state = stopped(scene)
    scene.append(people(ROWS, 100))
    with scene.open() as dataset, Loader(dataset, 16, shuffle=True, seed=3) as resumed:
        with pytest.raises(ConfigError, match="another generation") as caught:
            resumed.load_state_dict(state)
        assert caught.value.code == "resume-state"
        assert len(ids(resumed)) == ROWS + 100
    with scene.open(generation=1) as dataset, Loader(dataset, 16, shuffle=True, seed=3) as resumed:
        resumed.load_state_dict(state)
        assert len(ids(resumed)) == ROWS - 7 * 16


def test_a_refused_state_of_another_generation_leaves_the_loader_at_its_own(scene: Scene) -> None:
    _, state = stopped(scene)
    scene.append(people(ROWS, 100))
    with loader(scene, seed=4) as other:
        with pytest.raises(ConfigError, match="another seed"):
            other.load_state_dict(state)
        assert sorted(ids(other)) == list(range(ROWS + 100))


def test_data_that_was_encrypted_anew_takes_no_state(scene: Scene, tmp_path: Path) -> None:
    seen, state = stopped(scene)
    elsewhere = scene.at(str(tmp_path / "other"))
    elsewhere.write(tmp_path / "plain")
    with pytest.raises(ConfigError, match="another dataset") as caught:
        rest_of(elsewhere, state)
    assert caught.value.code == "resume-state"
    scene.write(tmp_path / "plain", overwrite=True)
    with (
        scene.open() as dataset,
        Loader(dataset, 16, shuffle=True, seed=3) as resumed,
        pytest.raises(ConfigError, match="re-encrypted") as caught,
    ):
        resumed.load_state_dict(state)
    assert caught.value.code == "resume-state"
    assert sorted(seen + rest_of(scene, state)) == list(range(ROWS)), "the generation before is still there"


def test_a_state_stays_valid_after_a_rewrap(scene: Scene) -> None:
    seen, state = stopped(scene)
    before = rest_of(scene, state)
    rewrap(scene)
    assert rest_of(scene, state) == before
    assert sorted(seen + before) == list(range(ROWS))


def rewrap(scene: Scene) -> None:
    """Both KEKs wrapped anew by a new version of their master keys: lines 2 and 3 change."""
    with scene.open() as dataset:
        keys = dataset._state.keys
        keks = {r.key_name: Kek(r.id, keys.kek(r.id)) for r in dataset._state.view.core.keks}
    sim = DatasetSim.load(scene.folder, {name: keks[name] for name in ("footer", "pii")})
    core_line = sim.lines[0]
    for name, master in (("footer", "main"), ("pii", "pii")):
        scene.kms.rotate(master)
        context = KeyContext(sim.core["dataset_id"], name, keks[name].id)
        sim.keys["wrappings"][keks[name].id] = []
        sim.add_wrapping(name, scene.kms.master_key(f"memory:{master}").wrap(keks[name].secret, aad=context))
    sim.keys["revision"] += 1
    sim.publish_manifest()
    assert sim.lines[0] == core_line
    (scene.folder / MANIFEST).write_bytes(sim.objects[MANIFEST])
    versions = {w["version"] for some in sim.keys["wrappings"].values() for w in some}
    assert {str(version) for version in versions} == {"2"}


@pytest.mark.parametrize(
    "edit",
    [
        *({"generation": value} for value in (0, -1, 2, 99, 2**70)),
        *({"core_digest": value} for value in ("", "zz", "e" * 64, "\0")),
        *({"dataset_id": value} for value in ("", "e" * 32)),
        {"core_digest": "e" * 64, "generation": 99},
        {"core_digest": "e" * 64, "generation": -(2**70)},
        {"columns": ["id"]},
        {"missing_keys": ["pii"]},
    ],
)
def test_an_edited_state_opens_nothing_else(scene: Scene, edit: dict[str, Any]) -> None:
    _, state = stopped(scene)
    scene.append(people(ROWS, 16))
    with loader(scene) as resumed:
        try:
            resumed.load_state_dict({**state, **edit})
        except EncpipeError:
            if set(edit) & {"columns", "missing_keys"}:
                return
            assert len(ids(resumed)) == ROWS + 16
        else:
            pytest.fail("taken")


def test_the_outcome_of_a_missing_key_is_part_of_a_state(scene: Scene) -> None:
    _, state = stopped(scene, columns=["id"])
    blind = scene.knowing("footer")
    assert rest_of(blind, state, columns=["id"]) == rest_of(scene, state, columns=["id"])
    with pytest.raises(ConfigError, match="other missing keys: the state has , here it is pii") as caught:
        rest_of(blind, state, columns=["id"], on_missing_key="skip")
    assert caught.value.code == "resume-state"
    seen, other = stopped(blind, on_missing_key="skip")
    assert sorted(seen + rest_of(blind, other, on_missing_key="skip")) == list(range(ROWS))


def test_a_filtered_epoch_is_resumed_exactly(scene: Scene) -> None:
    keep = [("id", ">=", 37), ("id", "<", 300)]
    whole = stopped(scene, 10**6, filter=keep)[0]
    seen, state = stopped(scene, filter=keep)
    assert seen + rest_of(scene, state, filter=keep) == whole
    assert sorted(whole) == list(range(37, 300))
    with pytest.raises(ConfigError, match="another filter"):
        rest_of(scene, state, filter=keep[:1])


def test_the_same_row_groups_in_other_files_come_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the same core digest, which other files never have."""
    monkeypatch.setattr(ScanSource, "core_digest", "c" * 64)
    found = []
    for name, cuts in (("one", (0, 480)), ("two", (0, 160, 480)), ("many", tuple(range(0, 481, 80)))):
        tables = [people(start, stop - start) for start, stop in itertools.pairwise(cuts)]
        scene = Scene(str(tmp_path / f"{name}-sealed"))
        scene.write(save(tmp_path / name, *tables, row_group=16))
        with scene.open() as dataset:
            assert len(dataset.files) == len(cuts) - 1
        found.append(stopped(scene, 10**6)[0])
    assert found[0] == found[1] == found[2]
    assert sorted(found[0]) == list(range(480))
