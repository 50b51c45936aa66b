"""How to reach a bucket: fsspec's `storage_options` to one boto3 client and Arrow's own S3 file system.

Credentials are resolved by boto3's chain (options, environment, profiles, assumed roles, instance metadata)
and handed to Arrow, which has other rules. The endpoint and the CA come from options and config only.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pyarrow import fs

from encpipe import transport
from encpipe.config import TlsConfig
from encpipe.errors import ConfigError, MissingExtraError

try:
    import boto3
    import botocore.config
    import botocore.exceptions
    import botocore.utils
except ImportError:
    raise MissingExtraError(
        "s3:// needs boto3, which is not installed", hint="pip install 'encpipe[s3]'"
    ) from None

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 60.0
MAX_ATTEMPTS: Final = 5
"""Tries of one request, the first included."""
_STYLES: Final = ("auto", "path", "virtual")
_CLIENT_KWARGS: Final = ("endpoint_url", "region_name", "verify")
_AWS_HOSTS: Final = (".amazonaws.com", ".amazonaws.com.cn")
_FIRST_REGION: Final = "us-east-1"
"""Where no region is named."""
_NO_REDIRECTS: Final = "aws-global"
"""The region in which Arrow's client signs for us-east-1, and follows no redirects (aws-sdk-cpp,
`FollowRedirectsPolicy::DEFAULT`). There is no other way to tell it."""


@dataclass(frozen=True)
class S3Options:
    """fsspec's names for options of s3:// and two of ours; `client_kwargs` may hold `verify`, too.

    `single_writer` promises that nobody else commits; `addressing_style` is `auto`, `path` or `virtual`.
    """

    key: str | None = None
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    endpoint_url: str | None = None
    region_name: str | None = None
    profile: str | None = None
    anon: bool = False
    addressing_style: str = "auto"
    single_writer: bool = False
    verify: str | bool | None = None

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> S3Options:
        """Raises `ConfigError` for an option or a type that is not one of these; no value is in its text."""
        given = dict(options)
        more = given.pop("client_kwargs", None) or {}
        if not isinstance(more, Mapping):
            raise ConfigError("the s3 option client_kwargs is not a table")
        _check_names(given, tuple(cls.__dataclass_fields__), "s3 option")
        _check_names(more, _CLIENT_KWARGS, "client_kwargs entry")
        both = sorted(name for name in more if given.get(name, more[name]) != more[name])
        if both:
            raise ConfigError(f"the s3 option {both[0]!r} is given twice, with two values")
        merged = {**given, **more}
        for name, value in merged.items():
            kinds = (bool,) if name in ("anon", "single_writer") else (str, type(None))
            if not isinstance(value, (bool, *kinds) if name == "verify" else kinds):
                raise ConfigError(f"the s3 option {name!r} has a value of type {type(value).__name__}")
        made = cls(**merged)
        if made.addressing_style not in _STYLES:
            raise ConfigError("the s3 option 'addressing_style' is unknown", hint=f"one of {_STYLES}")
        if (made.key is None) != (made.secret is None):
            raise ConfigError("the s3 options key and secret belong together", hint="give both, or neither")
        return made

    def tls(self, tls: TlsConfig) -> TlsConfig:
        """`verify` may name a CA file; it never turns the check off."""
        if self.verify is False:
            raise ConfigError(
                "the s3 option verify=False would trust any server",
                hint="name the server's CA in tls.ca_file",
                code="insecure-transport",
            )
        return replace(tls, ca_file=Path(self.verify)) if isinstance(self.verify, str) else tls


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], noun: str) -> None:
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        hint = f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"unknown {noun}: {', '.join(unknown)}", hint=hint, code="config-unknown-key")


class Connection:
    """One client and what Arrow needs to reach the same place. Making one does no I/O."""

    def __init__(self, options: S3Options, tls: TlsConfig) -> None:
        self._options, self.tls = options, options.tls(tls)
        self.client = self._make_client()
        self.endpoint = self.client.meta.endpoint_url
        transport.check_endpoint(self.endpoint, self.tls)
        transport.pin_host(self.client, self.tls)
        self.client.meta.events.register_first("needs-retry.s3", self._refuse_redirect)
        self._lock = threading.Lock()
        self._arrow: tuple[object, fs.S3FileSystem] | None = None

    @property
    def arrow_can(self) -> bool:
        """Whether Arrow's client can be told all of the configuration, and kept to it.

        It has no client certificates. It follows redirects to any server, plain http included, with the
        session token, except in `_NO_REDIRECTS`; elsewhere only AWS itself is trusted not to send it away.
        """
        stays = self._region == _FIRST_REGION or self._host.endswith(_AWS_HOSTS)
        return stays and self.tls.client_cert is None

    @property
    def _region(self) -> str:
        return self.client.meta.region_name or _FIRST_REGION

    @property
    def _host(self) -> str:
        return urlsplit(self.endpoint).hostname or ""

    def _refuse_redirect(self, response: Any = None, **_: Any) -> None:
        """The SDK would go after the bucket's region, on a server of any kind and without end."""
        status = 0 if response is None else response[0].status_code
        if 300 <= status < 400 and status != HTTPStatus.NOT_MODIFIED:
            raise ConfigError(
                f"{self._host} sends us to another server (HTTP {status}), and redirects are not followed",
                hint="name the bucket's region (region_name) and endpoint_url",
            )

    def _make_client(self) -> S3Client:
        options = self._options
        settings = transport.botocore_settings(
            options.endpoint_url,
            self.tls,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_attempts=MAX_ATTEMPTS,
        )
        if (
            options.endpoint_url is not None
        ):  # old servers choke on checksum trailers: uploads carry Content-MD5
            settings["request_checksum_calculation"] = "when_required"
            settings["response_checksum_validation"] = "when_required"
        settings["s3"] = {"addressing_style": self._style()}
        if options.anon:
            settings["signature_version"] = botocore.UNSIGNED
        try:
            self._session = boto3.session.Session(
                aws_access_key_id=options.key,
                aws_secret_access_key=options.secret,
                aws_session_token=options.token,
                region_name=options.region_name,
                profile_name=options.profile,
            )
            return self._session.client(
                "s3",
                endpoint_url=options.endpoint_url,
                verify=transport.botocore_verify(self.tls),
                config=botocore.config.Config(**settings),
            )
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise ConfigError(f"no S3 client can be made: {error}", hint="check the s3 options") from None

    def _style(self) -> str:
        style = self._options.addressing_style
        return "path" if style == "auto" and self._options.endpoint_url is not None else style

    def arrow(self) -> fs.S3FileSystem:
        """Arrow's client with today's credentials; made again when boto3 has renewed them.

        A file system handed out earlier keeps the credentials it was made with.
        """
        transport.announce(self.endpoint, self.tls)
        frozen = None
        if not self._options.anon:
            found = self._session.get_credentials()
            frozen = None if found is None else found.get_frozen_credentials()
            if frozen is None:
                raise botocore.exceptions.NoCredentialsError
        with self._lock:
            if self._arrow is None or self._arrow[0] != frozen:
                self._arrow = (frozen, self._make_arrow(frozen))
            return self._arrow[1]

    def _make_arrow(self, frozen: Any) -> fs.S3FileSystem:
        parts = urlsplit(self.endpoint)
        host = self._host
        proxies = botocore.utils.get_environ_proxies(self.endpoint)
        proxy = None if parts.scheme == "http" or transport.is_loopback(host) else proxies.get("https")
        ca = transport.ca_bundle(self.tls)
        virtual = host.endswith(_AWS_HOSTS) if self._style() == "auto" else self._style() == "virtual"
        keys = (
            {}
            if frozen is None
            else {
                "access_key": frozen.access_key,
                "secret_key": frozen.secret_key,
                "session_token": frozen.token,
            }
        )
        return fs.S3FileSystem(
            **keys,
            anonymous=frozen is None,
            region=_NO_REDIRECTS if self._region == _FIRST_REGION else self._region,
            scheme=parts.scheme,
            endpoint_override=parts.netloc,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=READ_SECONDS,
            force_virtual_addressing=virtual,
            tls_ca_file_path=None if ca is None else str(ca),
            proxy_options=proxy,
        )
