"""Envelope encryption for Parquet datasets, decrypted only in memory, straight into PyTorch.

    import encpipe

    policy = encpipe.Policy(columns={"pii": ["tailnum"]})
    encpipe.write_dataset("flights/", "s3://bucket/flights", policy=policy)
    with encpipe.open_dataset("s3://bucket/flights") as dataset:
        table = dataset.to_table(["distance", "arr_delay"])

Names are loaded on first use: `import encpipe` costs a few milliseconds and imports neither torch nor boto3.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encpipe.config import Config, load_config
    from encpipe.dataset import Dataset
    from encpipe.errors import (
        ConfigError,
        ConflictError,
        DecryptionError,
        EncpipeError,
        FormatError,
        IntegrityError,
        KeyAccessDeniedError,
        KeyNotFoundError,
        KmsError,
        KmsUnavailableError,
        ManifestError,
        MissingExtraError,
        PlaintextFileError,
        PolicyError,
        ShreddedError,
        SignatureError,
        StaleDatasetError,
        StorageError,
        UntrustedKeyError,
        UnwrapError,
    )
    from encpipe.export import decrypt_dataset
    from encpipe.gateway.client import open_gateway
    from encpipe.inspection import inspect_dataset
    from encpipe.kms.registry import MasterKeys
    from encpipe.lifecycle.gc import gc
    from encpipe.lifecycle.grants import grant, revoke
    from encpipe.lifecycle.rekeying import rekey
    from encpipe.lifecycle.rewrapping import needs_rewrap, rewrap
    from encpipe.lifecycle.shred import shred
    from encpipe.lifecycle.shredreport import verify_shred_report
    from encpipe.opening import open_dataset
    from encpipe.policy import Policy
    from encpipe.signatures import sign_dataset
    from encpipe.verification import verify_dataset
    from encpipe.writer import append_dataset, write_dataset

_HOME = {
    "Config": "config",
    "Dataset": "dataset",
    "MasterKeys": "kms.registry",
    "Policy": "policy",
    "append_dataset": "writer",
    "decrypt_dataset": "export",
    "gc": "lifecycle.gc",
    "grant": "lifecycle.grants",
    "inspect_dataset": "inspection",
    "load_config": "config",
    "needs_rewrap": "lifecycle.rewrapping",
    "open_dataset": "opening",
    "open_gateway": "gateway.client",
    "rekey": "lifecycle.rekeying",
    "revoke": "lifecycle.grants",
    "rewrap": "lifecycle.rewrapping",
    "shred": "lifecycle.shred",
    "sign_dataset": "signatures",
    "verify_dataset": "verification",
    "verify_shred_report": "lifecycle.shredreport",
    "write_dataset": "writer",
}

__all__ = [
    "Config",
    "ConfigError",
    "ConflictError",
    "Dataset",
    "DecryptionError",
    "EncpipeError",
    "FormatError",
    "IntegrityError",
    "KeyAccessDeniedError",
    "KeyNotFoundError",
    "KmsError",
    "KmsUnavailableError",
    "ManifestError",
    "MasterKeys",
    "MissingExtraError",
    "PlaintextFileError",
    "Policy",
    "PolicyError",
    "ShreddedError",
    "SignatureError",
    "StaleDatasetError",
    "StorageError",
    "UntrustedKeyError",
    "UnwrapError",
    "append_dataset",
    "decrypt_dataset",
    "gc",
    "grant",
    "inspect_dataset",
    "load_config",
    "needs_rewrap",
    "open_dataset",
    "open_gateway",
    "rekey",
    "revoke",
    "rewrap",
    "shred",
    "sign_dataset",
    "verify_dataset",
    "verify_shred_report",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("encpipe")
    if name not in __all__:
        raise AttributeError(f"module 'encpipe' has no attribute {name!r}")
    return getattr(import_module(f"encpipe.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
