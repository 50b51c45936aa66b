"""docs/howto/column-access.md is run as it is shown, by three people, on policies of IAM and of OpenBao.

moto's IAM mode gives the verdicts. For KMS it looks at actions only and answers a denial in XML: `ON_KMS`
tells it, by its own hook, which key a request is for, and gives the denial the form that AWS KMS documents.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from servers.aws import Kms, MotoServer
from servers.openbao import DevServer

from encpipe.audit import verify_audit

pytestmark = pytest.mark.server

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "column-access.md"
PEOPLE = ("analyst", "auditor", "writer")
ARN = "arn:aws:kms:eu-central-1:111122223333:key/{0}{0}{0}{0}{0}{0}{0}{0}-{1}"
ARNS = {
    name: ARN.format(digit, "-".join([digit * 4] * 3 + [digit * 12]))
    for name, digit in (("footer", "1"), ("pii", "2"), ("project", "3"))
}
DENIED = "encpipe: error: "

ON_KMS = """
import sys

from moto.core.exceptions import AccessDeniedError, JsonRESTError
from moto.kms.responses import KmsResponse
from moto.server import main

check = KmsResponse._authenticate_and_authorize_normal_action


def authorize(self, resource="*"):
    try:
        check(self, resource)
    except AccessDeniedError as error:
        raise JsonRESTError("AccessDeniedException", error.message) from None


KmsResponse._determine_resource = lambda self: self._get_param("KeyId") or "*"
KmsResponse._authenticate_and_authorize_normal_action = authorize
main(sys.argv[1:])
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def policies(language: str) -> dict[str, str]:
    """Person -> policy, of the block in this language."""
    parts = re.split(r"^(?:#|//) (\w+)\n", blocks(language)[0], flags=re.M)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    assert tuple(found) == PEOPLE
    return found


@dataclass
class Place:
    """A folder of the three, a home for each with his credentials, and the page's names -> the real ones."""

    folder: Path
    names: dict[str, str]

    @classmethod
    def create(cls, folder: Path, names: dict[str, str], table: str) -> Place:
        place = cls(folder, names)
        for person in PEOPLE:
            place.home(person).mkdir()
        (folder / "encpipe.toml").write_text(place.real(blocks("toml")[0]) + table)
        return place

    def home(self, person: str) -> Path:
        return self.folder / f"home-of-{person}"

    def audit_log(self, person: str) -> Path:
        return self.home(person) / "encpipe-audit.jsonl"

    def real(self, text: str) -> str:
        for shown, used in self.names.items():
            text = text.replace(shown, used)
        return text

    def run(self, person: str, command: list[str]) -> tuple[int, str]:
        """Exit code and output, for the person in a fresh process."""
        skipped = ("ENCPIPE_", "XDG_", "AWS_", "VAULT_", "BAO_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(skipped)}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**kept, "HOME": str(self.home(person))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout


class IamServer(MotoServer):
    """moto with IAM enforced on the keys of KMS, after the three requests that make an administrator."""

    def __init__(self) -> None:
        super().__init__(free_requests=3)

    def command(self) -> list[str]:
        python, _module, _name, *options = super().command()
        return [python, "-c", ON_KMS, *options]


def session(key_id: str, secret: str) -> boto3.session.Session:
    return boto3.session.Session(key_id, secret, region_name="eu-central-1")


def create_user(iam: Any, name: str, policy: str) -> tuple[str, str]:
    """A user with this policy; the id and the secret of his access key."""
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="encpipe", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def create_admin(moto: Kms) -> boto3.session.Session:
    iam = session("nobody", "none").client("iam", endpoint_url=moto.endpoint)
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
    return session(*create_user(iam, "admin", policy))


def on_iam(moto: Kms, folder: Path) -> Place:
    admin = create_admin(moto)
    kms = admin.client("kms", endpoint_url=moto.endpoint)
    iam = admin.client("iam", endpoint_url=moto.endpoint)
    names = {shown: kms.create_key()["KeyMetadata"]["Arn"] for shown in ARNS.values()}
    place = Place.create(folder, names, f'\n[kms.aws-kms]\nendpoint_url = "{moto.endpoint}"\n')
    for person, policy in policies("jsonc").items():
        key_id, secret = create_user(iam, person, place.real(policy))
        (place.home(person) / ".aws").mkdir()
        lines = ("[default]", f"aws_access_key_id = {key_id}", f"aws_secret_access_key = {secret}")
        (place.home(person) / ".aws" / "credentials").write_text("\n".join(lines))
    return place


def on_openbao(server: DevServer, folder: Path) -> Place:
    bao = server.address
    names = {f"aws-kms:{arn}": bao.create_key(name) for name, arn in ARNS.items()}
    place = Place.create(folder, names, f'\n[kms.vault]\naddress = "{bao.address}"\n')
    for person, policy in policies("hcl").items():
        token = place.home(person) / ".vault-token"
        token.touch(mode=0o600)
        token.write_text(bao.create_token([bao.create_policy(policy)]))
    return place


@pytest.fixture(params=["IAM", "OpenBao"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "IAM":
        with IamServer() as moto:
            yield on_iam(moto.address, tmp_path)
    else:
        with DevServer() as bao:
            yield on_openbao(bao, tmp_path)


def words(line: str) -> str:
    return " ".join(line.split())


def check(place: Place, person: str, command: str, shown: list[str]) -> None:
    code, printed = place.run(person, ["sh", "-ec", place.real(command)])
    refused = shown and shown[0].startswith(DENIED)
    assert code == (3 if refused else 0), f"{person}$ {command}\n{printed}"
    if refused and "aws-kms:" not in place.real(shown[0]):
        assert re.search(rf"^{DENIED}.* refuses transit/decrypt/pii", printed, re.M), printed
        return
    found = [words(line) for line in printed.splitlines()]
    for line in map(place.real, shown):
        assert any(words(line) in other for other in found), f"{person}$ {command}\n{line}\n{printed}"


def steps() -> list[tuple[str, str, list[str]]]:
    """(person, command, lines shown below it) of all console blocks, in their order."""
    parts = re.split(r"^(\w+)\$ ", "".join(blocks("console")), flags=re.M)[1:]
    found = zip(parts[::2], (part.splitlines() for part in parts[1::2]), strict=True)
    return [(person, lines[0], lines[1:]) for person, lines in found]


def refusals(place: Place, person: str) -> list[dict[str, object]]:
    log = place.audit_log(person)
    verify_audit(log).check()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "refusal"]


def test_the_page_does_what_it_shows(place: Place) -> None:
    for person, command, shown in steps():
        check(place, person, command, shown)

    code, printed = place.run("analyst", [sys.executable, "-c", blocks("python")[0]])
    assert (code, printed.splitlines()) == (0, re.findall(r"  # (.*)$", blocks("python")[0], re.M))

    denied = refusals(place, "analyst")
    assert {(line["of"], line["code"], str(line["key_names"])) for line in denied} == {
        ("unwrap", "key-denied", "['pii']")
    }
    assert refusals(place, "auditor") == refusals(place, "writer") == []


TRY = """
import encpipe, pyarrow as pa, pyarrow.compute as pc

for outcome in ("skip", "null"):
    with encpipe.open_dataset("people", on_missing_key=outcome) as dataset:
        for filter in (pc.field("name") == "Ada", pc.field("name").is_null(), [("name", "!=", "Ada")]):
            try:
                dataset.to_table(["id"], filter)
            except encpipe.ConfigError as error:
                print(outcome, error.code)
        try:
            dataset.to_table().sort_by("name")
        except pa.ArrowInvalid:
            print(outcome, "no such column")
try:
    with encpipe.open_dataset("people") as dataset:
        dataset.to_table()
except encpipe.IntegrityError:
    print("integrity")
except encpipe.KeyAccessDeniedError as error:
    print(error.code)
    print(error.message)
"""


def test_what_the_analyst_lacks_is_no_filter_no_sort_and_no_damage(place: Place) -> None:
    check(place, *steps()[0])
    code, printed = place.run("analyst", [sys.executable, "-c", TRY])
    *tried, message = printed.splitlines()
    assert code == 0, printed
    assert tried == ["skip filter"] * 3 + ["skip no such column"] + ["null filter"] * 3 + ["key-denied"]
    assert place.real(f"aws-kms:{ARNS['pii']}") in message
    assert "key name 'pii'" in message

    code, printed = place.run("analyst", ["encpipe", "encrypt", "people.csv", "mine"])
    assert (code, (place.folder / "mine" / "_encpipe" / "manifest.json").exists()) == (3, False), printed
