"""`encpipe sign`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from encpipe.cli import options as opt
from encpipe.cli.output import make_output
from encpipe.cli.parts import Facts, Part

if TYPE_CHECKING:
    from encpipe.signatures import SignReport

EXAMPLES = """
encpipe sign encrypted/flights
encpipe sign s3://bucket/flights --generation 7
encpipe sign encrypted/flights --expect-core 6b51d431df5d7f141cbececcf79edf3dd861c3b4069f0b11661a3eefacbba918
"""


def sign(
    url: opt.Url,
    generation: Annotated[
        int | None,
        typer.Option(
            "--generation", min=1, help="An earlier generation. Default: the newest.", show_default=False
        ),
    ] = None,
    expect_dataset: opt.ExpectDataset = None,
    expect_core: Annotated[
        str | None,
        typer.Option(
            "--expect-core",
            metavar="SHA256",
            help="Sign just this state, as encpipe inspect shows it.",
            show_default=False,
        ),
    ] = None,
    storage_option: opt.StorageOptions = None,
    config: opt.ConfigFile = None,
    json: opt.Json = False,
) -> None:
    """Sign a dataset that is there, with the key that the configuration names (table signing).

    Needs every key name of the dataset. encrypt and append sign by themselves.
    """
    from encpipe.signatures import sign_dataset

    settings = opt.settings(config, storage_option)
    report = sign_dataset(
        url,
        config=settings.config,
        master_keys=settings.master_keys,
        storage_options=settings.storage_options,
        generation=generation,
        expect_dataset=expect_dataset,
        expect_core=expect_core,
    )
    make_output(json=json).result(report.as_json(), lambda: _view(report))


def _view(report: SignReport) -> list[Part]:
    rows = [
        ("dataset", report.url),
        ("id", report.dataset_id),
        ("generation", f"{report.generation}, revision {report.revision}"),
        ("core", report.core_digest),
    ]
    return [Facts([*rows, *(("signed by", signer) for signer in report.signers)])]
