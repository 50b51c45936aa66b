"""The audit log: who opened, unwrapped, encrypted, decrypted or changed what; hash-chained JSON lines.

`lines` is what a line is, `sinks` where lines go, `trail` what operations call, `checking` proves a log. The
format and what it does not show: docs/audit.md.
"""

from __future__ import annotations

from encpipe.audit.checking import AuditCheck, verify_audit
from encpipe.audit.lines import Event, Facts
from encpipe.audit.trail import OFF, Audit, audit_of

__all__ = ["OFF", "Audit", "AuditCheck", "Event", "Facts", "audit_of", "verify_audit"]
