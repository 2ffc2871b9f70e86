"""`python -m lockgate.cli`: the same as the `lockgate` command."""

from lockgate.cli import main

main()
