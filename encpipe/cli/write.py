"""`encpipe encrypt` and `encpipe append`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output
from encpipe.cli.views import write_view

ENCRYPT_EXAMPLES = """
encpipe encrypt flights.parquet encrypted/flights
encpipe encrypt 'raw/*.csv' s3://bucket/flights --columns pii=tailnum,flight
encpipe encrypt raw/ s3://bucket/flights --policy policy.toml --key pii=aws-kms:alias/pii
encpipe encrypt tree/ encrypted/tree --partition-keys year
encpipe encrypt export.txt encrypted/export --format csv
encpipe encrypt raw/ encrypted/raw --overwrite --yes
"""
APPEND_EXAMPLES = """
encpipe append flights-2014.parquet encrypted/flights
encpipe append 'raw/2014-*.csv' s3://bucket/flights --workers 4
"""

Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="Parquet, CSV, JSON lines or Arrow IPC: a file, a folder, a hive-partitioned tree or a glob.",
        show_default=False,
    ),
]


class SourceFormat(StrEnum):
    """The formats of `encpipe.sources`."""

    parquet = "parquet"
    csv = "csv"
    json = "json"
    arrow = "arrow"


Format = Annotated[
    SourceFormat | None,
    typer.Option("--format", help="Format of SRC, where its name does not tell.", show_default=False),
]
Target = Annotated[
    str,
    typer.Argument(metavar="DST", help="The dataset: a path, s3://bucket/prefix, ...", show_default=False),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Drop what a stopped run has finished, and start anew.")
]
SingleWriter = Annotated[
    bool,
    typer.Option(
        "--single-writer",
        help="Nobody else writes here: for storage that cannot refuse a second writer.",
    ),
]


def encrypt(
    source: Source,
    target: Target,
    format: Format = None,
    policy: opt.PolicyFile = None,
    key: opt.Keys = None,
    columns: opt.Columns = None,
    footer_key: opt.FooterKey = None,
    partition_keys: opt.PartitionKeys = None,
    workers: opt.Workers = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the dataset that is there. Asks first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    restart: Restart = False,
    single_writer: SingleWriter = False,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Encrypt files into a new dataset.

    The same command again continues a run that was stopped.
    """
    from encpipe.writer import write_dataset

    settings = opt.settings(config, storage_option, keys=key)
    opt.must_be_configured(settings.config)
    wanted = opt.policy_of(settings.config, policy, columns, footer_key, partition_keys)
    opt.check_keys_named(key, wanted)
    if overwrite and not yes:
        opt.confirm(
            f"replace the dataset at {target}, if there is one? Earlier generations stay readable", json=json
        )
    output = make_output(json=json)
    with output.progress("encrypting") as progress:
        report = write_dataset(
            source,
            target,
            source_format=format,
            policy=wanted,
            config=settings.config,
            master_keys=settings.master_keys,
            storage_options=_storage(settings.storage_options, single_writer),
            workers=workers,
            overwrite=overwrite,
            restart=restart,
            progress=progress,
        )
    output.result(report.as_json(), lambda: write_view(report, target, overwritten=overwrite))


def append(
    source: Source,
    target: Target,
    format: Format = None,
    key: opt.Keys = None,
    workers: opt.Workers = None,
    restart: Restart = False,
    single_writer: SingleWriter = False,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Encrypt more files into a dataset, under its own policy and keys.

    The same command again continues a run that was stopped.
    """
    from encpipe.writer import append_dataset

    settings = opt.settings(config, storage_option, keys=key)
    output = make_output(json=json)
    with output.progress("encrypting") as progress:
        report = append_dataset(
            source,
            target,
            source_format=format,
            config=settings.config,
            master_keys=settings.master_keys,
            storage_options=_storage(settings.storage_options, single_writer),
            workers=workers,
            restart=restart,
            progress=progress,
        )
    output.result(report.as_json(), lambda: write_view(report, target))


def _storage(options: dict[str, Any] | None, single_writer: bool) -> dict[str, Any] | None:
    return {**(options or {}), "single_writer": True} if single_writer else options
