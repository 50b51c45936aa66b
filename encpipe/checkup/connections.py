"""The endpoints that the configuration names: what a connection to each of them comes to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from encpipe import transport
from encpipe.checkup.finding import Finding, failed
from encpipe.config import Config, TlsConfig, load_config
from encpipe.errors import ConfigError, EncpipeError
from encpipe.negotiation import negotiated

PARALLEL: Final = 8
_ARN: Final = re.compile(r"aws-kms:arn:(?P<partition>aws[a-z-]*):kms:(?P<region>[a-z0-9-]+):")
_AZURE: Final = re.compile(r"azure-kv:(?P<url>https://[^/]+)/")
_GCP: Final = "https://cloudkms.googleapis.com"


def check_connections(file: Path | None, env: Mapping[str, str]) -> Iterator[Finding]:
    """Connects to each endpoint and sends no request. Nothing where the configuration cannot be used."""
    try:
        config = load_config(file, env=env)
    except ConfigError:
        return
    yield from _check_exceptions(config.tls)
    found = dict(_key_services(config))
    tls = dict.fromkeys(found, config.tls)
    if "s3" in config.storage:
        try:
            endpoint, of_s3, reads = _s3(config)
        except EncpipeError as error:
            yield failed("connection s3", error)
        else:
            found["s3"], tls["s3"] = endpoint, of_s3
            yield reads
    with ThreadPoolExecutor(PARALLEL) as pool:
        yield from pool.map(lambda name: _look(name, found[name], tls[name]), found)


def _check_exceptions(tls: TlsConfig) -> Iterator[Finding]:
    if tls.allow_plain_http_to:
        hosts = ", ".join(tls.allow_plain_http_to)
        hint = "keys and data cross the network in clear; use https, and empty tls.allow_plain_http_to"
        yield Finding("plain http", "warn", f"allowed to {hosts}", hint)


def _key_services(config: Config) -> Iterator[tuple[str, str]]:
    """Name and URL of every key service that is configured, or that a master key names."""
    uris = (*config.trust.master_keys, *(uri for uris in config.keys.values() for uri in uris))
    for table, key in (("aws-kms", "endpoint_url"), ("vault", "address"), ("gcp-kms", "endpoint_url")):
        url = config.kms.get(table, {}).get(key)
        if isinstance(url, str):
            yield table, url
    for uri in uris:
        arn, azure = _ARN.match(uri), _AZURE.match(uri)
        if arn and "endpoint_url" not in config.kms.get("aws-kms", {}):
            domain = "amazonaws.com.cn" if arn["partition"] == "aws-cn" else "amazonaws.com"
            yield f"aws-kms {arn['region']}", f"https://kms.{arn['region']}.{domain}"
        if azure:
            yield f"azure-kv {urlsplit(azure['url']).hostname}", azure["url"]
        if uri.startswith("gcp-kms:") and "endpoint_url" not in config.kms.get("gcp-kms", {}):
            yield "gcp-kms", _GCP


def _s3(config: Config) -> tuple[str, TlsConfig, Finding]:
    """Endpoint and rules of the table `storage.s3`, and by which client it is read. No I/O."""
    from encpipe.storage.s3_client import Connection, S3Options

    options = S3Options.parse(config.storage["s3"])
    made = Connection(options, config.tls)
    if made.arrow_can:
        return made.endpoint, options.tls(config.tls), Finding("reads from s3", "ok", "by Arrow's client")
    why = "presents no client certificate, and follows redirects in regions other than us-east-1"
    found = f"by boto3, which is slower: Arrow's client {why}"
    return made.endpoint, options.tls(config.tls), Finding("reads from s3", "note", found)


def _look(name: str, url: str, tls: TlsConfig) -> Finding:
    check = f"connection {name}"
    try:
        transport.check_endpoint(url, tls)
        if (parts := urlsplit(url)).scheme == "http":
            where = "on this machine" if transport.is_loopback(parts.hostname or "") else "allowed"
            return Finding(check, "note", f"{parts.netloc}: plain http, {where}")
        seen = negotiated(url, tls)
    except EncpipeError as error:
        if error.code == "storage-unavailable":
            return Finding(check, "warn", error.message, error.hint)
        return failed(check, error)
    return Finding(check, "ok", f"{seen.server}: {seen}")
