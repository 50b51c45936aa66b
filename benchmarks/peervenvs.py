"""The peers' own virtual environments, `build/peers/<name>/.venv`: made by `python -m benchmarks.peervenvs`.

They share nothing with the environment of encpipe, so that neither side's pins hold the other back.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PEERS_FOLDER: Final = ROOT / "build" / "peers"

_TORCH: Final = "torch==2.13.0"
"""Installed before anything that wants it, and held there: the same release on all sides."""
_ARROW: Final = ("numpy>=1.26", "pyarrow==26.0.1")
"""The workloads are Parquet files; the peers convert them."""

PEERS: Final[Mapping[str, tuple[str, ...]]] = {
    "litdata": ("litdata==0.2.73", "cryptography==50.0.2", *_ARROW),
    "mosaicml-streaming": ("mosaicml-streaming==0.13.0", *_ARROW),
    "datasets": ("datasets==5.2.0", *_ARROW),
}
"""Distribution, which is also the folder -> what is installed for it. LitData's Fernet wants cryptography."""

_STUB_VERSION: Final = "0.28.0"
"""What would go with that release of torch."""
_STUBBED: Final = ("litdata", "mosaicml-streaming")
_STUB: Final = {
    "torchvision/__init__.py": "",
    "torchvision/datasets/__init__.py": "class VisionDataset:\n    pass\n\n\nclass CIFAR10:\n    pass\n",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "def to_tensor(image):\n    raise NotImplementedError\n",
    f"torchvision-{_STUB_VERSION}.dist-info/METADATA": (
        f"Metadata-Version: 2.1\nName: torchvision\nVersion: {_STUB_VERSION}\n"
    ),
}
"""torchvision's wheel needs torch's CUDA build: beside the CPU build its import fails ("operator
torchvision::nms does not exist"). LitData and Streaming require it, for images that no workload has."""


def python_of(name: str) -> Path | None:
    """The interpreter of a peer, or None where `make bench-peers` has not made it as the table says."""
    folder = PEERS_FOLDER / name
    stamp = folder / "made"
    if not stamp.exists() or stamp.read_text() != _recipe(name):
        return None
    return folder / ".venv" / "bin" / "python"


@cache
def versions(name: str) -> dict[str, str]:
    """What stands in a peer's environment of the packages that the table names, and its Python."""
    wanted = [requirement.partition("==")[0].partition(">")[0] for requirement in (_TORCH, *PEERS[name])]
    code = (
        "import json, platform, sys; from importlib.metadata import version as v;"
        "print(json.dumps({n: v(n) for n in sys.argv[1:]} | {'python': platform.python_version()}))"
    )
    out = subprocess.run([str(python_of(name)), "-c", code, *wanted], capture_output=True, check=True)
    return dict(json.loads(out.stdout))


def make(name: str) -> None:
    """One environment, anew, unless it is there as the table says."""
    if python_of(name):
        print(f"{name}: there")
        return
    folder = PEERS_FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"{name}: installing {', '.join((_TORCH, *PEERS[name]))}", flush=True)
    held = folder / "constraints.txt"
    held.write_text(f"{_TORCH}\ntorchvision=={_STUB_VERSION}\n")
    subprocess.run([sys.executable, "-m", "venv", str(folder / ".venv")], check=True)
    _install(folder, "--upgrade", "pip")
    _install(folder, _TORCH)
    if name in _STUBBED:
        _write_stub(folder)
    _install(folder, "--constraint", str(held), *PEERS[name])
    (folder / "made").write_text(_recipe(name))


def _install(folder: Path, *what: str) -> None:
    python = str(folder / ".venv" / "bin" / "python")
    subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *what], check=True
    )


def _write_stub(folder: Path) -> None:
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / ".venv")}))
    for path, text in _STUB.items():
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).write_text(text)


def _recipe(name: str) -> str:
    """Stands for everything an environment was made from: another one is made anew."""
    made_from = (_TORCH, PEERS[name], sorted(_STUB.items()) if name in _STUBBED else (), sys.version)
    return hashlib.sha256(repr(made_from).encode()).hexdigest()


if __name__ == "__main__":
    for peer in PEERS:
        make(peer)
