"""The errors for what is no answer of a service: silence, a torn answer, an SDK that met the unexpected."""

from __future__ import annotations

from encpipe.errors import KmsError, KmsUnavailableError


def silent(action: str, where: str, error: BaseException) -> KmsUnavailableError:
    """The connection failed."""
    return KmsUnavailableError(
        f"no answer to {action} from {where}: {type(error).__name__}",
        hint="check the network and the address in the configuration; wrapped keys are safe",
    )


def torn(action: str, where: str, service: str, error: BaseException | None = None) -> KmsUnavailableError:
    """It answered with something that `service` does not say."""
    name = f": {type(error).__name__}" if error is not None else ""
    return KmsUnavailableError(
        f"the answer to {action} from {where} cannot be read{name}",
        hint=f"is this {service}? a proxy between may have cut the answer",
    )


def unexpected(action: str, uri: str, extra: str, error: BaseException) -> KmsError:
    """The SDK raised what it is not known to raise."""
    return KmsError(
        f"{action} on {uri} failed: {type(error).__name__}",
        hint=f"the SDK met what it does not expect: pip install -U 'encpipe[{extra}]'; report it if it stays",
    )
