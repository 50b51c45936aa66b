"""OpenBao, the genuine server: in development mode, or with raft storage, TLS and an audit log."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
from hvac.adapters import RawAdapter

from servers.ca import CertificateAuthority
from servers.process import HOST, Server, free_ports, program

ROOT_TOKEN = "root-of-a-test"
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class OpenBao:
    """How to reach a running server. Plain values, so that processes can share it as JSON."""

    address: str
    root_token: str = ROOT_TOKEN
    ca: str | None = None  # path of the CA certificate when the address is https
    audit_log: str | None = None
    unseal_key: str = ""

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        token: str | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """One request below /v1/, as root unless told. Raises `requests.HTTPError` for a refusal."""
        with requests.Session() as session:
            session.trust_env = False
            session.verify = self.ca or True
            adapter = RawAdapter(
                base_uri=self.address,
                token=token or self.root_token,
                timeout=TIMEOUT_SECONDS,
                session=session,
                namespace=namespace,
            )
            answer = adapter.request(method, f"/v1/{path}", raise_exception=False, json=body)
            answer.raise_for_status()
            return dict(answer.json()) if answer.content else {}

    def create_key(
        self,
        name: str | None = None,
        *,
        mount: str = "transit",
        namespace: str | None = None,
        **settings: Any,
    ) -> str:
        """A new transit key; its URI."""
        name = name or f"k-{uuid.uuid4().hex[:12]}"
        self.ask("post", f"{mount}/keys/{name}", settings, namespace=namespace)
        return f"vault:{name}" if mount == "transit" else f"vault:{mount}/{name}"

    def create_policy(self, rules: str, *, namespace: str | None = None) -> str:
        name = f"p-{uuid.uuid4().hex[:12]}"
        self.ask("put", f"sys/policies/acl/{name}", {"policy": rules}, namespace=namespace)
        return name

    def create_token(self, policies: Iterable[str] = (), **settings: Any) -> str:
        """A token with these policies and `default`."""
        auth = self.ask("post", "auth/token/create", {"policies": list(policies), **settings})["auth"]
        return str(auth["client_token"])

    def create_role(self, policies: Iterable[str], **settings: Any) -> str:
        """An AppRole; its name."""
        name = f"r-{uuid.uuid4().hex[:12]}"
        self.ask("post", f"auth/approle/role/{name}", {"token_policies": list(policies), **settings})
        return name

    def role_ids(self, role: str) -> tuple[str, str]:
        """The role id, and a new secret id."""
        role_id = self.ask("get", f"auth/approle/role/{role}/role-id")["data"]["role_id"]
        secret_id = self.ask("post", f"auth/approle/role/{role}/secret-id", {})["data"]["secret_id"]
        return role_id, secret_id

    def audited(self, *, since: int = 0) -> list[tuple[str, str]]:
        """(path, error or "") of every request answered, in order, from byte `since` of the audit log on."""
        found = []
        for line in self._audit()[since:].splitlines():
            entry = json.loads(line)
            if entry["type"] == "response":
                found.append((entry["request"]["path"], entry.get("error", "")))
        return found

    def audit_end(self) -> int:
        """The present length of the audit log, for `since`."""
        return len(self._audit())

    def _audit(self) -> bytes:
        assert self.audit_log is not None, "only the server with raft has an audit log"
        return Path(self.audit_log).read_bytes()


class _BaoServer(Server):
    not_yet = (requests.RequestException, OSError)
    address: OpenBao

    def _enable(self) -> None:
        """A transit engine and AppRole, where they are not there yet."""
        if "transit/" not in self.address.ask("get", "sys/mounts")["data"]:
            self.address.ask("post", "sys/mounts/transit", {"type": "transit"})
        if "approle/" not in self.address.ask("get", "sys/auth")["data"]:
            self.address.ask("post", "sys/auth/approle", {"type": "approle"})


class DevServer(_BaoServer):
    """In memory, plain http, unsealed from the start."""

    name = "openbao-dev"

    def __init__(self, *, owner_pid: int | None = None, parent: Path | None = None) -> None:
        super().__init__(owner_pid=owner_pid, parent=parent)
        (self._port,) = free_ports(1)
        self.address = OpenBao(f"http://{HOST}:{self._port}")

    def command(self) -> list[str]:
        return [
            program("bao"),
            "server",
            "-dev",
            f"-dev-listen-address={HOST}:{self._port}",
            f"-dev-root-token-id={ROOT_TOKEN}",
            "-dev-no-store-token",
        ]

    def serves(self) -> bool:
        self._enable()
        return True


class RaftServer(_BaoServer):
    """Raft storage, https, an audit log. `start()` after `kill()` brings it back, unsealed."""

    name = "openbao-raft"

    def __init__(
        self, ca: CertificateAuthority, *, owner_pid: int | None = None, parent: Path | None = None
    ) -> None:
        super().__init__(owner_pid=owner_pid, parent=parent)
        self._cert = ca.server()
        self._port, self._cluster_port = free_ports(2)
        self.address = OpenBao(
            f"https://{HOST}:{self._port}",
            root_token="",
            ca=str(ca.path),
            audit_log=str(self.folder / "audit.log"),
        )

    def command(self) -> list[str]:
        (self.folder / "raft").mkdir(exist_ok=True)
        settings = self.folder / "bao.json"
        settings.write_text(json.dumps(self._settings()))
        return [program("bao"), "server", f"-config={settings}"]

    def _settings(self) -> dict[str, Any]:
        raft = {"path": str(self.folder / "raft"), "node_id": "one", "performance_multiplier": 1}
        tcp = {
            "address": f"{HOST}:{self._port}",
            "cluster_address": f"{HOST}:{self._cluster_port}",
            "tls_cert_file": str(self._cert.cert),
            "tls_key_file": str(self._cert.key),
        }
        options = {"file_path": self.address.audit_log}
        return {
            "storage": {"raft": raft},
            "listener": [{"tcp": tcp}],
            "api_addr": self.address.address,
            "cluster_addr": f"https://{HOST}:{self._cluster_port}",
            "audit": [{"file": {"log": {"description": "all", "options": options}}}],
        }

    def serves(self) -> bool:
        if not self.address.unseal_key:
            made = self.address.ask("put", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self.address = replace(
                self.address, root_token=made["root_token"], unseal_key=made["keys_base64"][0]
            )
        self.unseal()
        self._enable()
        return True

    def unseal(self) -> None:
        self.address.ask("put", "sys/unseal", {"key": self.address.unseal_key})
