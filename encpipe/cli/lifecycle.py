"""`encpipe rewrap`, `rekey`, `grant` and `revoke`."""

from __future__ import annotations

from typing import Annotated

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output

REWRAP_EXAMPLES = """
encpipe rewrap encrypted/flights
encpipe rewrap encrypted/flights --key pii=aws-kms:alias/pii --dry-run
encpipe rewrap encrypted/flights --key pii=vault:pii-2026 --prove
encpipe rewrap s3://bucket/flights --older-than 90d --json
"""
REKEY_EXAMPLES = """
encpipe rekey encrypted/flights
encpipe rekey encrypted/flights --key-name pii --dry-run
encpipe rekey s3://bucket/flights --key-name pii --key pii=aws-kms:alias/pii-2026
"""
GRANT_EXAMPLES = """
encpipe grant encrypted/flights --key footer=local:break-glass
encpipe grant s3://bucket/flights --key pii=aws-kms:alias/pii-eu
"""
REVOKE_EXAMPLES = """
encpipe revoke encrypted/flights --key footer=local:break-glass --dry-run
encpipe revoke s3://bucket/flights --key pii=aws-kms:arn:aws:kms:eu-west-1:111122223333:key/1234abcd
encpipe revoke encrypted/flights --key pii=local:former --rekey
"""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")]
OneKey = Annotated[
    str,
    typer.Option("--key", metavar="NAME=URI", help="The key name and the master key.", show_default=False),
]


def rewrap(
    url: opt.Url,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="NAME=URI",
            help="Re-wrap this key name only, with this master key. Repeat it for more. Default: all, "
            "each with the config's first master key.",
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="TIME",
            help="Only where the wrapping is older, as 90d or 12h, or by another key or an older version.",
            show_default=False,
        ),
    ] = None,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Open each new wrapping before an old one goes: one call more."),
    ] = False,
    dry_run: DryRun = False,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Wrap a dataset's keys anew: newest version, another master key or another service.

    One write of the manifest, whatever the number of files; no data is encrypted again.
    """
    from encpipe.cli.keyviews import keys_view
    from encpipe.lifecycle import rewrap as work

    settings = opt.settings(config, storage_option)
    report = work(
        url,
        to=opt.parse_keys(key) if key else None,
        older_than=None if older_than is None else opt.parse_duration(older_than, "--older-than"),
        prove=prove,
        dry_run=dry_run,
        config=settings.config,
        master_keys=settings.master_keys,
        storage_options=settings.storage_options,
    )
    make_output(json=json).result(report.as_json(), lambda: keys_view(report))


def rekey(
    url: opt.Url,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="NAME=URI",
            help="Master key of a new key. Repeat it for more. Default: all that open the old one.",
            show_default=False,
        ),
    ] = None,
    key_name: Annotated[
        list[str] | None,
        typer.Option(
            "--key-name",
            metavar="NAME",
            help="Re-key this key name. Repeat it for more. Default: all.",
            show_default=False,
        ),
    ] = None,
    workers: opt.Workers = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Drop what a stopped run has finished, and start anew.")
    ] = False,
    dry_run: DryRun = False,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Give a dataset new keys and encrypt its data again: for keys that may be in wrong hands.

    The same command again continues a run that was stopped. Earlier generations keep the old keys until gc.
    """
    from encpipe.cli.keyviews import rekey_view
    from encpipe.lifecycle import rekey as work

    settings = opt.settings(config, storage_option)
    output = make_output(json=json)
    with output.progress("encrypting") as progress:
        report = work(
            url,
            key_names=key_name or None,
            to=opt.parse_keys(key) if key else None,
            workers=workers,
            restart=restart,
            dry_run=dry_run,
            progress=progress,
            config=settings.config,
            master_keys=settings.master_keys,
            storage_options=settings.storage_options,
        )
    output.result(report.as_json(), lambda: rekey_view(report))


def grant(
    url: opt.Url,
    key: OneKey,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Let one more master key open a key name. Those that open it now still do.

    Readers have to trust it in their own configuration.
    """
    from encpipe.cli.keyviews import keys_view
    from encpipe.lifecycle import grant as work

    settings = opt.settings(config, storage_option)
    name, uri = _one(key)
    report = work(
        url,
        name,
        uri,
        config=settings.config,
        master_keys=settings.master_keys,
        storage_options=settings.storage_options,
    )
    make_output(json=json).result(report.as_json(), lambda: keys_view(report))


def revoke(
    url: opt.Url,
    key: OneKey,
    rekey: Annotated[
        bool, typer.Option("--rekey", help="Then give the key name a new key and encrypt the data again.")
    ] = False,
    workers: opt.Workers = None,
    dry_run: DryRun = False,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Take from one master key what it opens of a key name. Never the last.

    Whoever has read the dataset before may have kept its keys: this makes nobody forget. With --rekey they
    open nothing that is written from then on, and the rest until gc has removed the earlier generations.
    """
    from encpipe.cli.keyviews import keys_view
    from encpipe.lifecycle import revoke as work

    settings = opt.settings(config, storage_option)
    name, uri = _one(key)
    output = make_output(json=json)
    with output.progress("encrypting") as progress:
        report = work(
            url,
            name,
            uri,
            rekey=rekey,
            workers=workers,
            dry_run=dry_run,
            progress=progress,
            config=settings.config,
            master_keys=settings.master_keys,
            storage_options=settings.storage_options,
        )
    output.result(report.as_json(), lambda: keys_view(report))


def _one(key: str) -> tuple[str, str]:
    ((name, (uri,)),) = opt.parse_keys([key]).items()
    return name, uri
