"""Parsers and checks of untrusted files: pure, bounded in memory and time, raising nothing but saying what is wrong.

They take bytes and names, never open files; `lockgate.adapters.scanners` reads the files and adds the scanners of others.
"""

from lockgate.domain.scanning.problems import Problem

__all__ = ["Problem"]
