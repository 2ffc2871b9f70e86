"""The GitOps repository: Git is the database, and this package its only reader and writer."""

from lockgate.adapters.git.process import Author
from lockgate.adapters.git.repository import Build, CommitResult, GitOpsRepository, Render
from lockgate.adapters.git.template import Agent, LaidDown, lay_down, template_directory

__all__ = [
    "Agent",
    "Author",
    "Build",
    "CommitResult",
    "GitOpsRepository",
    "LaidDown",
    "Render",
    "lay_down",
    "template_directory",
]
