"""A fake of Azure Managed HSM and of Entra ID that speaks their wire protocol. Neither is Azure.

One TLS port answers for all names; the Host header tells them apart:

- `login.microsoftonline.com`: OpenID configuration, instance discovery, OAuth 2 client credentials.
- `*.managedhsm.azure.net`: challenge authentication (401 with WWW-Authenticate where there is no token),
  encrypt, decrypt, wrapKey, unwrapKey on versions of keys, roles, disabled keys, Azure's error bodies.
- `*.vault.azure.net`: the same, with tokens of its own.

It runs in threads of the test process, so a test changes `azure.keys`, `azure.roles`, `azure.token_seconds`
while it serves. `lookup` makes the real names lead to it, in this process only: URLs, certificates and Host
headers are those of the real service. What it cannot show: how the real service words an error.
"""

from __future__ import annotations

import base64
import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from servers.ca import CertificateAuthority
from servers.process import HOST

ENTRA = "login.microsoftonline.com"
HSM_DOMAIN = "managedhsm.azure.net"
VAULT_DOMAIN = "vault.azure.net"
TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47"
WRITER = ("11111111-2222-3333-4444-555555555555", "writer-secret")
READER = ("99999999-8888-7777-6666-555555555555", "reader-secret")
AUDIENCE = f"https://{HSM_DOMAIN}"
GCM, KEY_WRAP, RSA_OAEP = "A256GCM", "A256KW", "RSA-OAEP-256"
OAEP = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)


class Refusal(Exception):
    """An answer other than 200, as Azure writes it."""

    def __init__(self, status: int, code: str, message: str, inner: str = "", **headers: str) -> None:
        super().__init__(code)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        error: dict[str, Any] = {"code": code, "message": message}
        if inner:
            error["innererror"] = {"code": inner}
        self.body = {"error": error}


@dataclass
class Key:
    """One key: `versions` maps a version to its bytes, or its RSA key; the last one is the newest."""

    kty: str = "oct-HSM"
    versions: dict[str, Any] = field(default_factory=dict)
    enabled: bool = True

    def rotate(self, bits: int = 2048) -> str:
        version = secrets.token_hex(16)
        is_rsa = self.kty == "RSA"
        self.versions[version] = rsa.generate_private_key(65537, bits) if is_rsa else secrets.token_bytes(32)
        return version


@dataclass
class Token:
    client: str
    audience: str
    expires: float


@dataclass
class FakeAzure:
    """`keys` by (host, name); `roles`: client id -> allowed operations, on all keys but those in `denied`
    with a name; `assertions`: client id
    -> the token that a workload identity shows. `asked` counts operations.

    `requests` are (host, method, path without query, had a token, body length), in order, refused ones too.
    """

    ca: CertificateAuthority
    keys: dict[tuple[str, str], Key] = field(default_factory=dict)
    clients: dict[str, str] = field(default_factory=lambda: dict([WRITER, READER]))
    roles: dict[str, set[str]] = field(default_factory=dict)
    denied: set[tuple[str, str]] = field(default_factory=set)
    assertions: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    token_seconds: int = 3600
    audience: str = ""
    requests: list[tuple[str, str, str, bool, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self.roles = {
            WRITER[0]: {"encrypt", "decrypt", "wrapkey", "unwrapkey"},
            READER[0]: {"decrypt", "unwrapkey"},
        }

    def create_key(
        self, name: str, host: str = f"unit.{HSM_DOMAIN}", kty: str = "oct-HSM", bits: int = 2048
    ) -> str:
        """The URI of a new key."""
        self.keys[host, name] = Key(kty)
        self.keys[host, name].rotate(bits)
        return f"azure-kv:https://{host}/keys/{name}"

    def key(self, uri: str) -> Key:
        parts = urlsplit(uri.removeprefix("azure-kv:"))
        return self.keys[parts.netloc, parts.path.rpartition("/")[2]]

    def server_context(self) -> ssl.SSLContext:
        names = (ENTRA, f"*.{HSM_DOMAIN}", f"*.{VAULT_DOMAIN}")
        return self.ca.server(names=names).server_context()

    def __enter__(self) -> Self:
        self._server = _Server((HOST, 0), _Handler)
        self._server.azure = self
        self._server.context = self.server_context()
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # Entra ID

    def entra(self, method: str, path: str, form: Mapping[str, str]) -> dict[str, Any]:
        home = f"https://{ENTRA}/{path.split('/')[1]}"
        if path.endswith("/.well-known/openid-configuration"):
            return {
                "authorization_endpoint": f"{home}/oauth2/v2.0/authorize",
                "token_endpoint": f"{home}/oauth2/v2.0/token",
                "issuer": f"{home}/v2.0",
            }
        if path == "/common/discovery/instance":
            names = {"preferred_network": ENTRA, "preferred_cache": "login.windows.net", "aliases": [ENTRA]}
            return {"tenant_discovery_endpoint": f"https://{ENTRA}{path}", "metadata": [names]}
        if method == "POST" and path == f"/{TENANT}/oauth2/v2.0/token":
            return self._login(form)
        raise Refusal(404, "NotFound", "no such page")

    def _login(self, form: Mapping[str, str]) -> dict[str, Any]:
        client = form.get("client_id", "")
        self.logins.append(client)
        if form.get("grant_type") != "client_credentials" or client not in self.clients:
            raise _no_token(
                400, "unauthorized_client", "AADSTS700016: Application not found in the directory."
            )
        assertion = form.get("client_assertion")
        known = self.clients if assertion is None else self.assertions
        if (assertion or form.get("client_secret")) != known.get(client):
            raise _no_token(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        token = secrets.token_urlsafe(32)
        audience = form.get("scope", "").removesuffix("/.default")
        self.tokens[token] = Token(client, audience, time.time() + self.token_seconds)
        return {"token_type": "Bearer", "expires_in": self.token_seconds, "access_token": token}

    # Managed HSM

    def hsm(self, host: str, path: str, query: Mapping[str, str], token: str, body: bytes) -> dict[str, Any]:
        client = self._client(token, f"https://{host.partition('.')[2]}")
        if "api-version" not in query:
            raise Refusal(400, "BadParameter", "api-version must be specified")
        _, kind, name, *version, operation = path.split("/")
        if kind != "keys" or len(version) > 1:
            raise Refusal(404, "NotFound", "no such resource")
        self.asked.append(operation)
        if operation not in self.roles[client] or (client, name) in self.denied:
            message = (
                f"Caller is not authorized to perform {operation} on /keys/{name}. Caller: appid={client}"
            )
            raise Refusal(403, "Forbidden", message, "ForbiddenByRbac")
        key = self.keys.get((host, name))
        wanted = version[0] if version else next(reversed(key.versions)) if key else ""
        if key is None or wanted not in key.versions:
            raise Refusal(404, "KeyNotFound", f"A key with (name/id) {name} was not found in this key vault.")
        if not key.enabled:
            message = f"Operation {operation} is not allowed on a disabled key."
            raise Refusal(403, "Forbidden", message, "KeyDisabled")
        answer = _operate(operation, key, key.versions[wanted], json.loads(body))
        return {"kid": f"https://{host}/keys/{name}/{wanted}", **answer}

    def _client(self, token: str, audience: str) -> str:
        resource = self.audience or audience
        challenge = f'Bearer authorization="https://{ENTRA}/{TENANT}", resource="{resource}"'
        if not token:
            message = "AKV10000: Request is missing a Bearer or PoP token."
            raise Refusal(401, "Unauthorized", message, WWW_Authenticate=challenge)
        known = self.tokens.get(token)
        if known is None or known.audience != audience or known.expires < time.time():
            message = "[TokenExpired] Error validating token: 'S2S12086'."
            raise Refusal(401, "Unauthorized", message, WWW_Authenticate=challenge)
        return known.client


def _operate(operation: str, key: Key, raw: Any, asked: Mapping[str, str]) -> dict[str, str]:
    """What the service does. To a wrong key type, algorithm, tag or wrapping it says BadParameter."""
    wrap = RSA_OAEP if key.kty == "RSA" else KEY_WRAP if key.kty == "oct-HSM" else ""
    algorithms = {"wrapkey": wrap, "unwrapkey": wrap}
    if key.kty == "oct-HSM":
        algorithms |= {"encrypt": GCM, "decrypt": GCM}
    if asked.get("alg") != algorithms.get(operation):
        raise Refusal(400, "BadParameter", "Key and algorithm are incompatible.")
    value, aad = _bytes(asked["value"]), _bytes(asked.get("aad", ""))
    try:
        if key.kty == "RSA":
            opened = operation == "unwrapkey"
            return {
                "value": _text(raw.decrypt(value, OAEP) if opened else raw.public_key().encrypt(value, OAEP))
            }
        if operation == "encrypt":
            iv = secrets.token_bytes(12)
            sealed = AESGCM(raw).encrypt(iv, value, aad)
            return {
                "value": _text(sealed[:-16]),
                "iv": _text(iv),
                "tag": _text(sealed[-16:]),
                "aad": _text(aad),
            }
        if operation == "decrypt":
            sealed = value + _bytes(asked.get("tag", ""))
            return {"value": _text(AESGCM(raw).decrypt(_bytes(asked["iv"]), sealed, aad))}
        if operation == "wrapkey":
            return {"value": _text(aes_key_wrap(raw, value))}
        return {"value": _text(aes_key_unwrap(raw, value))}
    except (InvalidTag, InvalidUnwrap, ValueError):
        raise Refusal(400, "BadParameter", "The parameter is incorrect.") from None


def _no_token(status: int, error: str, description: str) -> Refusal:
    refusal = Refusal(status, error, description)
    refusal.body = {"error": error, "error_description": description}
    return refusal


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class _Server(ThreadingHTTPServer):
    azure: FakeAzure
    context: ssl.SSLContext
    daemon_threads = True
    block_on_close = False

    def get_request(self) -> tuple[socket.socket, Any]:
        plain, address = super().get_request()
        # The handshake comes with the first read, in the connection's own thread.
        return self.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or distrusts the certificate, is not this server's trouble."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        azure, url = self.server.azure, urlsplit(self.path)
        host = self.headers.get("Host", "")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        azure.requests.append((host, self.command, url.path, bool(token), len(body)))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            if host == ENTRA:
                form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
                self._answer(200, azure.entra(self.command, url.path, form), {})
            else:
                self._answer(200, azure.hsm(host, url.path, query, token, body), {})
        except Refusal as refusal:
            self._answer(refusal.status, refusal.body, refusal.headers)

    def _answer(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `requests` has it all."""


Lookup = Callable[..., list[Any]]


def lookup(real: Lookup, ports: Mapping[str, int]) -> Lookup:
    """A `socket.getaddrinfo` that leads names with these endings to ports of this machine, and no other."""

    def find(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else str(host)
        for ending, at in ports.items():
            if name == ending or name.endswith(f".{ending}"):
                return real(HOST, at, *args, **options)
        if name in (HOST, "localhost", "::1"):
            return real(host, port, *args, **options)
        raise socket.gaierror(socket.EAI_NONAME, f"{name} is beyond this machine")

    return find
