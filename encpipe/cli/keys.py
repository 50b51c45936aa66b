"""`encpipe keys ...`: the master keys of the local keyring, and signing keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output
from encpipe.cli.parts import Facts, Grid, Note, Part
from encpipe.cli.program import with_examples

if TYPE_CHECKING:
    from encpipe.kms.base import AskPassphrase
    from encpipe.kms.keyringfile import KeyringFile
    from encpipe.kms.keyringkeys import KeyVersion
    from encpipe.kms.unlock import Unlock

app = typer.Typer(no_args_is_help=False)

FORMS = "prompt, env:NAME, file:PATH (a passphrase) or key-file:PATH"
Name = Annotated[str, typer.Argument(metavar="NAME", help="The master key.", show_default=False)]
NewFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="The file to write; never overwritten.", show_default=False)
]
Protect = Annotated[
    str,
    typer.Option("--protect", metavar="FORM", help=f"How the new file is protected: {FORMS}."),
]


@app.callback(invoke_without_command=True)
def keys(ctx: typer.Context) -> None:
    """Make, list and save the master keys of the local keyring, and keys to sign with.

    Master keys of other key services are made and rotated there.
    """
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command(cls=with_examples("encpipe keys create pii"))
def create(name: Name, config: opt.ConfigFile = None, json: opt.Json = False) -> None:
    """Add a fresh master key to the keyring."""
    ring = _keyring(config)
    version = ring.create_key(name)
    _show_version(ring, name, version, json=json, note="a copy of the keyring made before lacks this key")


@app.command("list", cls=with_examples("encpipe keys list\nencpipe keys list --json"))
def list_(config: opt.ConfigFile = None, json: opt.Json = False) -> None:
    """List the master keys. Needs no passphrase, so the list is not authenticated."""
    ring = _keyring(config)
    found = ring.list()
    payload = {
        "keyring": str(ring.path),
        "keys": [
            {"name": name, "uri": f"local:{name}", "versions": [version.as_json() for version in versions]}
            for name, versions in found.items()
        ],
    }
    rows = [
        (f"local:{name}", str(version.version), version.state, version.created)
        for name, versions in found.items()
        for version in versions
    ]
    grid = Grid(("master key", "version", "state", "created"), rows, right=frozenset({"version"}))
    make_output(json=json).result(payload, lambda: [Facts([("keyring", str(ring.path))]), grid])


@app.command(cls=with_examples("encpipe keys rotate default"))
def rotate(name: Name, config: opt.ConfigFile = None, json: opt.Json = False) -> None:
    """Add a fresh version of a master key, which wraps from now on.

    Earlier versions stay, and open what they wrapped.
    """
    ring = _keyring(config)
    version = ring.rotate(name)
    note = (
        "the new version wraps the keys of new datasets; those that are there: encpipe rewrap URL. "
        "Next: encpipe keys backup FILE, since earlier copies of the keyring lack the new version"
    )
    _show_version(ring, name, version, json=json, note=note)


@app.command(
    cls=with_examples(
        "encpipe keys export pii pii.keyring.json\n"
        "encpipe keys export pii pii.keyring.json --protect file:/run/secrets/export"
    )
)
def export(
    name: Name,
    file: NewFile,
    protect: Protect = "prompt",
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Write one master key, all its versions, to a keyring file of its own."""
    ring = _keyring(config)
    ring.export_key(name, file, _unlock(protect))
    payload = {"keyring": str(ring.path), "name": name, "file": str(file.absolute())}
    make_output(json=json).result(
        payload, lambda: [Facts([("master key", f"local:{name}"), ("written to", str(file))])]
    )


@app.command(
    "import",
    cls=with_examples(
        "encpipe keys import pii.keyring.json\n"
        "encpipe keys import pii.keyring.json --unlock key-file:~/keys/export.key"
    ),
)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A keyring file.", show_default=False)],
    unlock: Annotated[
        str, typer.Option("--unlock", metavar="FORM", help=f"How that file is unlocked: {FORMS}.")
    ] = "prompt",
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Add the master keys of another keyring file."""
    ring = _keyring(config)
    before = ring.list()
    names = ring.import_keys(file, _unlock(unlock))
    after = ring.list()
    new = [name for name in names if after[name] != before.get(name)]
    payload = {"keyring": str(ring.path), "names": list(names), "new": new}
    facts = [("keyring", str(ring.path)), ("master keys", ", ".join(f"local:{name}" for name in names))]
    notes = [] if new else [Note("nothing new: the keyring had all of these")]
    make_output(json=json).result(payload, lambda: [Facts(facts), *notes])


@app.command(
    cls=with_examples(
        "encpipe keys backup /media/usb/keyring.json\nencpipe keys backup keyring-copy.json --protect prompt"
    )
)
def backup(
    file: NewFile,
    protect: Annotated[
        str | None,
        typer.Option(
            "--protect",
            metavar="FORM",
            help=f"Protect the copy otherwise: {FORMS}. Default: as the keyring is.",
            show_default=False,
        ),
    ] = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Write a copy of the keyring, after checking that it opens.

    A lost keyring is lost data: keep a copy on another machine, and what unlocks it elsewhere.
    """
    ring = _keyring(config)
    ring.backup(file, None if protect is None else _unlock(protect))
    payload = {"keyring": str(ring.path), "file": str(file.absolute())}
    parts: list[Part] = [
        Facts([("keyring", str(ring.path)), ("copied to", str(file))]),
        Note("to restore it, put it in the keyring's place, or: encpipe keys import FILE"),
    ]
    make_output(json=json).result(payload, lambda: parts)


@app.command(
    cls=with_examples(
        "encpipe keys passphrase\nencpipe keys passphrase --protect key-file:~/keys/encpipe.key"
    )
)
def passphrase(
    protect: Annotated[
        str, typer.Option("--protect", metavar="FORM", help=f"The new protection: {FORMS}.")
    ] = "prompt",
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Change the keyring's passphrase, or protect it by a key file.

    Copies made before still open with what opened them then.
    """
    from encpipe.cli.passphrase import ask_passphrase

    ring = _keyring(config, ask=lambda purpose: ask_passphrase(f"current {purpose}"))
    ring.change_protection(_unlock(protect))
    parts: list[Part] = [Facts([("keyring", str(ring.path)), ("protected by", protect)])]
    if protect != "prompt":
        parts.append(Note(f'now set in the configuration: keyring.unlock = "{opt.unlock_form(protect)}"'))
    make_output(json=json).result({"keyring": str(ring.path), "protect": protect}, lambda: parts)


@app.command("create-signer", cls=with_examples("encpipe keys create-signer ~/keys/signing.pem"))
def create_signer(file: NewFile, json: opt.Json = False) -> None:
    """Make a key to sign datasets with (Ed25519), in a file of its own.

    Whoever has the file signs in your name: keep a copy of it elsewhere, and no copy with the data.
    """
    from encpipe.signing import create_key_file

    file = file.expanduser().absolute()
    signer = create_key_file(file)
    parts: list[Part] = [
        Facts([("signing key", str(file)), ("signer", signer)]),
        Note("writers set signing.key_file to the file; readers and writers add the signer to trust.signers"),
    ]
    make_output(json=json).result({"file": str(file), "signer": signer}, lambda: parts)


@app.command(
    "show-signer", cls=with_examples("encpipe keys show-signer\nencpipe keys show-signer signing.pem")
)
def show_signer(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Default: the configured one, also in a key service.", show_default=False
        ),
    ] = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Show the public name of a signing key, as trust.signers wants it: of its newest version."""
    from encpipe.signing import SigningKey, missing_key

    if file is not None:
        named, kind, signer = str(file), "file", SigningKey.load(file).signer
    else:
        settings = opt.settings(config)
        signing = settings.config.signing
        if signing.key is not None:
            key = settings.master_keys.signing_key(signing.key)
            named, kind, signer = signing.key, "key", SigningKey.in_service(key).signer
        elif signing.key_file is not None:
            named, kind, signer = str(signing.key_file), "file", SigningKey.load(signing.key_file).signer
        else:
            raise missing_key()
    facts = Facts([("signing key", named), ("signer", signer)])
    make_output(json=json).result({kind: named, "signer": signer}, lambda: [facts])


def _keyring(config: Path | None, ask: AskPassphrase | None = None) -> KeyringFile:
    from encpipe.cli.passphrase import ask_passphrase
    from encpipe.config import load_config
    from encpipe.kms.keyringfile import KeyringFile

    return KeyringFile.from_config(load_config(config).keyring, ask or ask_passphrase)


def _unlock(form: str) -> Unlock:
    from encpipe.cli.passphrase import ask_passphrase
    from encpipe.errors import ConfigError
    from encpipe.kms.unlock import EnvironmentKey, parse_unlock

    try:
        found = parse_unlock(opt.unlock_form(form), ask_passphrase)
    except ConfigError:
        found = EnvironmentKey("")
    if isinstance(found, EnvironmentKey):  # the text is not repeated: it may be a passphrase
        raise ConfigError("this is no form of protection", hint=f"one of: {FORMS}", code="usage")
    return found


def _show_version(ring: KeyringFile, name: str, version: KeyVersion, *, json: bool, note: str) -> None:
    payload = {"keyring": str(ring.path), "name": name, "uri": f"local:{name}", **version.as_json()}
    parts: list[Part] = [
        Facts(
            [("keyring", str(ring.path)), ("master key", f"local:{name}"), ("version", str(version.version))]
        ),
        Note(note, warning=True),
    ]
    make_output(json=json).result(payload, lambda: parts)
