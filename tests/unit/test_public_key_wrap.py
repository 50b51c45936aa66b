"""Wrappings that anybody can make: whose word counts for which KEK."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from specimen import KEK_IDS, Specimen

from encpipe import Config, EncpipeError, MasterKeys, SignatureError
from encpipe.keyring import DatasetKeys
from encpipe.keys import KeyContext, MasterKey, Secret, WrappedKey, is_public_key_wrap
from encpipe.manifest import TaggedCore
from encpipe.statekeys import dataset_keys

SIM = Specimen()
FOUND = SIM.parse()
FOOTER, PII = KEK_IDS["footer"], KEK_IDS["pii"]


@dataclass
class Service:
    """A service of RSA keys, as far as it matters here: it opens every wrapping, to the right KEK."""

    asked: list[str] = field(default_factory=list)
    public_key_wrap: bool = True
    binds_context: bool = False
    uri: str = ""

    def master_key(self, uri: str) -> MasterKey:
        self.uri = uri
        return self

    def trusts(self, uri: str) -> bool:
        return True

    def wrap(self, kek: Secret, *, aad: KeyContext) -> WrappedKey:
        raise NotImplementedError

    def unwrap(self, wrapped: WrappedKey, *, aad: KeyContext) -> Secret:
        self.asked.append(aad.key_name)
        return SIM.keks[aad.kek_id]


def keys(service: Service, *cores: TaggedCore, vouched: tuple[TaggedCore, ...] = ()) -> DatasetKeys:
    master_keys = MasterKeys(Config(), extra={"memory": service})
    return dataset_keys(FOUND, cores, master_keys, vouched=[tagged.digest for tagged in vouched])


def with_other_kek(tagged: TaggedCore, kek_id: str) -> TaggedCore:
    """The core of somebody who names a KEK of his own by the id of another."""
    keks = tuple(replace(kek, commitment=bytes(32)) if kek.id == kek_id else kek for kek in tagged.core.keks)
    return replace(tagged, core=replace(tagged.core, keks=keks), line=b"another " + tagged.line)


def refused(found: DatasetKeys, kek_id: str = FOOTER) -> None:
    with pytest.raises(SignatureError, match="nothing vouches for this one"):
        found.kek(kek_id)


def test_a_key_says_that_it_is_one() -> None:
    assert is_public_key_wrap(Service())
    assert not is_public_key_wrap(SIM.kms.master_key("memory:footer"))


def test_without_a_word_for_it_no_call_is_made() -> None:
    service = Service()
    refused(keys(service, FOUND.head))
    assert service.asked == []


def test_a_core_that_is_vouched_for_is_enough_for_all_its_keks() -> None:
    service = Service()
    found = keys(service, FOUND.head, vouched=(FOUND.head,))
    for kek_id in (FOOTER, PII):
        assert found.kek(kek_id) == SIM.keks[kek_id]
    assert service.asked == ["footer", "pii"]


def test_an_older_core_that_is_vouched_for_counts_for_a_kek_that_is_still_the_same() -> None:
    found = keys(Service(), FOUND.head, FOUND.retained[0], vouched=(FOUND.retained[0],))
    assert found.kek(FOOTER) == SIM.keks[FOOTER]


@pytest.mark.parametrize("order", ["newest last", "newest first"])
def test_it_does_not_count_for_another_kek_of_the_same_id(order: str) -> None:
    """A head that nobody signed, over a retained generation that somebody did."""
    old, forged = FOUND.retained[0], with_other_kek(FOUND.head, FOOTER)
    cores = (old, forged) if order == "newest last" else (forged, old)
    service = Service()
    found = keys(service, *cores, vouched=(old,))
    if order == "newest last":
        refused(found)
        assert service.asked == []
        return
    with pytest.raises(EncpipeError, match="commit"):  # checked against every core that names it
        found.kek(FOOTER)


def test_it_does_not_count_for_keks_that_it_does_not_name() -> None:
    old = FOUND.retained[0]
    footer_only = tuple(kek for kek in old.core.keks if kek.id == FOOTER)
    vouched = replace(old, core=replace(old.core, keks=footer_only), line=b"another " + old.line)
    refused(keys(Service(), FOUND.head, vouched, vouched=(vouched,)), PII)


def test_proof_needs_a_word_too() -> None:
    found = keys(Service(), FOUND.head)
    with pytest.raises(SignatureError):
        found.prove(PII, FOUND.wrappings[PII])
