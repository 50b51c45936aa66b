"""What crosses between client and gateway as JSON: requests, filters, errors. No I/O.

A filter is what `pyarrow.parquet.read_table` takes, an OR of ANDs of (column, op, value); no expression of
PyArrow's is ever read from foreign bytes. A value is one object whose name is its kind, since JSON has
neither dates nor exact floats: {"s": text}, {"i": "-3"}, {"f": "0x1.8p+1"}, {"b": true}, {"x": base64url},
{"d": "2026-01-31"}, {"t": "2026-01-31T09:30:00+00:00"}, {"l": [values]}.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from encpipe import aead, errors, strictjson
from encpipe.errors import CODES, ConfigError, EncpipeError, ManifestError

Condition: TypeAlias = tuple[str, str, Any]
Conditions: TypeAlias = tuple[tuple[Condition, ...], ...]
"""An OR of ANDs."""

MAX_REQUEST_BYTES: Final = 256 << 10
MAX_COLUMNS: Final = 10_000
MAX_CONDITIONS: Final = 1000
MAX_VALUES: Final = 10_000
"""Values in one list of `in`."""
OPERATORS: Final = ("=", "==", "!=", "<", ">", "<=", ">=", "in", "not in")
LIST_OPERATORS: Final = ("in", "not in")
DATASET_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
"""What a dataset is called in the gateway's configuration and in URLs."""
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_MARK: Final = '{"encpipe":'
_FORM: Final = 'a filter is a list of [column, op, value], or a list of such lists: [["age", ">", 3]]'


@dataclass(frozen=True)
class Request:
    """What a client wants of a dataset: columns (None: all it may see), a filter, the state it has begun to
    read (`core`), and the row groups from the first to before the second of `groups`; None: any, all."""

    dataset: str
    columns: tuple[str, ...] | None = None
    filter: Conditions | None = None
    core: str | None = None
    groups: tuple[int, int] | None = None


def conditions(given: Any) -> Conditions | None:
    """A filter as a person writes it, brought to one form. Raises `ConfigError` `filter`."""
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError("the filter is no list of conditions", hint=_FORM, code="filter")
    flat = all(_is_condition(item) for item in given)
    groups = [given] if flat else given
    if sum(len(group) if isinstance(group, list | tuple) else 1 for group in groups) > MAX_CONDITIONS:
        raise ConfigError(f"the filter has more than {MAX_CONDITIONS} conditions", code="filter")
    return tuple(_group(group) for group in groups)


def _is_condition(item: Any) -> bool:
    return isinstance(item, list | tuple) and len(item) == 3 and isinstance(item[0], str)


def _group(group: Any) -> tuple[Condition, ...]:
    if not isinstance(group, list | tuple) or not group or not all(_is_condition(item) for item in group):
        raise ConfigError("the filter is no list of conditions", hint=_FORM, code="filter")
    return tuple(_condition(*item) for item in group)


def _condition(column: str, op: Any, value: Any) -> Condition:
    if op not in OPERATORS:
        raise ConfigError(
            f"the filter has the operator {str(op)[:20]!r}",
            hint=f"one of: {', '.join(OPERATORS)}",
            code="filter",
        )
    if (op in LIST_OPERATORS) != isinstance(value, list | tuple | set | frozenset):
        raise ConfigError(f"the filter's operator {op!r} does not fit its value", hint=_FORM, code="filter")
    if op in LIST_OPERATORS:
        values = tuple(value)
        if not 1 <= len(values) <= MAX_VALUES:
            raise ConfigError(f"a list in the filter has {len(values)} values", hint=_FORM, code="filter")
        for one in values:
            _wire_value(one)
        return column, op, values
    _wire_value(value)
    return column, op, value


def columns_of(filter: Conditions | None) -> list[str]:
    """The columns that a filter names, each once."""
    return list(dict.fromkeys(column for group in filter or () for column, _, _ in group))


def as_filter(filter: Conditions | None) -> list[list[Condition]] | None:
    """The form that `Dataset.scan` takes."""
    if filter is None:
        return None
    return [[(c, op, list(v) if op in LIST_OPERATORS else v) for c, op, v in group] for group in filter]


def as_wire(filter: Conditions | None) -> Any:
    """The JSON value of a filter."""
    if filter is None:
        return None
    return [[[column, op, _wire_value(value)] for column, op, value in group] for group in filter]


def _wire_value(value: Any) -> dict[str, Any]:
    if hasattr(value, "as_py"):
        value = value.as_py()
    match value:
        case bool():
            return {"b": value}
        case int() if -(2**63) <= value < 2**64:
            return {"i": str(value)}
        case float():
            return {"f": value.hex()}
        case str():
            return {"s": value}
        case bytes():
            return {"x": aead.to_text(value)}
        case dt.datetime():
            return {"t": value.isoformat()}
        case dt.date():
            return {"d": value.isoformat()}
        case tuple() | list():
            return {"l": [_wire_value(item) for item in value]}
    raise ConfigError(
        f"a filter cannot send a value of type {type(value).__name__} to a gateway",
        hint="text, bytes, numbers, true and false, dates and times can be sent",
        code="filter",
    )


def from_wire(value: Any) -> Conditions | None:
    """The filter in foreign JSON. Raises `ConfigError` `filter`."""
    if value is None:
        return None
    try:
        plain = [[(column, op, _value(sent)) for column, op, sent in group] for group in value]
    except (TypeError, ValueError, OverflowError):
        raise ConfigError("the filter is not well formed", hint=_FORM, code="filter") from None
    return conditions(plain)


def _value(sent: Any, *, nested: bool = False) -> Any:
    if not isinstance(sent, dict) or len(sent) != 1:
        raise TypeError("not a value")
    kind, value = next(iter(sent.items()))
    if kind == "l" and isinstance(value, list) and not nested:
        return tuple(_value(item, nested=True) for item in value)
    if kind == "b" and isinstance(value, bool):
        return value
    read = _READ.get(kind)
    if read is None or not isinstance(value, str):
        raise TypeError("not a value")
    return read(value)


def _integer(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise ValueError("not a number")
    return int(text)


_READ: Final[dict[str, Callable[[str], Any]]] = {
    "s": str,
    "i": _integer,
    "f": float.fromhex,
    "x": aead.from_text,
    "d": dt.date.fromisoformat,
    "t": dt.datetime.fromisoformat,
}


def request_bytes(request: Request) -> bytes:
    """A request as it is sent. Raises `ConfigError` `filter` for one that is too long."""
    columns = None if request.columns is None else list(request.columns)
    sent = {"v": 1, "dataset": request.dataset, "columns": columns, "filter": as_wire(request.filter)}
    groups = None if request.groups is None else list(request.groups)
    data = strictjson.dumps({**sent, "core": request.core, "groups": groups})
    if len(data) > MAX_REQUEST_BYTES:
        raise ConfigError(
            "the filter and the columns are too long for one request", hint="choose less", code="filter"
        )
    return data


def read_request(data: bytes) -> Request:
    """A foreign request. Raises `ConfigError` `filter`."""
    if len(data) > MAX_REQUEST_BYTES:
        raise ConfigError("the request is too long", code="filter")
    try:
        value = strictjson.loads(data, what="the request")
        fields = strictjson.Fields(value, what="the request")
        if fields.integer("v") != 1:
            fields.refuse("is of another version of encpipe")
        request = Request(
            fields.match("dataset", DATASET_NAME),
            None if value.get("columns") is None else fields.texts("columns", limit=MAX_COLUMNS),
            from_wire(value.get("filter")),
            None if value.get("core") is None else fields.match("core", _HEX),
            None if value.get("groups") is None else _groups(fields),
        )
    except ManifestError as error:
        raise ConfigError(error.message, hint="use encpipe.open_gateway", code="filter") from None
    return request


def _groups(fields: strictjson.Fields) -> tuple[int, int]:
    value = fields.array("groups", limit=2)
    if len(value) != 2 or any(type(number) is not int for number in value):
        fields.refuse("has groups that are not two numbers")
    return value[0], value[1]


def error_text(error: EncpipeError) -> str:
    """An error as it crosses: the text of a gRPC status."""
    told = {"kind": type(error).__name__, "code": error.code, "message": error.message, "hint": error.hint}
    return json.dumps({"encpipe": told})


def read_error(text: str) -> EncpipeError | None:
    """The error in what PyArrow says of a failed call; None where a gateway did not send one."""
    start = text.find(_MARK)
    if start < 0:
        return None
    try:
        told = json.JSONDecoder().raw_decode(text, start)[0]["encpipe"]
        kind, code = getattr(errors, str(told["kind"]), None), str(told["code"])
        message, hint = str(told["message"])[:2000], str(told["hint"])[:2000]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(kind, type) and issubclass(kind, EncpipeError) and code in CODES):
        return None
    return kind(_printable(message), hint=_printable(hint), code=code)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def names(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    """Column names as a request has them. Raises `ConfigError` `filter` for one string."""
    if isinstance(columns, str):
        raise ConfigError(f"columns is {columns!r}: it is a list of names", code="filter")
    return None if columns is None else tuple(columns)
