"""The sinks by the form that `audit.sink` names them in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from encpipe.audit.base import Sink
from encpipe.audit.chains import LoggerText, ProcessChain, StderrText
from encpipe.audit.files import FileSink
from encpipe.config import SINK_FORMS
from encpipe.errors import ConfigError

_CHAINS: Final[dict[str, ProcessChain]] = {}
"""One for the whole process: a chain has one start and one end."""


def make_sink(form: str) -> Sink:
    """The sink of this form. No I/O. Raises `ConfigError` for another form."""
    kind, _, rest = form.partition(":")
    if form == "stderr":
        return _CHAINS.get(form) or _CHAINS.setdefault(form, ProcessChain(StderrText()))
    if kind == "logger" and rest:
        return _CHAINS.get(form) or _CHAINS.setdefault(form, ProcessChain(LoggerText(rest)))
    if kind == "file" and rest:
        return FileSink(Path(rest).absolute())
    raise ConfigError(f"audit.sink is {form[:60]!r}", hint=f"one of: {', '.join(SINK_FORMS)}")
