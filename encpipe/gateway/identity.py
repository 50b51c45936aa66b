"""Who a client is: the one URI in the subject alternative names of its certificate. No I/O.

The certificate was checked by TLS (chain, dates, proof of its key). What TLS does not check is the *kind* of
a name: the text `spiffe://example.org/trainer` may stand in a DNS name, an e-mail address or, without any
alternative name, in the common name, and many CAs let the asker choose those (docs/adr/0013).
"""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509

from encpipe.errors import StorageError

IDENTITY: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}://[!-~]{1,500}")
"""A URI as a rule names it. It is compared as it stands; nothing is folded, decoded or resolved."""


def identity_of(certificate: bytes) -> str:
    """The identity in a client's certificate (PEM), which TLS has checked.

    Raises `StorageError` `gateway-denied` unless its alternative names are exactly one, a URI.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate)
        names = list(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise _refusal("has no subject alternative name that can be read") from None
    if len(names) != 1:
        raise _refusal(f"has {len(names)} subject alternative names")
    if not isinstance(names[0], x509.UniformResourceIdentifier):
        raise _refusal("has a subject alternative name that is no URI")
    if not IDENTITY.fullmatch(names[0].value):
        raise _refusal("has a URI that is no identity")
    return names[0].value


def _refusal(what: str) -> StorageError:
    return StorageError(
        f"the client's certificate {what}",
        hint="it has to have exactly one, a URI such as spiffe://example.org/trainer",
        code="gateway-denied",
    )
