"""Imports point one way: a module imports from its own layer or one below it, and never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import encpipe

ROOT = Path(encpipe.__file__).parent

LAYERS = """
    cli  torch  gateway  __main__
    inspection  lifecycle  verification  export  signatures  opening  dataset  writer  initialise  checkup
    writesession  scan  datafiles
    rowgroups  selection  wholefiles
    fragments  projection
    stopped  writekeys  writedata
    sealing  commit  writereport
    handover
    state  statekeys  journal  records
    parquet  layouts  storage  sources  pins  access
    keyring  heldkeks  deks
    kms  transport  negotiation  manifest  filelist  core  signing  signingkeys  partitionkeks
    audit  failedtries
    config  configparts  configtable
    policy  strictjson
    aead
    guard
    keys
    errors  machine  perprocess
"""
"""From what users touch down to what everything rests on. A new module gets its place here first."""

BESIDE = {"testing"}
"""For tests, ours and those of other projects: imports what it needs, and nothing imports it."""

ONLY_HERE = {
    "cryptography.hazmat.primitives.ciphers": ("aead",),
    "pyarrow.parquet.encryption": ("parquet.keyclients",),
    "torch": ("torch",),
    "boto3": ("kms.aws", "storage", "sources"),
    "botocore": ("kms.aws", "storage", "sources", "transport"),
    "azure": ("kms.azure",),
    "hvac": ("kms.vault",),
    "google": ("kms.gcp",),
    "grpc": ("gateway.server", "gateway.certificates"),
    "google_crc32c": ("kms.gcp",),
    "pkcs11": ("kms.pkcs11",),
    "typer": ("cli",),
    "rich": ("cli", "torch.bar"),
}
"""What only these modules (and what lies in or begins like them) may import."""

HEIGHT = {name: -depth for depth, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()}


def module_name(path: Path) -> str:
    """`kms.local` for encpipe/kms/local.py; the empty string for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> str:
    return module.split(".")[0]


@cache
def sources() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def imports(tree: ast.Module) -> set[str]:
    """Every name imported anywhere in a module, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an arrow points"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def arrows() -> dict[str, frozenset[str]]:
    """Module -> the units of encpipe it imports from, itself left out."""
    return {
        module: frozenset(
            unit(name.removeprefix("encpipe.")) for name in imports(tree) if name.startswith("encpipe.")
        )
        - {unit(module)}
        for module, tree in sources().items()
        if module
    }


def test_every_module_has_its_place() -> None:
    units = {unit(module) for module in sources() if module}
    assert units - BESIDE == HEIGHT.keys()


def test_no_arrow_points_up() -> None:
    upward = [
        f"{module} -> {target}"
        for module, targets in arrows().items()
        if unit(module) not in BESIDE
        for target in sorted(targets)
        if target in BESIDE or HEIGHT[target] > HEIGHT[unit(module)]
    ]
    assert upward == []


def test_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, targets in arrows().items():
        graph.setdefault(unit(module), set()).update(targets)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", ONLY_HERE)
def test_a_package_is_imported_only_where_it_belongs(package: str) -> None:
    importers = {
        module
        for module, tree in sources().items()
        if any(name == package or name.startswith(package + ".") for name in imports(tree))
    }
    assert {m for m in importers if not m.startswith(ONLY_HERE[package]) and unit(m) not in BESIDE} == set()


def test_only_the_command_line_prints_or_exits() -> None:
    calls = [
        f"{module}:{node.lineno}"
        for module, tree in sources().items()
        if unit(module) not in ("cli", "__main__")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.exit", "exit", "quit")
    ]
    assert calls == []


def test_import_loads_nothing_heavy() -> None:
    heavy = ("torch", "boto3", "typer", "pyarrow", "pandas", "numpy", "cryptography", "fsspec")
    code = f"import sys, encpipe; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
