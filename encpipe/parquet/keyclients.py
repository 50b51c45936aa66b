"""The KMS clients that PyArrow calls for the DEKs of one file: the only importer of its encryption module."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import pyarrow.parquet.encryption as pe

from encpipe.errors import EncpipeError, UnwrapError
from encpipe.filelist import FileEntry
from encpipe.keyring import DatasetKeys, dek_commitment, unwrap_dek, wrap_dek
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
        column_keys=groups,
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
    were asked for. Arrow calls from several threads, about seven times for each column chunk."""

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
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[bytes, bytes]] = {}
        self.leaves = leaves
        self.asked: set[bytes] = set()
        self.footer_asked = False
        self.failure: EncpipeError | None = None

    def wrap_key(self, dek: bytes, key_id: str) -> NoReturn:
        raise NotImplementedError("a reader never wraps")

    def unwrap_key(self, wrapped: str, key_id: str) -> bytes:
        try:
            with self._lock:
                found = self._known.get((wrapped, key_id))
            if found is None:
                found = self._unwrap(wrapped, key_id)
                with self._lock:
                    self._known[(wrapped, key_id)] = found
        except EncpipeError as error:
            self.failure = self.failure or error
            raise
        dek, commitment = found
        self.asked.add(commitment)
        return dek

    def _unwrap(self, wrapped: str, key_id: str) -> tuple[bytes, bytes]:
        kek_id = self._keks.get(key_id)
        if kek_id is None:
            raise UnwrapError(
                f"file {self._entry.path} names a key that its generation does not have",
                hint="the file was swapped or edited: restore it from a copy you trust",
            )
        dek = unwrap_dek(self._keys.kek(kek_id), wrapped, file_id=self._entry.id, key_id=key_id)
        commitment = dek_commitment(self._entry.id, dek)
        is_footer = commitment == self._entry.footer_commitment
        if not is_footer and (self.leaves is None or commitment not in self.leaves):
            raise UnwrapError(
                f"file {self._entry.path} uses a data key that the file list does not commit to",
                hint="the file was rewritten after it was committed: restore it from a copy you trust",
                code="dek-commitment",
            )
        self.footer_asked = self.footer_asked or is_footer
        return dek, commitment

    def decryption_properties(self) -> Any:
        factory = pe.CryptoFactory(lambda _: self)
        return factory.file_decryption_properties(pe.KmsConnectionConfig(), pe.DecryptionConfiguration())
