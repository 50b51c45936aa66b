"""Real servers as fixtures: started once per run on first use, shared by all pytest-xdist workers.

The servers live in a folder of their own and belong to the xdist controller (or the only process): it ends
them when the run is over, and their keepers do so if it is killed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers.aws import Kms, MotoServer, RotoServer
from servers.ca import CertificateAuthority
from servers.gcpkms import Gcp, GcpServer
from servers.openbao import DevServer, OpenBao, RaftServer
from servers.seaweed import Seaweed, SeaweedServer
from servers.shared import Run
from servers.softhsm import SoftHsm, need_softhsm

from encpipe.kms.circuit import CIRCUITS

RUN = pytest.StashKey[Run]()


def pytest_configure(config: pytest.Config) -> None:
    workerinput = getattr(config, "workerinput", None)
    if workerinput is None:
        config.stash[RUN] = Run(Path(tempfile.mkdtemp(prefix="encpipe-tests-")), os.getpid())
    else:
        config.stash[RUN] = Run(Path(workerinput["servers_folder"]), workerinput["servers_owner_pid"])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Runs in the xdist controller for each worker before it starts."""
    run = node.config.stash[RUN]
    node.workerinput["servers_folder"] = str(run.folder)
    node.workerinput["servers_owner_pid"] = run.owner_pid


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(RUN, None)
    if run is not None and run.owner_pid == os.getpid():
        run.end()


@pytest.fixture(autouse=True)
def no_outage_of_another_test() -> None:
    """What a process knows of key services that were out."""
    CIRCUITS.get().known.clear()


@pytest.fixture(scope="session")
def server_run(pytestconfig: pytest.Config) -> Run:
    return pytestconfig.stash[RUN]


@pytest.fixture(scope="session")
def ca(server_run: Run) -> CertificateAuthority:
    """The run's certificate authority: `ca.path`, `ca.server()`, `ca.client()`, `ca.self_signed()`."""
    return server_run.authority()


@pytest.fixture(scope="session")
def seaweed(server_run: Run, ca: CertificateAuthority) -> Seaweed:
    """SeaweedFS over http and https. Shared: use `bucket`, and never stop it (start a `SeaweedServer`)."""
    return server_run.server(
        "seaweed", Seaweed, lambda owner, parent: SeaweedServer(ca, owner_pid=owner, parent=parent)
    )


@pytest.fixture
def bucket(seaweed: Seaweed) -> str:
    """The name of a fresh bucket."""
    return seaweed.create_bucket()


@pytest.fixture(scope="session")
def roto_kms(server_run: Run) -> Kms:
    return server_run.server("roto", Kms, lambda owner, parent: RotoServer(owner_pid=owner, parent=parent))


@pytest.fixture(scope="session")
def moto_kms(server_run: Run) -> Kms:
    return server_run.server("moto", Kms, lambda owner, parent: MotoServer(owner_pid=owner, parent=parent))


@pytest.fixture(scope="session")
def moto_kms_tls(server_run: Run, ca: CertificateAuthority) -> Kms:
    """moto over https with a certificate of `ca`."""
    return server_run.server(
        "moto-tls", Kms, lambda owner, parent: MotoServer(ca, owner_pid=owner, parent=parent)
    )


@pytest.fixture(scope="session")
def openbao(server_run: Run) -> OpenBao:
    """OpenBao in development mode. Shared: use keys of your own."""
    return server_run.server(
        "openbao", OpenBao, lambda owner, parent: DevServer(owner_pid=owner, parent=parent)
    )


@pytest.fixture(scope="session")
def openbao_raft(server_run: Run, ca: CertificateAuthority) -> OpenBao:
    """OpenBao with raft, TLS and an audit log. Shared, as above."""
    return server_run.server(
        "openbao-raft", OpenBao, lambda owner, parent: RaftServer(ca, owner_pid=owner, parent=parent)
    )


@pytest.fixture(scope="session")
def gcp_kms(server_run: Run) -> Gcp:
    """A fake of Google Cloud KMS."""
    return server_run.server("gcpkms", Gcp, lambda owner, parent: GcpServer(owner_pid=owner, parent=parent))


@pytest.fixture(scope="session")
def gcp_kms_tls(server_run: Run, ca: CertificateAuthority) -> Gcp:
    """The same over https with a certificate of `ca`."""
    return server_run.server(
        "gcpkms-tls", Gcp, lambda owner, parent: GcpServer(ca, owner_pid=owner, parent=parent)
    )


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    """SoftHSM's tokens and keys for this process, made before it loads the module."""
    need_softhsm()
    made = SoftHsm.create(tmp_path_factory.mktemp("softhsm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(made.config))
        yield made
