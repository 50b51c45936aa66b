"""Key services. `BACKENDS` shows them all; each is imported on first use."""

from __future__ import annotations

from encpipe.kms.base import Destroyable, Destroyed, Kms, KmsSettings
from encpipe.kms.registry import BACKENDS, MasterKeys

__all__ = ["BACKENDS", "Destroyable", "Destroyed", "Kms", "KmsSettings", "MasterKeys"]
