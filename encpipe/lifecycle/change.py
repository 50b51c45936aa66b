"""One change of the wrappings, in manifest and stopped writes, and the look for copies of what went."""

from __future__ import annotations

from collections.abc import Iterable

from encpipe.access import Access
from encpipe.kms.registry import MasterKeys
from encpipe.lifecycle.keysline import Edit, KeysReport, Leftover, replace_wrappings
from encpipe.lifecycle.leftovers import Journals, leftovers


def change_keys(
    access: Access, master_keys: MasterKeys, edit: Edit, key_names: Iterable[str] | None, *, dry_run: bool
) -> KeysReport:
    """Change the wrappings in the manifest, then in the journals of stopped writes, and tell what is left.

    Raises as `replace_wrappings` does. A journal that cannot be changed (a live writer's, an edited one)
    stays as it is, and its wrappings are among the leftovers.
    """
    storage = access.storage
    wanted = None if key_names is None else tuple(key_names)
    with master_keys.audit.refusals(edit.event, dataset=storage.url):
        changed = replace_wrappings(storage, master_keys, edit, wanted, dry_run=dry_run)
    found, calls = changed.found, changed.kms_calls
    left: tuple[Leftover, ...] = ()
    if not dry_run:
        before = edit.wraps
        stopped = Journals(storage, master_keys, changed, edit, wanted)
        stopped.change()
        calls += stopped.calls + edit.wraps - before
        left = leftovers(storage, changed, wanted, stopped.made)
    return KeysReport(
        url=storage.url,
        dataset_id=found.core.dataset_id,
        generation=found.core.generation,
        revision=changed.revision,
        core_digest=found.head.digest,
        dry_run=dry_run,
        changes=changed.changes(),
        leftovers=left,
        kms_calls=calls,
        bytes_written=changed.bytes_written,
    )
