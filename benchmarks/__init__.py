"""Every figure that encpipe promises, measured against PyArrow without encryption: `python -m benchmarks`."""
