"""`python -m pvpatch`."""

from pvpatch.cli import main

main()
