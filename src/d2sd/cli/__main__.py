"""`python -m d2sd.cli` is the `d2sd` command."""

from d2sd.cli import main

main()
