"""`python -m compll`."""

from compll.cli import main

main()
