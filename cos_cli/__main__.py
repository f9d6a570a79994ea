"""`python -m cos_cli` is `cos`."""

from cos_cli.main import main

main()
