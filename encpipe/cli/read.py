"""`encpipe decrypt`, `inspect`, `head` and `verify`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output

DECRYPT_EXAMPLES = """
encpipe decrypt encrypted/flights --plaintext-to plain/flights
encpipe decrypt s3://bucket/flights --plaintext-to plain/ --select origin,dest
"""
INSPECT_EXAMPLES = """
encpipe inspect encrypted/flights
encpipe inspect s3://bucket/flights --no-keys --json
"""
HEAD_EXAMPLES = """
encpipe head encrypted/flights
encpipe head s3://bucket/flights -n 3 --select origin,dest,arr_delay
encpipe head encrypted/flights --on-missing-key null
encpipe head grpc+tls://gateway.example.org:8815/flights
"""
VERIFY_EXAMPLES = """
encpipe verify encrypted/flights
encpipe verify s3://bucket/flights --deep --workers 8
encpipe verify encrypted/flights --min-generation 7
"""


class OnMissingKey(StrEnum):
    """What becomes of columns whose key we do not get."""

    error = "error"
    skip = "skip"
    null = "null"


OnMissing = Annotated[
    OnMissingKey,
    typer.Option("--on-missing-key", help="Columns whose key is refused: an error, left out, or null."),
]


class Integrity(StrEnum):
    """How far others who hold keys of the dataset are trusted with its files."""

    pages = "pages"
    file_hash = "file-hash"


ByHash = Annotated[
    Integrity,
    typer.Option(
        "--integrity", help="file-hash also compares each file with its SHA-256: reads files as a whole."
    ),
]
Select = Annotated[
    str | None,
    typer.Option("--select", metavar="COLUMN,...", help="Only these columns.", show_default=False),
]


def decrypt(
    url: opt.Url,
    plaintext_to: Annotated[
        str,
        typer.Option(
            "--plaintext-to",
            metavar="FOLDER",
            help="Where the plaintext goes: readable to whoever reads that folder.",
            show_default=False,
        ),
    ],
    select: Select = None,
    on_missing_key: OnMissing = OnMissingKey.error,
    workers: opt.Workers = None,
    expect_dataset: opt.ExpectDataset = None,
    min_generation: opt.MinGeneration = None,
    integrity: ByHash = Integrity.pages,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Write a dataset's rows as plaintext Parquet files."""
    from encpipe.cli.inspectviews import decrypt_view
    from encpipe.export import decrypt_dataset

    settings = opt.settings(config, storage_option)
    output = make_output(json=json)
    with output.progress("decrypting") as progress:
        report = decrypt_dataset(
            url,
            plaintext_to,
            columns=opt.parse_names(select),
            on_missing_key=on_missing_key.value,
            workers=workers,
            expect_dataset=expect_dataset,
            min_generation=min_generation,
            integrity=integrity.value,
            config=settings.config,
            master_keys=settings.master_keys,
            storage_options=settings.storage_options,
            progress=progress,
        )
    output.result(report.as_json(), lambda: decrypt_view(report))


def inspect(
    url: opt.Url,
    use_keys: Annotated[
        bool, typer.Option("--keys/--no-keys", help="Whether to unwrap the footer key, to see the contents.")
    ] = True,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Show what a dataset is: keys, wrappings, generation; with the footer key also columns and sizes.

    Reads no data. Without the footer key what is shown is not authenticated, and it says so.
    """
    from encpipe.cli.inspectviews import inspect_view
    from encpipe.inspection import inspect_dataset

    settings = opt.settings(config, storage_option)
    found = inspect_dataset(
        url,
        config=settings.config,
        master_keys=settings.master_keys,
        storage_options=settings.storage_options,
        use_keys=use_keys,
    )
    make_output(json=json).result(found.as_json(), lambda: inspect_view(found))


def head(
    url: opt.Url,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, max=10_000, help="Rows to show.")] = 10,
    select: Select = None,
    on_missing_key: OnMissing = OnMissingKey.error,
    expect_dataset: opt.ExpectDataset = None,
    min_generation: opt.MinGeneration = None,
    integrity: ByHash = Integrity.pages,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Show the first rows, decrypted in memory."""
    from encpipe.cli.views import rows_payload, rows_view
    from encpipe.errors import ConfigError
    from encpipe.opening import open_dataset

    settings = opt.settings(config, storage_option)
    columns = opt.parse_names(select)
    if url.startswith("grpc+tls://"):
        if expect_dataset or min_generation or storage_option or integrity is Integrity.file_hash:
            raise ConfigError(
                "the dataset behind a gateway is checked by the gateway, not here",
                hint="leave out --expect-dataset, --min-generation, --integrity and --storage-option",
                code="usage",
            )
        _head_of_gateway(settings, url, rows, columns, json=json)
        return
    with open_dataset(
        url,
        config=settings.config,
        master_keys=settings.master_keys,
        storage_options=settings.storage_options,
        on_missing_key=on_missing_key.value,
        expect_dataset=expect_dataset,
        min_generation=min_generation,
        integrity=integrity.value,
    ) as dataset:
        table, total, missing = dataset.head(rows, columns), dataset.num_rows, dataset.missing_keys
    if columns and not table.schema.names:
        raise ConfigError(
            f"nothing is left of --select: the keys are missing of columns under {', '.join(missing)}",
            hint="select other columns, or show these as null: --on-missing-key null",
            code="filter",
        )
    nulls = on_missing_key is OnMissingKey.null
    payload = rows_payload(table, total, missing)
    make_output(json=json).result(payload, lambda: rows_view(table, total, missing, nulls=nulls))


def _head_of_gateway(
    settings: opt.Settings, url: str, rows: int, columns: list[str] | None, *, json: bool
) -> None:
    from encpipe.cli.views import rows_payload, rows_view
    from encpipe.gateway.client import open_gateway

    with open_gateway(url, config=settings.config) as dataset:
        table, total = dataset.head(rows, columns), dataset.num_rows
    make_output(json=json).result(
        rows_payload(table, total, ()), lambda: rows_view(table, total, (), nulls=False)
    )


def verify(
    url: opt.Url,
    deep: Annotated[
        bool, typer.Option("--deep", help="Check every page and every file's SHA-256: reads everything.")
    ] = False,
    workers: opt.Workers = None,
    expect_dataset: opt.ExpectDataset = None,
    min_generation: opt.MinGeneration = None,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Check a dataset: manifest, file list, sizes, footers, objects that do not belong.

    Exits with 4 when something is not what its writer committed to.
    """
    from encpipe.cli.inspectviews import verify_view
    from encpipe.errors import IntegrityError
    from encpipe.verification import verify_dataset

    settings = opt.settings(config, storage_option)
    output = make_output(json=json)
    with output.progress("verifying") as progress:
        found = verify_dataset(
            url,
            deep=deep,
            workers=workers,
            config=settings.config,
            master_keys=settings.master_keys,
            storage_options=settings.storage_options,
            expect_dataset=expect_dataset,
            min_generation=min_generation,
            progress=progress,
        )
    output.result(found.as_json(), lambda: verify_view(found))
    if found.problems:
        raise typer.Exit(IntegrityError.exit_code)
