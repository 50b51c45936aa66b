"""The error tree: classes, exit codes, codes, pickles, and the page that lists them."""

from __future__ import annotations

import ast
import copy
import pickle
import re
import traceback
from pathlib import Path

import pytest

from encpipe import errors
from encpipe.errors import CODES, EncpipeError

ROOT = Path(__file__).parents[2]

# class -> (parent, exit code, default code)
TREE = {
    "EncpipeError": ("Exception", 1, "internal"),
    "ConfigError": ("EncpipeError", 2, "config"),
    "PolicyError": ("ConfigError", 2, "policy"),
    "UntrustedKeyError": ("ConfigError", 2, "untrusted-key"),
    "MissingExtraError": ("ConfigError", 2, "missing-extra"),
    "KmsError": ("EncpipeError", 3, "kms"),
    "KmsUnavailableError": ("KmsError", 3, "kms-unavailable"),
    "KeyAccessDeniedError": ("KmsError", 3, "key-denied"),
    "KeyNotFoundError": ("KmsError", 3, "key-not-found"),
    "ShreddedError": ("KmsError", 3, "shredded"),
    "IntegrityError": ("EncpipeError", 4, "manifest"),
    "UnwrapError": ("IntegrityError", 4, "unwrap"),
    "DecryptionError": ("IntegrityError", 4, "decryption"),
    "PlaintextFileError": ("IntegrityError", 4, "plaintext-file"),
    "ManifestError": ("IntegrityError", 4, "manifest"),
    "SignatureError": ("IntegrityError", 4, "signature"),
    "StaleDatasetError": ("IntegrityError", 4, "stale"),
    "FormatError": ("IntegrityError", 4, "format"),
    "StorageError": ("EncpipeError", 5, "storage"),
    "ConflictError": ("StorageError", 5, "conflict"),
}
CLASSES = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and name in TREE}
each_class = pytest.mark.parametrize("name", TREE)


def test_the_tree_is_complete() -> None:
    defined = {n for n, k in vars(errors).items() if isinstance(k, type) and issubclass(k, Exception)}
    assert defined == set(TREE)


@each_class
def test_parent_exit_code_and_default_code(name: str) -> None:
    kind = CLASSES[name]
    parent, exit_code, code = TREE[name]
    assert (kind.__base__.__name__, kind.exit_code, kind("x").code) == (parent, exit_code, code)  # type: ignore[union-attr]  # every class has a base
    assert (kind.__doc__ or "").strip()


@each_class
def test_the_drawing_in_the_docstring_shows_it(name: str) -> None:
    drawn = re.search(rf"^\W*{name}\b(?:\s+exit (\d))?", errors.__doc__ or "", re.MULTILINE)
    assert drawn is not None
    assert drawn[1] in (None, str(TREE[name][1]))


@each_class
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_crosses_processes_unchanged(name: str, protocol: int) -> None:
    error = CLASSES[name]("what happened", hint="what to do", code="stale")
    for other in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert str(other) == "what happened"
        assert (other.message, other.hint, other.code) == ("what happened", "what to do", "stale")
        assert other.exit_code == error.exit_code


def test_a_code_that_is_not_listed_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="not listed"):
        EncpipeError("x", code="no-such-code")


def test_the_hint_is_apart_from_the_message() -> None:
    error = EncpipeError("what happened", hint="what to do")
    assert str(error) == "what happened"
    assert EncpipeError("x").hint == ""


def shown(error: EncpipeError) -> list[str]:
    """The lines that a traceback ends in."""
    return "".join(traceback.format_exception(error)).splitlines()


def test_a_traceback_shows_the_hint_once_also_after_crossing_processes() -> None:
    error = EncpipeError("what happened", hint="what to do")
    for other in (error, pickle.loads(pickle.dumps(error)), copy.deepcopy(copy.copy(error))):
        assert shown(other) == ["encpipe.errors.EncpipeError: what happened", "hint: what to do"]
    assert shown(EncpipeError("x")) == ["encpipe.errors.EncpipeError: x"]


def test_a_hint_that_is_given_later_takes_the_place_of_the_first() -> None:
    error = EncpipeError("what happened", hint="what to do")
    error.hint = "something better"
    assert shown(error)[1:] == ["hint: something better"]
    error.hint = ""
    assert shown(error)[1:] == []
    error.hint = "after all"
    error.add_note("of the user")
    assert shown(error)[1:] == ["hint: after all", "of the user"]


@pytest.mark.parametrize("code", CODES)
def test_codes_are_words_and_their_meanings_one_line(code: str) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
    assert CODES[code]
    assert "\n" not in CODES[code]


# The page

ROW = re.compile(
    r"^\| `(?P<code>[a-z-]+)` \| (?P<exit>[\d or]+) \| (?P<meaning>[^|]+) \| (?P<todo>[^|]+) \|$"
)


def page() -> dict[str, tuple[str, set[int]]]:
    """code -> (section, exit codes), in the page's order"""
    found: dict[str, tuple[str, set[int]]] = {}
    section = ""
    for line in (ROOT / "docs" / "errors.md").read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        row = ROW.match(line)
        if row is not None:
            assert row["code"] not in found, f"{row['code']} is listed twice"
            found[row["code"]] = (section, {int(n) for n in row["exit"].split(" or ")})
        else:
            assert not line.startswith("| `"), line
    return found


def test_the_page_lists_exactly_the_codes() -> None:
    assert set(page()) == set(CODES)


@each_class
def test_the_page_draws_the_tree_and_puts_default_codes_under_their_class(name: str) -> None:
    assert re.search(rf"^    \W*{name}\b", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    section, exits = page()[TREE[name][2]]
    assert issubclass(CLASSES[name], CLASSES[section])
    assert TREE[name][1] in exits


def test_every_code_is_raised_with_an_exit_code_that_the_page_names() -> None:
    listed = page()
    for path in sorted((ROOT / "encpipe").rglob("*.py")):
        for name, code in _raised(path):
            _, exits = listed[code]
            assert CLASSES[name].exit_code in exits, f"{path.name}: {name} with code {code!r}"


def _raised(path: Path) -> list[tuple[str, str]]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        (call.func.id, constant.value)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in CLASSES
        for keyword in call.keywords
        if keyword.arg == "code"
        for constant in ast.walk(keyword.value)
        if isinstance(constant, ast.Constant) and constant.value in CODES
    ]
