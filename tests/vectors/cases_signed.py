"""Vectors for readers who ask for a signature, or for the SHA-256 of every file."""

from __future__ import annotations

import hashlib

from cases_files import footer_start
from cases_ok import second_generation
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from materials import ALPHA_ROWS, BETA_ROWS, Materials, secret, to_text
from registry import bad_file, ok, refused
from simulation import DatasetSim
from simulation.dataset import dumps


def _key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(secret(f"signing key {name}").reveal())


def _signer(name: str) -> str:
    return "ed25519:" + to_text(_key(name).public_key().public_bytes_raw())


TRUSTED = [_signer("ann"), _signer("bob")]


def _signed(m: Materials, *names: str) -> DatasetSim:
    """A dataset of these files, signed by ann."""
    sim = m.dataset(*names)
    sim.publish()
    sim.sign(_key("ann"))
    return sim


def _with_tags(sim: DatasetSim) -> DatasetSim:
    sim.set_lines(*sim.lines[:2], dumps(sim.tags))
    return sim


@ok(ALPHA_ROWS, signers=TRUSTED)
def ok_signed(m: Materials) -> DatasetSim:
    """Signed by one of two signers whom the reader trusts."""
    return _signed(m, "alpha")


@ok(ALPHA_ROWS, signers=TRUSTED)
def ok_signed_by_others_too(m: Materials) -> DatasetSim:
    """Signatures of an unknown kind, of a stranger, by ann that does not fit, and by bob that does."""
    sim = m.dataset("alpha")
    sim.publish()
    sim.tags["signatures"] = [{"signer": "quantum:1", "signature": "yes"}]
    sim.sign(_key("mallory"))
    sim.sign(_key("ann"), message=b"something else")
    sim.sign(_key("bob"))
    return sim


@ok(ALPHA_ROWS, signers=TRUSTED, options={"generation": 1})
def ok_signed_generation_retained(m: Materials) -> DatasetSim:
    """An older generation with its own signature; the newest is signed, too."""
    sim = _signed(m, "alpha")
    sim.next_generation(commit_id="c2" * 16, list_id="e2" * 16)
    sim.add_file(m.files["beta"])
    sim.publish()
    sim.sign(_key("ann"))
    return sim


@ok(ALPHA_ROWS + BETA_ROWS, signers=TRUSTED, verify={"problems": ["signature"]})
def ok_signed_over_unsigned(m: Materials) -> DatasetSim:
    """The newest generation is signed, the one before is not: only who opens that one is refused."""
    sim = second_generation(m)
    sim.publish()
    sim.sign(_key("ann"))
    return sim


@ok(ALPHA_ROWS, signers=TRUSTED)
def ok_signed_and_wrapped_anew(m: Materials) -> DatasetSim:
    """The keys line was written again after the core was signed, as a re-wrap does."""
    sim = _signed(m, "alpha")
    sim.keys["revision"] = 2
    sim.keys["wrappings"][sim.keks["pii"].id].clear()
    sim.add_wrapping("pii", m.wrapping(sim, "pii", "main"))
    sim.publish_manifest()
    return sim


@refused("SignatureError", "signature", signers=TRUSTED)
def signature_missing(m: Materials) -> DatasetSim:
    """A whole dataset that nobody signed."""
    return m.dataset()


@refused("SignatureError", "signature", signers=TRUSTED)
def signature_of_stranger(m: Materials) -> DatasetSim:
    """Signed by somebody whom the reader does not trust."""
    sim = m.dataset()
    sim.publish()
    sim.sign(_key("mallory"))
    return sim


@refused("SignatureError", "signature", signers=TRUSTED)
def signature_of_stranger_under_trusted_name(m: Materials) -> DatasetSim:
    """The stranger's signature under a trusted signer's name."""
    sim = signature_of_stranger(m)
    sim.tags["signatures"][0]["signer"] = TRUSTED[0]
    return _with_tags(sim)


@refused("SignatureError", "signature", signers=TRUSTED)
def signature_flipped(m: Materials) -> DatasetSim:
    """One bit of the signature is another."""
    sim = _signed(m)
    text = sim.tags["signatures"][0]["signature"]
    sim.tags["signatures"][0]["signature"] = ("B" if text[0] == "A" else "A") + text[1:]
    return _with_tags(sim)


@refused("SignatureError", "signature", signers=TRUSTED)
def signature_cut(m: Materials) -> DatasetSim:
    """A signature of 63 bytes."""
    sim = _signed(m)
    sim.tags["signatures"][0]["signature"] = to_text(bytes(63))
    return _with_tags(sim)


@refused("SignatureError", "signature", signers=TRUSTED)
def signature_not_base64url(m: Materials) -> DatasetSim:
    """A signature that is no base64url."""
    sim = _signed(m)
    sim.tags["signatures"][0]["signature"] += "="
    return _with_tags(sim)


@refused("SignatureError", "signature", signers=TRUSTED)
def signature_without_label(m: Materials) -> DatasetSim:
    """A signature over the core's digest alone, as another protocol might make one."""
    sim = m.dataset()
    sim.publish()
    sim.sign(_key("ann"), message=hashlib.sha256(sim.lines[0]).digest())
    return sim


@refused("SignatureError", "signature", signers=TRUSTED)
def signature_of_older_generation(m: Materials) -> DatasetSim:
    """The signature of generation 1 on generation 2."""
    sim = _signed(m)
    old = sim.tags["signatures"]
    sim.next_generation(commit_id="c2" * 16, list_id="e2" * 16)
    sim.tags["signatures"] = old
    return sim


@refused(
    "SignatureError",
    "signature",
    signers=TRUSTED,
    options={"generation": 1},
    verify={"problems": ["signature"]},
)
def signature_of_retained_missing(m: Materials) -> DatasetSim:
    """Generation 1 is opened, and only generation 2 is signed."""
    return ok_signed_over_unsigned(m)


@refused("SignatureError", "signature", signers=TRUSTED)
def signed_dataset_rewritten_by_holder_of_all_keys(m: Materials) -> DatasetSim:
    """Who holds every KEK makes another core with all its MACs, and leaves the signature."""
    sim = _signed(m, "alpha", "beta")
    sim.file_list["files"].pop()
    sim.publish()
    return sim


@refused("ManifestError", "manifest", signers=TRUSTED)
def signature_without_signer(m: Materials) -> DatasetSim:
    """A signature that does not say whose it is."""
    sim = _signed(m)
    del sim.tags["signatures"][0]["signer"]
    return _with_tags(sim)


_BY_HASH = {"integrity": "file-hash"}


@ok(ALPHA_ROWS + BETA_ROWS, options=_BY_HASH)
def ok_files_by_hash(m: Materials) -> DatasetSim:
    """Every file's SHA-256 is that of the list."""
    return m.dataset("alpha", "beta")


@bad_file("IntegrityError", "file-hash", columns=["id"], options=_BY_HASH)
def file_flipped_where_nothing_is_read(m: Materials) -> DatasetSim:
    """A byte of a column that is not read is flipped: only the file's SHA-256 shows it."""
    sim = m.dataset("alpha")
    path = sim.paths[0]
    sim.flip(path, footer_start(sim.objects[path]) - 1)
    return sim


@ok([{"id": row["id"]} for row in ALPHA_ROWS], columns=["id"], verify={"problems": ["file-hash"]})
def ok_file_flipped_where_nothing_is_read(m: Materials) -> DatasetSim:
    """The same, read without `integrity="file-hash"`: what is read is whole."""
    return file_flipped_where_nothing_is_read(m)
