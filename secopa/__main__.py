"""`python -m secopa`."""

from secopa.cli import main

main()
