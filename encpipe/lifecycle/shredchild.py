"""The fresh process of a shred: tries to open what was shredded, and tells what it met.

Run as `python -m encpipe.lifecycle.shredchild` by `shredtrial`, which tells what stands on standard input.
It answers on standard output with a JSON object, whose `tried` lists `[what, error code]`; the code is empty
where it opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from encpipe import strictjson
from encpipe.errors import EncpipeError
from encpipe.keys import KeyContext
from encpipe.kms.registry import MasterKeys
from encpipe.manifest import parse_wrappings
from encpipe.state import load_keys, read_list
from encpipe.storage import Storage, open_storage
from encpipe.strictjson import Fields


def main() -> None:
    """Read, try, answer."""
    asked = json.loads(sys.stdin.buffer.readline())
    place, keys = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our parent, through a pipe
    config = replace(keys.config, kms=asked["kms"], storage=asked["storage"])
    keys = keys.under(config)
    if asked["keyring"] is not None:
        keys.receive_unlocked(asked["keyring"])
        os.close(asked["keyring"])
    with contextlib.closing(open_storage(place, config=config, options=asked["options"])) as storage:
        if asked["partition_keks"] is not None:
            answers = [*_from_lists(storage, keys, asked["partition_keks"])]
        else:
            answers = [*_from_storage(storage, keys, asked["keks"]), *_from_copies(keys, asked)]
    sys.stdout.buffer.write(strictjson.dumps({"tried": answers}))


def _from_storage(storage: Storage, keys: MasterKeys, keks: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What the dataset as it is now gives: each of the KEKs, or itself where none is asked for."""
    try:
        _, _, held = load_keys(storage, keys)
    except EncpipeError as error:
        for what in [f"KEK {kek_id} of {name}" for kek_id, name in keks.items()] or ["the dataset"]:
            yield what, error.code
        return
    if not keks:
        yield "the dataset", ""
    for kek_id, name in keks.items():
        yield f"KEK {kek_id} of {name}", _code(lambda kek_id=kek_id: held.kek(kek_id))


def _from_lists(storage: Storage, keys: MasterKeys, keks: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Which partition KEKs the lists of all generations give."""
    there: set[str] = set()
    code = "shredded"
    try:
        _, found, held = load_keys(storage, keys)
        for tagged in (*found.retained, found.head):
            files = read_list(storage, tagged, held.kek(tagged.core.footer_kek.id))
            there |= {kek.id for kek in files.partition_keks}
    except EncpipeError as error:
        code = error.code
    for kek_id, name in keks.items():
        yield f"partition KEK {kek_id} of {name}", "" if kek_id in there else code


def _from_copies(keys: MasterKeys, asked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the master keys make of wrappings that somebody may have kept."""
    for kek_id, some in parse_wrappings(Fields(asked, what="what is asked for")).items():
        name = asked["names"][kek_id]
        context = KeyContext(asked["dataset_id"], name, kek_id)
        for wrapped in some:

            def unwrap(wrapped: Any = wrapped, name: str = name, context: KeyContext = context) -> object:
                trusting = keys.trusting(
                    {name: (wrapped.master_key,)}
                )  # the keyring vouches no more for what is gone
                return trusting.get(wrapped.master_key, key_name=name).unwrap(wrapped, aad=context)

            version = f" version {wrapped.version}" if wrapped.version else ""
            yield f"an old wrapping of {name} by {wrapped.master_key}{version}", _code(unwrap)


def _code(attempt: Any) -> str:
    try:
        attempt()
    except EncpipeError as error:
        return error.code
    return ""


if __name__ == "__main__":
    main()
