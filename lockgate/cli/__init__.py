"""The command line. Exit codes: 0 pass, 3 refused by a gate or a verdict, 2 usage, 1 failure."""

from lockgate.cli.app import main

__all__ = ["main"]
