"""The fake of Google Cloud KMS: python -m servers.gcpkms_fake PORT FOLDER CLOCK_OFFSET [CERT KEY]

REST v1 as the official client speaks it: the resource names, JSON with int64 as text and enums as numbers,
google.rpc.Status with ErrorInfo and PreconditionFailure, the genuine service's words where they are known.
Tokens are JWTs that a service account signed (RS256), checked against FOLDER/<email>.pub, audience and clock.
Roles are granted by the policy of a key; owner@ may do anything. Encryption is AES-256-GCM, with the key and
version in an authenticated header. CRC32C is compared where it is sent, and sent with every answer.

Not like the genuine service: `destroyScheduledDuration: 0s` destroys at once, and there is no quota.
"""

from __future__ import annotations

import json
import re
import ssl
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from servers.gcpkms_model import DESTROY_SCHEDULED, DISABLED, USE_TO, Key, Refused, Service

RING = r"(projects/[^/]+/locations/[^/]+/keyRings/[^/]+)"
KEY = RING[:-1] + r"/cryptoKeys/[^/:]+)"
VERSION = KEY + r"/cryptoKeyVersions/([0-9]+)"
Call = Callable[[Service, re.Match[str], str, dict[str, str], dict[str, Any]], dict[str, Any]]


def on_key(
    permission: str, act: Callable[[Service, Key, re.Match[str], dict[str, Any]], dict[str, Any]]
) -> Call:
    def call(
        service: Service, path: re.Match[str], caller: str, query: dict[str, str], body: dict[str, Any]
    ) -> dict[str, Any]:
        return act(service, service.key(path[1], caller, permission), path, body)

    return call


CALLS: list[tuple[str, str, Call]] = [
    (
        "POST",
        f"{RING}/cryptoKeys",
        lambda s, path, caller, query, body: s.create(path[1], caller, query, body),
    ),
    ("GET", KEY, on_key("admin", lambda s, key, path, body: key.shown())),
    ("POST", f"{KEY}:encrypt", on_key(f"{USE_TO}Encrypt", lambda s, key, path, body: s.encrypt(key, body))),
    ("POST", f"{KEY}:decrypt", on_key(f"{USE_TO}Decrypt", lambda s, key, path, body: s.decrypt(key, body))),
    ("POST", f"{KEY}/cryptoKeyVersions", on_key("admin", lambda s, key, path, body: s.add_version(key))),
    (
        "POST",
        f"{KEY}:updatePrimaryVersion",
        on_key("admin", lambda s, key, path, body: s.set_primary(key, body)),
    ),
    ("POST", f"{KEY}:setIamPolicy", on_key("admin", lambda s, key, path, body: s.set_policy(key, body))),
    (
        "PATCH",
        VERSION,
        on_key("admin", lambda s, key, path, body: s.set_state(key, int(path[2]), int(body["state"]))),
    ),
    (
        "POST",
        f"{VERSION}:destroy",
        on_key("admin", lambda s, key, path, body: s.set_state(key, int(path[2]), DESTROY_SCHEDULED)),
    ),
    (
        "POST",
        f"{VERSION}:restore",
        on_key("admin", lambda s, key, path, body: s.set_state(key, int(path[2]), DISABLED)),
    ),
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    service: Service

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = unquote(parts.path).removeprefix("/v1/")
        found = ((call, re.fullmatch(form, path)) for verb, form, call in CALLS if verb == self.command)
        for call, match in found:
            if match is not None:
                self._call(call, match, query, data)
                return
        self._answer(404, b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>", "text/html")

    do_PATCH = do_GET = do_POST

    def _call(self, call: Call, match: re.Match[str], query: dict[str, str], data: bytes) -> None:
        try:
            caller = self.service.caller(self.headers.get("Authorization", ""))
            with self.service.lock:
                answer = call(self.service, match, caller, query, json.loads(data or b"{}"))
        except Refused as refused:
            self._answer(refused.http, json.dumps({"error": refused.body}).encode())
        except (ValueError, LookupError, TypeError):
            body = Refused("INVALID_ARGUMENT", "Invalid JSON payload received.").body
            self._answer(400, json.dumps({"error": body}).encode())
        else:
            self._answer(200, json.dumps(answer).encode())

    def _answer(self, code: int, body: bytes, content_type: str = "application/json; charset=UTF-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(port: int, folder: Path, clock_offset: int, certificate: list[str]) -> None:
    Handler.service = Service(folder, clock_offset)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
