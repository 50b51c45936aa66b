"""`encpipe serve`."""

from __future__ import annotations

import queue
import signal
import threading
from typing import TYPE_CHECKING, Final

from encpipe.cli import options as opt
from encpipe.cli.output import Output, make_output
from encpipe.cli.parts import Facts, Part
from encpipe.errors import EncpipeError

if TYPE_CHECKING:
    from encpipe.gateway.server import Gateway

EXAMPLES = """
encpipe serve --config gateway.toml
"""
END: Final = (signal.SIGTERM, signal.SIGINT)


def serve(config: opt.ConfigFile = None, json: opt.Json = False) -> None:
    """Serve decrypted rows over mutual TLS (Arrow Flight) to clients that hold no key.

    The table gateway of the configuration says which datasets, to whom, and what of them. Ends at SIGTERM
    or Ctrl-C, when the streams under way have ended; at the second one at once. SIGHUP takes other rules.
    """
    from encpipe.gateway.server import Gateway

    settings = opt.settings(config)
    output = make_output(json=json)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (*END, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.put(number))
    gateway = Gateway.start(settings.config, master_keys=settings.master_keys)
    output.result(_payload(gateway), lambda: [_view(gateway)])
    _until_the_end(gateway, signals, output)


def _until_the_end(gateway: Gateway, signals: queue.SimpleQueue[int], output: Output) -> None:
    ending: list[threading.Thread] = []

    def wait() -> None:
        gateway.wait()
        signals.put(0)

    threading.Thread(target=wait, daemon=True).start()
    while number := signals.get():
        if number == signal.SIGHUP:
            try:
                gateway.reload()
            except EncpipeError as error:
                error.hint = f"the rules stay as they were; {error.hint}".removesuffix("; ")
                output.error(error)
            continue
        grace = 0.0 if ending else None
        ending.append(threading.Thread(target=gateway.stop, args=(grace,)))
        ending[-1].start()
    for thread in ending:
        thread.join()


def _payload(gateway: Gateway) -> dict[str, object]:
    return {"listening": gateway.address, "datasets": list(gateway.datasets)}


def _view(gateway: Gateway) -> Part:
    return Facts([("listening", gateway.address), ("datasets", ", ".join(gateway.datasets))])
