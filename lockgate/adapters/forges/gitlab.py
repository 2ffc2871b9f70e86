"""GitLab's API (v4) through python-gitlab: gitlab.com and own servers.

https://docs.gitlab.com/api/merge_requests/
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from lockgate.domain.approval import Account, PullRequest, Review
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.errors import ForgeError

if TYPE_CHECKING:
    from gitlab.v4.objects import Project

T = TypeVar("T")

MAX_VERSIONS = 100
_AT_ONCE: dict[str, Any] = {"obey_rate_limit": False}
"""Whoever asks asks again: a driver does not sleep in here."""


class GitLab:
    """One project."""

    def __init__(self, repository: str, token: str, *, url: str | None, seconds: int) -> None:
        self._name, self._token, self._url, self._seconds = repository, token, url, seconds
        self._project: Project | None = None

    def find(self, branch: str, base: str) -> int | None:
        def ask(project: Project) -> int | None:
            requests = project.mergerequests.list(
                iterator=True, source_branch=branch, target_branch=base, state="all", **_AT_ONCE
            )
            # The filter is the forge's; what it lets through is looked at.
            found = [
                int(r.iid)
                for r in islice(requests, 20)
                if r.source_branch == branch and r.source_project_id == r.target_project_id
            ]
            return max(found, default=None)

        return self._ask(ask)

    def open(self, branch: str, base: str, title: str, body: str) -> int:
        def ask(project: Project) -> int:
            made = project.mergerequests.create(
                {
                    "source_branch": branch,
                    "target_branch": base,
                    "title": title,
                    "description": body,
                },
                **_AT_ONCE,
            )
            return int(made.iid)

        return self._ask(ask)

    def look(self, number: int) -> PullRequest:
        return self._ask(lambda project: self._read(project, number))

    def _read(self, project: Project, number: int) -> PullRequest:
        said = project.mergerequests.get(number, **_AT_ONCE)
        if said.iid != number:
            raise ValueError(f"asked for {number}, told of {said.iid}")
        # Locked: it is being merged just now.
        state = "open" if said.state in ("opened", "locked") else said.state
        facts: dict[str, Any] = {
            "number": number,
            "url": said.web_url,
            "state": state,
            "base": said.target_branch,
            "branch": said.source_branch,
            "fork": said.source_project_id != said.target_project_id,
            "head": said.sha,
        }
        if state == "merged":
            merged_by = getattr(said, "merge_user", None) or getattr(said, "merged_by", None)
            # A merge that only moved the branch forward has no commit of its own.
            landed = said.merge_commit_sha or said.squash_commit_sha or said.sha
            facts |= {"landed": landed, "by": _account(merged_by), "at": _time(said.merged_at),
                      "approvals": _approvals(said)}  # fmt: skip
        elif state == "closed":
            facts |= {"by": _account(said.closed_by), "at": _time(said.closed_at)}
        return PullRequest.model_validate(facts)

    def _ask(self, question: Callable[[Project], T]) -> T:
        """Put it, and translate what may go wrong."""
        import gitlab
        import requests

        try:
            return question(self._open_project())
        except gitlab.GitlabError as error:
            code = error.response_code
            what = f"answers {code}" if code else "answers nonsense, or redirects"
            # One line, and never what was sent.
            shown = " ".join(str(error.error_message).replace(self._token, "…").split())[:200]
            raise ForgeError(f"GitLab {what}: {shown}") from error
        except requests.TooManyRedirects as error:
            raise ForgeError("GitLab redirects: give the policy its own address") from error
        except requests.RequestException as error:
            raise ForgeError(f"GitLab does not answer: {type(error).__name__}") from error
        except (
            ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError, ArithmeticError,
        ) as error:  # fmt: skip
            raise ForgeError(
                f"what answers is not GitLab's API ({type(error).__name__})"
            ) from error

    def _open_project(self) -> Project:
        if self._project is None:
            import gitlab
            import requests

            session = requests.Session()
            # No redirect is followed: the token is for this host alone.
            session.max_redirects = 0
            client = gitlab.Gitlab(
                self._url or "https://gitlab.com", oauth_token=self._token, timeout=self._seconds,
                retry_transient_errors=False, per_page=100, session=session,
                # Pages stay on the host that was named, whatever its answers say.
                keep_base_url=True,
            )  # fmt: skip
            self._project = client.projects.get(self._name, lazy=True)
        return self._project


def _approvals(said: Any) -> tuple[Review, ...]:
    """GitLab does not say what an approval was of. Where the request never had another head, it was of this one; else of
    none that counts."""
    versions = list(islice(said.diffs.list(iterator=True, **_AT_ONCE), MAX_VERSIONS + 1))
    heads = {version.head_commit_sha for version in versions}
    others = sorted(heads - {said.sha})
    if len(versions) > MAX_VERSIONS or not heads:
        raise ValueError("the versions of the merge request are not to be had")
    commit = others[0] if others else said.sha
    given = said.approvals.get(**_AT_ONCE).approved_by
    accounts = [_account(entry["user"]) for entry in given]
    return tuple(Review(by=account, commit=commit) for account in accounts if account is not None)


def _account(user: Any) -> Account | None:
    """None for an account that is gone."""
    return Account(login=user["username"], id=user["id"]) if user is not None else None


def _time(text: str | None) -> str | None:
    return rfc3339(datetime.fromisoformat(text)) if text is not None else None
