"""The names others build on: sorted, all there, and the same for type checkers as at run time."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import encpipe

MODULES = ["encpipe", *(found.name for found in pkgutil.walk_packages(encpipe.__path__, "encpipe."))]


def names_for_type_checkers() -> dict[str, str]:
    """Name -> module, of the imports that only type checkers see."""
    tree = ast.parse(Path(encpipe.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_public_names_are_sorted_and_appear_once() -> None:
    assert encpipe.__all__ == sorted(set(encpipe.__all__))


def test_type_checkers_see_the_same_names() -> None:
    assert sorted(names_for_type_checkers()) == encpipe.__all__


@pytest.mark.parametrize("name", encpipe.__all__)
def test_a_public_name_is_what_its_module_has(name: str) -> None:
    home = importlib.import_module(names_for_type_checkers()[name])
    assert getattr(encpipe, name) is getattr(home, name)


def test_the_version_is_that_of_the_package() -> None:
    assert encpipe.__version__.count(".") == 2
    assert "__version__" in dir(encpipe)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'decrypt'"):
        encpipe.decrypt  # noqa: B018 - the access is the test


@pytest.mark.parametrize("module", [name for name in MODULES if name != "encpipe.__main__"])
def test_every_listed_name_of_a_module_is_there(module: str) -> None:
    found = importlib.import_module(module)
    for name in getattr(found, "__all__", ()):
        assert hasattr(found, name)
