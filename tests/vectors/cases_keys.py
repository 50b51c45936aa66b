"""Vectors whose wrappings and keys do not hold."""

from __future__ import annotations

from cases_manifest import published
from materials import KEKS, OTHER_DATASET, Materials, secret
from registry import bad_file, refused
from simulation import DatasetSim, Kek
from simulation.dataset import dumps

from encpipe.keys import WrappedKey

FOOTER, PII = KEKS["footer"].id, KEKS["pii"].id


# Wrappings


def _with_wrapping(sim: DatasetSim, key_name: str, wrapped: WrappedKey) -> DatasetSim:
    sim.keys["wrappings"][sim.keks[key_name].id].clear()
    sim.add_wrapping(key_name, wrapped)
    return sim


@refused("UntrustedKeyError", "untrusted-key")
def wrapping_of_own_kek_under_untrusted_key(m: Materials) -> DatasetSim:
    """The footer KEK replaced by one wrapped under a master key of the attacker."""
    sim = published(m)
    own = m.wrapping(sim, "footer", "mallory", kek=secret("mallory"))
    return _republished(_with_wrapping(sim, "footer", own))


@refused("UnwrapError", "kek-commitment")
def wrapping_of_own_kek_under_trusted_key(m: Materials) -> DatasetSim:
    """The attacker may use the trusted master key to wrap, and puts in a KEK of his own."""
    sim = published(m)
    own = m.wrapping(sim, "footer", "main", kek=secret("mallory"))
    return _republished(_with_wrapping(sim, "footer", own))


@refused("UnwrapError", "unwrap")
def wrapping_of_other_dataset(m: Materials) -> DatasetSim:
    """A wrapping that was made for another dataset."""
    sim = published(m)
    other = m.wrapping(sim, "footer", "main", dataset_id=OTHER_DATASET)
    return _republished(_with_wrapping(sim, "footer", other))


@refused("UnwrapError", "unwrap")
def wrapping_edited(m: Materials) -> DatasetSim:
    """One byte of the footer KEK's wrapping is changed."""
    sim = published(m)
    wrapped = m.wrapping(sim, "footer", "main")
    blob = wrapped.blob[:-1] + bytes([wrapped.blob[-1] ^ 1])
    return _republished(
        _with_wrapping(sim, "footer", WrappedKey(wrapped.master_key, blob, "1", wrapped.created))
    )


@refused("ManifestError", "manifest-mac")
def wrapping_of_column_key_replaced(m: Materials) -> DatasetSim:
    """The column KEK's wrapping is replaced by the footer KEK's; the manifest MAC tells."""
    sim = published(m)
    sim.keys["wrappings"][PII] = sim.keys["wrappings"][FOOTER]
    sim.set_lines(sim.lines[0], dumps(sim.keys), sim.lines[2])
    return sim


@refused("UnwrapError", "unwrap")
def wrapping_of_column_key_replaced_by_footer_key_holder(m: Materials) -> DatasetSim:
    """The same with a new manifest MAC: a wrapping is bound to its key name."""
    sim = published(m)
    sim.keys["wrappings"][PII] = [
        {**sim.keys["wrappings"][FOOTER][0], "master_key": "local:pii"},
    ]
    return _republished(sim)


def _republished(sim: DatasetSim) -> DatasetSim:
    """With the manifest MAC of a footer KEK holder: the core is the same, and so are its MACs."""
    sim.publish_manifest(holding=["footer"])
    return sim


@refused("UntrustedKeyError", "untrusted-key")
def forged_under_foreign_key(m: Materials) -> DatasetSim:
    """A whole dataset, perfect in itself, under the attacker's master key."""
    keks = {name: Kek(kek.id, secret(f"mallory {name}")) for name, kek in KEKS.items()}
    sim = m.unwrapped(keks, "d0" * 16)
    for name in keks:
        sim.add_wrapping(name, m.wrapping(sim, name, "mallory"))
    sim.publish()
    return sim


@refused("ShreddedError", "shredded")
def shredded(m: Materials) -> DatasetSim:
    """The footer key was shredded."""
    sim = m.dataset("alpha")
    sim.core["keks"][0]["state"] = "shredded"
    sim.keys["wrappings"][FOOTER] = []
    return sim


@refused("ShreddedError", "shredded")
def wrappings_gone(m: Materials) -> DatasetSim:
    """All wrappings of the footer KEK are gone."""
    sim = published(m)
    sim.keys["wrappings"][FOOTER] = []
    return _republished(sim)


_UNCHECKED = {"problems": [], "unchecked": ["pii"]}


@bad_file("ShreddedError", "shredded", verify=_UNCHECKED)
def shredded_column_key(m: Materials) -> DatasetSim:
    """The column key was shredded, and its column is read."""
    sim = m.dataset("alpha")
    sim.core["keks"][1]["state"] = "shredded"
    sim.keys["wrappings"][PII] = []
    return sim


@bad_file(
    "UntrustedKeyError", "untrusted-key", keyring="footer-only", trust=["local:main"], verify=_UNCHECKED
)
def missing_key_untrusted(m: Materials) -> DatasetSim:
    """The reader's configuration does not name the column key."""
    return m.dataset("alpha")


@bad_file("KeyNotFoundError", "key-not-found", keyring="footer-only", verify=_UNCHECKED)
def missing_key_absent(m: Materials) -> DatasetSim:
    """The reader's configuration names the column key, and the keyring does not have it."""
    return m.dataset("alpha")
