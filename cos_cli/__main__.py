"""`python -m cos_cli` is `cos`."""

from cos_cli.entry import main

main()
