"""The KMS clients that PyArrow calls for the DEKs of one file: the only importer of its encryption module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

import pyarrow.parquet.encryption as pe

from encpipe.deks import dek_commitment, unwrap_dek, wrap_dek
from encpipe.errors import EncpipeError, UnwrapError
from encpipe.filelist import FileEntry
from encpipe.keyring import DatasetKeys
from encpipe.parquet.schema import Layout

DEK_BITS: Final = 256


class WrappingClient(pe.KmsClient):  # type: ignore[misc]  # PyArrow ships no types
    """Wraps the DEKs of one new file and notes their commitments in the order PyArrow makes them."""

    def __init__(self, file_id: str, layout: Layout, keys: DatasetKeys) -> None:
        super().__init__()
        self._file_id, self._layout, self._keys = file_id, layout, keys
        self.commitments: list[bytes] = []

    def wrap_key(self, dek: bytes, key_id: str) -> str:
        kek = self._keys.kek(key_id.rpartition(".")[2])
        self.commitments.append(dek_commitment(self._file_id, dek))
        return wrap_dek(kek, dek, file_id=self._file_id, key_id=key_id)

    def unwrap_key(self, wrapped: str, key_id: str) -> NoReturn:
        raise NotImplementedError("a writer never unwraps")


def encryption_properties(client: pe.KmsClient, footer_key: str, groups: Mapping[str, list[str]]) -> Any:
    config = pe.EncryptionConfiguration(
        footer_key=footer_key,
        column_keys=groups or None,
        uniform_encryption=not groups,
        encryption_algorithm="AES_GCM_V1",
        plaintext_footer=False,
        double_wrapping=False,
        data_key_length_bits=DEK_BITS,
        internal_key_material=True,
    )
    factory = pe.CryptoFactory(lambda _: client)
    return factory.file_encryption_properties(pe.KmsConnectionConfig(), config)


class UnwrappingClient(pe.KmsClient):  # type: ignore[misc]  # PyArrow ships no types
    """Unwraps the DEKs of one file, refuses any that its entry does not commit to, and notes which leaves
    were asked for.

    Arrow calls six times for each column chunk, from several threads, so the second call for a wrapped DEK
    is one dict lookup. Dict and set operations are atomic in CPython; unwrapping twice does no harm.
    """

    def __init__(
        self,
        entry: FileEntry,
        layout: Layout,
        keys: DatasetKeys,
        leaves: Mapping[bytes, str] | None = None,
    ) -> None:
        super().__init__()
        self._entry, self._keys = entry, keys
        self._keks = {layout.key_id(name): kek_id for name, kek_id in layout.keks.items()}
        self._deks: dict[str, bytes] = {}
        self._leaf_of: dict[str, str] = {}
        self._asked: set[str] = set()
        self.leaves = leaves
        """DEK commitment -> leaf path; None until the footer was read."""
        self._footers: set[str] = set()
        self.failure: EncpipeError | None = None

    def wrap_key(self, dek: bytes, key_id: str) -> NoReturn:
        raise NotImplementedError("a reader never wraps")

    def unwrap_key(self, wrapped: str, key_id: str) -> bytes:
        self._asked.add(wrapped)
        dek = self._deks.get(wrapped)
        if dek is None:
            dek = self._deks[wrapped] = self._unwrap(wrapped, key_id)
        return dek

    def learn_from(self, other: UnwrappingClient) -> None:
        """Hold the DEKs that another client of this file has unwrapped and checked."""
        self._deks.update(other._deks)
        self._leaf_of.update(other._leaf_of)
        self._footers |= other._footers

    def start_read(self) -> None:
        """Forget what was asked for."""
        self._asked.clear()

    @property
    def footer_asked(self) -> bool:
        """Whether the footer's committed DEK was asked for since `start_read`; plaintext needs none."""
        return not self._footers.isdisjoint(self._asked)

    def asked_leaves(self) -> set[str]:
        """The leaves whose committed DEK was asked for since `start_read`."""
        return {self._leaf_of[wrapped] for wrapped in self._asked if wrapped in self._leaf_of}

    def _unwrap(self, wrapped: str, key_id: str) -> bytes:
        try:
            dek = self._open(wrapped, key_id)
            self._check(wrapped, dek_commitment(self._entry.id, dek))
        except EncpipeError as error:
            self.failure = self.failure or error
            raise
        return dek

    def _open(self, wrapped: str, key_id: str) -> bytes:
        kek_id = self._keks.get(key_id)
        if kek_id is None:
            raise UnwrapError(
                f"file {self._entry.path} names a key that its generation does not have",
                hint="the file was swapped or edited: restore it from a copy you trust",
            )
        return unwrap_dek(self._keys.kek(kek_id), wrapped, file_id=self._entry.id, key_id=key_id)

    def _check(self, wrapped: str, commitment: bytes) -> None:
        if commitment == self._entry.footer_commitment:
            self._footers.add(wrapped)
        elif self.leaves is not None and commitment in self.leaves:
            self._leaf_of[wrapped] = self.leaves[commitment]
        else:
            raise UnwrapError(
                f"file {self._entry.path} uses a data key that the file list does not commit to",
                hint="the file was rewritten after it was committed: restore it from a copy you trust",
                code="dek-commitment",
            )

    def uniform_properties(self) -> Any:
        """What PyArrow needs to read a file that one DEK seals, without this client; accepts no plaintext.

        To be called after the file was opened through this client.
        """
        (wrapped,) = self._footers
        return pe.create_decryption_properties(self._deks[wrapped], allow_plaintext_files=False)

    def decryption_properties(self) -> Any:
        """What PyArrow needs to read the file through this client."""
        factory = pe.CryptoFactory(lambda _: self)
        return factory.file_decryption_properties(pe.KmsConnectionConfig(), pe.DecryptionConfiguration())
