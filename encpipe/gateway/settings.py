"""The table `gateway` of a configuration, as a frozen dataclass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from encpipe.config import Config
from encpipe.configtable import Table
from encpipe.errors import ConfigError
from encpipe.gateway.rules import Rules, parse_rules
from encpipe.gateway.wire import DATASET_NAME

_LISTEN: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})")


@dataclass(frozen=True)
class GatewaySettings:
    """What a gateway serves, to whom, and how much at once.

    `listen` is HOST:PORT; `datasets` are URLs by public name. A stream holds two row groups in memory, and
    sends batches of about `batch_bytes`; `parallel` is into how many tickets a scan is split. A dataset is
    looked at anew after `refresh_seconds`, for a newer generation and for keys that are still granted.
    """

    listen: str
    certificate: Path
    key: Path
    client_ca: Path
    datasets: Mapping[str, str]
    rules: Rules
    max_streams: int = 16
    max_streams_per_identity: int = 4
    parallel: int = 4
    batch_bytes: int = 1 << 20
    ticket_seconds: int = 300
    refresh_seconds: int = 60
    drain_seconds: int = 30


def gateway_settings(config: Config) -> GatewaySettings:
    """The settings in a configuration. No I/O. Raises `ConfigError` naming file, table and key."""
    if not config.gateway or config.source is None:
        raise ConfigError(
            "the configuration has no table [gateway]",
            hint="name one that has it: encpipe serve --config gateway.toml",
            code="config-missing",
        )
    values = dict(config.gateway)
    rules = values.pop("rules", [])
    table = Table(values, "gateway", config.source, home=Path.home())
    datasets = _datasets(table.table("datasets"))
    streams = table.count("max_streams", default=16, high=1024)
    each = table.count("max_streams_per_identity", default=min(4, streams), high=streams)
    found = GatewaySettings(
        _listen(table),
        _path(table, "certificate"),
        _path(table, "key"),
        _path(table, "client_ca"),
        datasets,
        parse_rules(rules, tuple(datasets), table.place),
        streams,
        each,
        table.count("parallel", default=each, high=64),
        table.count("batch_bytes", default=1 << 20, low=1 << 10, high=64 << 20),
        table.count("ticket_seconds", default=300, high=86_400),
        table.count("refresh_seconds", default=60, high=86_400),
        table.count("drain_seconds", default=30, low=0, high=86_400),
    )
    table.finish()
    return found


def _listen(table: Table) -> str:
    value = table.text("listen") or "127.0.0.1:8815"
    found = _LISTEN.fullmatch(value)
    if found is None or int(found[2]) > 65_535:
        raise table.error("listen", "must be HOST:PORT", hint='for example listen = "0.0.0.0:8815"')
    return value


def _path(table: Table, key: str) -> Path:
    path = table.path(key)
    if path is None:
        raise table.error(key, "is missing", hint="a PEM file; a gateway speaks mutual TLS only")
    return path


def _datasets(table: Table) -> dict[str, str]:
    found = {}
    for name in table.names():
        if not DATASET_NAME.fullmatch(name):
            raise table.error(name, "is no dataset name", hint="a-z, 0-9, _, . and -, at most 64 of them")
        url = table.text(name) or ""
        found[name] = url if "://" in url else str(table.resolve(url))
    if not found:
        raise ConfigError(
            f"{table.place}: names no dataset", hint='for example flights = "s3://bucket/flights"'
        )
    return found
