"""`python -m casync`."""

from casync.cli import main

main()
