"""The GitOps repository: Git is the database, and this package its only reader and writer."""

from lockgate.adapters.git.changes import Build, CommitResult, Decide, FileChange, Render
from lockgate.adapters.git.layout import EMBEDDED, Admission, Agent, Cloud, Layout
from lockgate.adapters.git.log import Touched
from lockgate.adapters.git.process import Author
from lockgate.adapters.git.repository import GitOpsRepository
from lockgate.adapters.git.request_branches import RequestBranches
from lockgate.adapters.git.template import LaidDown, lay_down, template_directory
from lockgate.adapters.git.tracks import read_tracks

__all__ = [
    "EMBEDDED",
    "Admission",
    "Agent",
    "Author",
    "Build",
    "Cloud",
    "CommitResult",
    "Decide",
    "FileChange",
    "GitOpsRepository",
    "LaidDown",
    "Layout",
    "Render",
    "RequestBranches",
    "Touched",
    "lay_down",
    "read_tracks",
    "template_directory",
]
