"""Pins follow a dataset whose footer KEK was replaced: along the MACs under the one before, and only so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from specimen import CREATED, DATASET_ID, LIST_ID, Specimen, record

from encpipe import manifest
from encpipe.errors import (
    EncpipeError,
    KeyAccessDeniedError,
    KeyNotFoundError,
    KmsUnavailableError,
    ShreddedError,
    StaleDatasetError,
    UntrustedKeyError,
)
from encpipe.keys import Secret
from encpipe.manifest import Core, Manifest
from encpipe.pins import PinStore

URL = "s3://bucket/dataset"
ORIGINAL = Specimen()
THIRD = ORIGINAL.parse()
KEKS = {**ORIGINAL.keks, **{f"{n}" * 32: Secret.random(32) for n in (1, 2)}}


def after(
    before: Manifest,
    *,
    footer: str | None = None,
    mac: bool = True,
    keep: int = 16,
    keks: Mapping[str, Secret] = KEKS,
) -> Manifest:
    """The next generation: an append, or with `footer` a re-key to that KEK, MACed under the one before."""
    records = before.core.keks
    if footer is not None:
        records = tuple(replace(k, state="retired") if k.key_name == "footer" else k for k in records)
        records += (record("footer", keks[footer], kek_id=footer),)
    core = Core(
        dataset_id=DATASET_ID,
        generation=before.core.generation + 1,
        commit_id="c" * 32,
        created=CREATED,
        footer_key="footer",
        list_id=LIST_ID,
        list_sha256=hashlib.sha256(b"list").digest(),
        keks=records,
    )
    data = manifest.build(
        core,
        revision=before.revision + 1,
        wrappings={},
        retained=before.history[len(before.history) - keep :] if keep else (),
        keks=keks,
        footer_before=before.core.footer_kek.id if mac else None,
    )
    return manifest.parse(data)


class Keys:
    """Gives KEKs, and notes which."""

    def __init__(self, failure: EncpipeError | None = None) -> None:
        self.asked: list[str] = []
        self._failure = failure

    def __call__(self, kek_id: str) -> Secret:
        self.asked.append(kek_id)
        if self._failure is not None:
            raise self._failure
        return KEKS[kek_id]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A pin store that has seen generation 3."""
    PinStore(tmp_path / "pins.json").check_and_record(URL, THIRD)
    return tmp_path / "pins.json"


ONE, TWO = "1" * 32, "2" * 32
FIRST = THIRD.core.footer_kek.id
REKEYED = after(THIRD, footer=ONE)


def test_a_rekey_is_followed_with_one_more_key(path: Path) -> None:
    keys = Keys()
    PinStore(path).check_and_record(URL, REKEYED, keys)
    assert keys.asked == [FIRST]
    PinStore(path).check_and_record(URL, REKEYED, keys)
    assert keys.asked == [FIRST], "it is pinned now"
    assert json.loads(path.read_text())[URL]["footer_kek"]["id"] == ONE


def test_an_append_asks_for_no_key(path: Path) -> None:
    keys = Keys()
    PinStore(path).check_and_record(URL, after(THIRD), keys)
    assert keys.asked == []


def test_two_rekeys_with_appends_between_are_followed(path: Path) -> None:
    keys = Keys()
    seen = after(after(after(after(THIRD), footer=ONE)), footer=TWO)
    PinStore(path).check_and_record(URL, after(seen), keys)
    assert keys.asked == [FIRST, ONE]


def test_a_rekey_back_and_forth_is_followed_only_along_its_macs(path: Path) -> None:
    """That the newest generation has the pinned footer KEK again says nothing of those between."""
    seen = after(after(THIRD, footer=ONE, mac=False), footer=TWO)
    with pytest.raises(StaleDatasetError):
        PinStore(path).check_and_record(URL, seen, Keys())


def without_mac() -> Manifest:
    return after(THIRD, footer=ONE, mac=False)


def with_mac_of_another_core() -> Manifest:
    head = REKEYED.head
    macs = {**head.macs, FIRST: after(REKEYED, footer=TWO).head.macs[ONE]}
    return replace(REKEYED, head=replace(head, macs=macs))


def with_the_pinned_id_for_another_kek() -> Manifest:
    keks = tuple(replace(kek, commitment=bytes(32)) if kek.id == FIRST else kek for kek in THIRD.core.keks)
    core = replace(THIRD.core, keks=keks, generation=4)
    return replace(THIRD, head=replace(THIRD.head, core=core), revision=9)


FORGED = {
    "no MAC under the old footer KEK": without_mac,
    "the MAC of another core": with_mac_of_another_core,
    "another KEK under the id of the footer KEK": with_the_pinned_id_for_another_kek,
    "the generation that was re-keyed is gone": lambda: after(REKEYED, keep=0),
}


def test_a_kek_of_one_s_own_under_the_pinned_id_vouches_for_nothing(path: Path) -> None:
    """Whoever may wrap under the footer's master key makes a KEK, calls it as the pinned one, and a dataset
    that is whole: each MAC fits, under the KEKs it commits to."""
    own = {**KEKS, FIRST: Secret.random(32)}
    keks = tuple(
        record("footer", own[kek.id], kek_id=kek.id) if kek.id == FIRST else kek for kek in THIRD.core.keks
    )
    third = replace(THIRD, head=replace(THIRD.head, core=replace(THIRD.core, keks=keks)))
    forged = after(third, footer=ONE, keks=own)
    forged.head.check(FIRST, own[FIRST])
    with pytest.raises(StaleDatasetError, match="another footer KEK than the one that was pinned"):
        PinStore(path).check_and_record(URL, forged, own.__getitem__)


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_what_does_not_follow_is_stale_and_not_remembered(path: Path, forged: Callable[[], Manifest]) -> None:
    before = path.read_bytes()
    with pytest.raises(StaleDatasetError, match="another footer KEK than the one that was pinned") as refused:
        PinStore(path).check_and_record(URL, forged(), Keys())
    assert "pin store" in refused.value.hint
    assert path.read_bytes() == before


def test_without_the_old_wrappings_it_is_still_followed_from_later_on(path: Path) -> None:
    """gc took generation 3 and its KEK: who saw the re-key needs neither."""
    PinStore(path).check_and_record(URL, REKEYED, Keys())
    keys = Keys()
    PinStore(path).check_and_record(URL, after(REKEYED, keep=0), keys)
    assert keys.asked == []


@pytest.mark.parametrize("kind", [KeyAccessDeniedError, KeyNotFoundError, ShreddedError, UntrustedKeyError])
def test_where_the_old_key_is_not_to_be_had_it_cannot_be_followed(
    path: Path, kind: type[EncpipeError]
) -> None:
    with pytest.raises(StaleDatasetError, match="no such luck"):
        PinStore(path).check_and_record(URL, REKEYED, Keys(kind("no such luck")))
    with pytest.raises(StaleDatasetError, match="no key is at hand"):
        PinStore(path).check_and_record(URL, REKEYED)


def test_an_outage_is_told_as_one_and_nothing_is_remembered(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(KmsUnavailableError):
        PinStore(path).check_and_record(URL, REKEYED, Keys(KmsUnavailableError("no answer")))
    assert path.read_bytes() == before
    PinStore(path).check_and_record(URL, REKEYED, Keys())


def test_an_entry_of_an_earlier_version_works_and_gets_the_footer_key(path: Path) -> None:
    entries = json.loads(path.read_text())
    del entries[URL]["footer_kek"]
    path.write_text(json.dumps(entries))
    PinStore(path).check_and_record(URL, without_mac())
    assert json.loads(path.read_text())[URL]["footer_kek"]["id"] == ONE
    with pytest.raises(StaleDatasetError):
        PinStore(path).check_and_record(URL, after(without_mac(), footer=TWO, mac=False), Keys())
