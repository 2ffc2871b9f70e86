"""The GitOps repository: Git is the database, and this package its only reader and writer."""

from lockgate.adapters.git.process import Author
from lockgate.adapters.git.repository import CommitResult, GitOpsRepository
from lockgate.adapters.git.template import lay_down, template_directory

__all__ = ["Author", "CommitResult", "GitOpsRepository", "lay_down", "template_directory"]
