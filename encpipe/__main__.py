"""`python -m encpipe` is `encpipe`."""

from encpipe.cli import main

main()
