"""`encpipe shred` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli

from encpipe.errors import StorageError
from encpipe.lifecycle.shredreport import NewFile

MANIFEST = Path("enc/_encpipe/manifest.json")


@pytest.fixture
def data(ready: Cli) -> Cli:
    """An initialised folder with the dataset `enc`."""
    Path("plain.csv").write_text("id,name\n1,Ada\n2,Bob\n")
    ready("encrypt", "plain.csv", "enc", "--columns", "pii=name")
    return ready


@pytest.fixture
def name(data: Cli) -> str:
    """The dataset's id."""
    return str(json.loads(MANIFEST.read_bytes().splitlines()[0])["dataset_id"])


def test_a_dry_run_shows_and_changes_nothing(data: Cli) -> None:
    before = MANIFEST.read_bytes()
    shown = data("shred", "enc", "--dry-run").out
    assert "nothing was changed: --dry-run" in shown
    assert "2, wrapped by local:default, local:pii" in shown
    assert data("shred", "enc", "--dry-run", "--json").json["verdict"] == ""
    assert MANIFEST.read_bytes() == before


def test_a_key_name_and_then_the_dataset(data: Cli, name: str) -> None:
    shown = data("shred", "enc", "--key-name", "pii", "--confirm", name).out
    assert "removed: no copy was found" in shown
    assert "Ada" not in data("head", "enc", "--on-missing-key", "null").out
    found = data("shred", "enc", "--confirm", name, "--json").json
    assert (found["verdict"], found["scope"], found["dataset_id"]) == ("removed", "dataset", name)
    assert data("head", "enc", "--json", code=3).json["error"]["code"] == "shredded"


def test_a_partition(ready: Cli) -> None:
    for year in (2020, 2021):
        Path(f"in/year={year}").mkdir(parents=True)
        Path(f"in/year={year}/part.csv").write_text(f"id\n{year}\n")
    ready("encrypt", "in", "years", "--partition-keys", "year")
    found = json.loads(Path("years/_encpipe/manifest.json").read_bytes().splitlines()[0])
    confirmed = ("--confirm", found["dataset_id"])
    shown = ready("shred", "years", "--partition", "year=2020", *confirmed).out
    assert "year=2020" in shown
    assert "2020" not in ready("head", "years").out
    assert "2021" in ready("head", "years").out
    error = ready("shred", "years", "--partition", "year=2020", *confirmed, "--json", code=2).json["error"]
    assert "no such partition" in error["message"]
    assert ready("shred", "years", "--partition", "year", *confirmed, "--json", code=2)


def test_with_its_master_keys(data: Cli, name: str) -> None:
    found = data(
        *("shred", "enc", "--confirm", name, "--report", "shredded.json", "--json"),
        *("--retire-master", "local:default", "--retire-master", "local:pii"),
    ).json
    assert found["verdict"] == "destroyed"
    assert json.loads(Path("shredded.json").read_text()) == found
    assert data("keys", "list", "--json").json["keys"] == []


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--confirm", "0" * 32),
        ("--key-name", "footer"),
        ("--retire-master", "pii"),
        ("--retire-master", "local:pii=new"),
        ("--also", "enc"),
    ],
)
def test_what_is_not_confirmed_or_makes_no_sense_is_an_error_of_use(
    data: Cli, name: str, more: tuple[str, ...]
) -> None:
    before = MANIFEST.read_bytes()
    confirmed = ("--confirm", name) if more and more[0] != "--confirm" else ()
    assert data("shred", "enc", *confirmed, *more, "--json", code=2).json["error"]["code"] == "usage"
    assert MANIFEST.read_bytes() == before


def test_the_id_is_typed_on_a_terminal(data: Cli, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def prompt(question: str, **_: object) -> str:
        asked.append(question)
        return f" {name}\n"

    monkeypatch.setattr("encpipe.cli.shred.typer.prompt", prompt)
    monkeypatch.setattr("encpipe.cli.shred.person_is_there", lambda: True)
    assert "removed" in data("shred", "enc").out
    assert asked == ["enc cannot be read any more after this. Type its dataset id"]


def test_what_is_left_is_shown_and_is_an_error(data: Cli, name: str) -> None:
    Path("enc/_encpipe/copy").write_bytes(MANIFEST.read_bytes())
    shown = data("shred", "enc", "--confirm", name, code=5).out
    assert "incomplete: see what is left" in shown
    assert "_encpipe/copy" in shown


def test_a_report_that_is_there_is_not_overwritten(data: Cli, name: str) -> None:
    Path("report.json").write_text("mine")
    before = MANIFEST.read_bytes()
    error = data("shred", "enc", "--confirm", name, "--report", "report.json", "--json", code=2).json["error"]
    assert error["code"] == "exists"
    assert (MANIFEST.read_bytes(), Path("report.json").read_text()) == (before, "mine")


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_report_that_cannot_be_made_stops_it_in_time(data: Cli, name: str, dry_run: bool) -> None:
    before = MANIFEST.read_bytes()
    more = ("--dry-run",) if dry_run else ()
    code = 0 if dry_run else 5
    data("shred", "enc", "--confirm", name, "--report", "no/report.json", *more, "--json", code=code)
    assert MANIFEST.read_bytes() == before
    data("shred", "enc", "--confirm", "0" * 32, "--report", "report.json", "--json", code=2)
    assert not Path("report.json").exists()


def test_a_report_that_cannot_be_saved_is_shown(
    data: Cli, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(NewFile, "save", _failing)
        shown = data("shred", "enc", "--confirm", name, "--report", "report.json", "--json", code=5)
    assert json.loads(shown.out)["verdict"] == "removed"
    assert "the disk is full" in shown.err
    assert "keep the report that was printed" in shown.err
    assert not Path("report.json").exists()


def _failing(self: NewFile, report: object) -> None:
    raise StorageError("the disk is full")


def test_that_nothing_was_tried_is_in_the_verdict(
    data: Cli, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encpipe.lifecycle.shredtrial.CHILD", "encpipe.no_such_module")
    shown = data("shred", "enc", "--confirm", name).out
    (line,) = [line for line in shown.splitlines() if "removed: no copy was found" in line]
    assert "no fresh process could try it" in line


def test_a_report_is_signed_and_checked(data: Cli, home: Path) -> None:
    signer = data("keys", "create-signer", home / "ann.pem", "--json").json["signer"]
    config = Path("encpipe.toml")
    config.write_text(f'{config.read_text()}\n[signing]\nkey_file = "{home / "ann.pem"}"\n')
    data("encrypt", "plain.csv", "signed", "--columns", "pii=name")
    found = json.loads(Path("signed/_encpipe/manifest.json").read_bytes().splitlines()[0])
    data("shred", "signed", "--confirm", found["dataset_id"], "--report", "shredded.json")
    shown = data("shred", "--verify-report", "shredded.json").out
    assert signer in shown
    assert "removed" in shown
    assert data("shred", "--verify-report", "shredded.json", "--json").json["signer"] == signer
    report = Path("shredded.json")
    report.write_text(report.read_text().replace('"removed"', '"destroyed"'))
    assert data("shred", "--verify-report", report, "--json", code=4).json["error"]["code"] == "signature"


def test_without_a_dataset_it_is_an_error_of_use(data: Cli) -> None:
    assert data("shred", "--json", code=2).json["error"]["code"] == "usage"
