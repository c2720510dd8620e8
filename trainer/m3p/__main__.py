"""`python -m m3p`: the same as the command `m3p`."""

from m3p.cli.main import main

main()
