"""Resume states: where an epoch stands, bound to what its order depends on. No I/O.

A state is a plain dict of strings, numbers and lists, so that it fits into any checkpoint (`torch.load` with
`weights_only=True` takes it). It holds no data and no keys. It is not authenticated: seal it with the
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from encpipe.errors import ConfigError
from encpipe.torch.order import ORDER_VERSION
from encpipe.torch.share import Parts

FORMAT: Final = "encpipe loader state"
STATE_VERSION: Final = 1
MOST_EPOCH: Final = 2**31 - 1


@dataclass(frozen=True)
class Binding:
    """What a state goes with. A re-wrap changes none of it."""

    dataset_id: str
    core_digest: str
    columns: tuple[str, ...]
    filter: str | None
    missing_keys: tuple[str, ...]
    shuffle: bool
    seed: int
    lanes: int
    window: int
    uneven: str
    order_version: int = ORDER_VERSION


@dataclass(frozen=True)
class LoaderState:
    """An epoch and what is left of it (`encpipe.torch.share`).

    `exact` are the parts that are known; what the others say is right when all workers are in step.
    `finished` says that the epoch is over: the next iteration begins the one after.
    """

    binding: Binding
    generation: int
    epoch: int
    left: Parts
    exact: tuple[int, ...]
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """The state as users keep it."""
        found: dict[str, Any] = {"format": FORMAT, "version": STATE_VERSION}
        found |= {name: _plain(value) for name, value in asdict(self.binding).items()}
        for field in fields(self):
            if field.name != "binding":
                found[field.name] = _plain(getattr(self, field.name))
        return found

    def check(self, binding: Binding) -> None:
        """Raise `ConfigError` `resume-state` unless the state was made for `binding`."""
        for field in fields(Binding):
            ours, theirs = getattr(binding, field.name), getattr(self.binding, field.name)
            if ours != theirs:
                raise _refusal(
                    f"{_NAMES[field.name]}: the state has {_short(theirs)}, here it is {_short(ours)}"
                )
        if binding.shuffle and len(self.left) != binding.lanes:
            raise _refusal(f"it speaks of {len(self.left)} lanes instead of {binding.lanes}")


_NAMES: Final = {
    "dataset_id": "another dataset",
    "core_digest": "other data (another generation, or the dataset was re-encrypted)",
    "columns": "other columns",
    "filter": "another filter",
    "missing_keys": "other missing keys",
    "shuffle": "another shuffle",
    "seed": "another seed",
    "lanes": "another number of lanes",
    "window": "another window",
    "uneven": "another rule for uneven ranks",
    "order_version": "another version of the order",
}


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def parse_state(given: object) -> LoaderState:
    """A state from its dict. Raises `ConfigError` `resume-state` for anything that is none."""
    if not isinstance(given, Mapping) or given.get("format") != FORMAT:
        raise _refusal("it is not a state of an encpipe loader")
    version = given.get("version")
    if type(version) is not int or version != STATE_VERSION:
        raise _refusal(f"its version is {_short(version)}, and this encpipe reads {STATE_VERSION}")
    names = {field.name for cls in (Binding, LoaderState) for field in fields(cls)} - {"binding"}
    if set(given) != names | {"format", "version"}:
        raise _refusal("fields are missing or unknown")
    binding = Binding(**{field.name: _typed(field, given[field.name]) for field in fields(Binding)})
    rest = {f.name: _typed(f, given[f.name]) for f in fields(LoaderState) if f.name != "binding"}
    state = LoaderState(binding=binding, **rest)
    ranges = [found for part in state.left for found in part]
    sensible = all(0 <= start <= stop for start, stop in ranges) and 0 <= state.epoch <= MOST_EPOCH
    if not sensible or not set(state.exact) <= set(range(len(state.left))):
        raise _refusal("what it says is left makes no sense")
    return state


_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "str | None": (str, type(None)),
}


def _typed(field: Any, value: Any) -> Any:
    """The value as the field's type (written as text: annotations are not evaluated)."""
    if field.type == "Parts":
        return _parts(value)
    if field.type.startswith("tuple["):
        kind = str if "str" in field.type else int
        if isinstance(value, list | tuple) and all(type(item) is kind for item in value):
            return tuple(value)
    elif type(value) in _KINDS[field.type]:
        return value
    raise _refusal(f"its field {field.name!r} is not {field.type}")


def _parts(value: Any) -> Parts:
    lists = (list, tuple)
    if isinstance(value, lists) and all(isinstance(part, lists) for part in value):
        ranges = [found for part in value for found in part]
        if all(isinstance(r, lists) and len(r) == 2 and all(type(n) is int for n in r) for r in ranges):
            return tuple(tuple((start, stop) for start, stop in part) for part in value)
    raise _refusal("what it says is left is not a list of lists of ranges")


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One state out of those of all workers of a rank, for a loader with any number of workers or ranks.

    Raises `ConfigError` `resume-state` when they do not belong together.
    """
    parsed = [parse_state(state) for state in states]
    if not parsed:
        raise _refusal("there is none")
    first = max(parsed, key=lambda state: state.epoch)
    left = list(first.left)
    covered: set[int] = set()
    for state in parsed:
        state.check(first.binding)
        if state.epoch != first.epoch or len(state.left) != len(left) or covered & set(state.exact):
            raise _refusal("the workers' states do not belong together")
        covered |= set(state.exact)
        for part in state.exact:
            left[part] = state.left[part]
    finished = all(state.finished for state in parsed)
    return replace(first, left=tuple(left), exact=tuple(sorted(covered)), finished=finished).to_dict()


def find_states(given: object) -> Iterator[Mapping[str, Any]]:
    """The loader states within a nested state, such as that of torchdata's `StatefulDataLoader`."""
    if isinstance(given, Mapping):
        if given.get("format") == FORMAT:
            yield given
            return
        given = given.values()
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        for item in given:
            yield from find_states(item)


def _refusal(why: str) -> ConfigError:
    return ConfigError(
        f"the resume state does not fit: {why}",
        hint="give the loader the dataset, columns, filter, seed and order that it was made with",
        code="resume-state",
    )
