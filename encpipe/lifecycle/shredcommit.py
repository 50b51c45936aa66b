"""How a shred begins and commits: confirmed by the dataset id, and on top of what others commit meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from encpipe.access import Access
from encpipe.audit import Facts
from encpipe.errors import ConfigError, ConflictError, EncpipeError
from encpipe.lifecycle.keysline import MAX_TRIES, only
from encpipe.lifecycle.tombstone import Made
from encpipe.manifest import Manifest
from encpipe.state import MANIFEST_PATH, read_manifest


def check_confirmed(access: Access, dataset_id: str, confirm: str | None, *, dry_run: bool) -> None:
    """Raise `ConfigError` unless `confirm` is the dataset's id; a dry run may go without."""
    if confirm != dataset_id and not (dry_run and confirm is None):
        raise ConfigError(
            f"{access.storage.url} is dataset {dataset_id}, and that is not what was confirmed",
            hint="to shred it, confirm its dataset id: --confirm ID, confirm=",
            code="usage",
        )


def replace_manifest(
    access: Access,
    dataset_id: str,
    make: Callable[[bytes, Manifest], Made | None],
    is_done: Callable[[Manifest], bool],
    facts: Callable[[Manifest], Facts],
) -> Manifest:
    """Commit what `make` makes of the newest manifest, unless it `is_done` already; the manifest of after.

    `make` answers None when that is not the newest any more. Raises `ConflictError` where another dataset
    was put in the place of this one, or others were always first; and what `make` and the storage raise.
    """
    storage, audit = access.storage, access.master_keys.audit
    for _ in range(MAX_TRIES):
        data, found = read_manifest(storage)
        if found.core.dataset_id != dataset_id:
            raise ConflictError(
                "another dataset was put in the place of this one in the meantime",
                hint="look at what is there (encpipe inspect), then run the command again",
            )
        if is_done(found):
            return found
        made = make(data, found)
        if made is None:
            continue
        told = facts(found)
        audit.record("shred", **told)
        if made.sealed is not None:
            storage.create(made.core.list_name, made.sealed)
        try:
            storage.commit(MANIFEST_PATH, made.data, check=only(data), is_ours=made.data.__eq__)
        except ConflictError as error:
            audit.refuse("shred", error, **told)
            if made.sealed is not None:
                with contextlib.suppress(EncpipeError):
                    storage.delete(made.core.list_name)
            continue
        return read_manifest(storage)[1]
    raise ConflictError(f"other writers were first {MAX_TRIES} times", hint="run the command again")
