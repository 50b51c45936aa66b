"""What a write reads: files of Parquet, CSV, JSON lines and Arrow IPC, or any object that streams Arrow.

`FORMATS` shows every format with its suffixes; each module is imported on first use.
"""

from __future__ import annotations

from encpipe.sources.base import Source, SourceFile, SourceReader
from encpipe.sources.opening import FORMATS, open_source

__all__ = ["FORMATS", "Source", "SourceFile", "SourceReader", "open_source"]
