"""GitHub's API (v3) through PyGithub: github.com and GitHub Enterprise Server.

https://docs.github.com/en/rest/pulls
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from lockgate.domain.approval import Account, PullRequest, Review
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.errors import ForgeError

if TYPE_CHECKING:
    from github.PullRequest import PullRequest as TheirPull
    from github.Repository import Repository

T = TypeVar("T")

MAX_REVIEWS = 500


class GitHub:
    """One repository."""

    def __init__(self, repository: str, token: str, *, url: str | None, seconds: int) -> None:
        self._name, self._token, self._url, self._seconds = repository, token, url, seconds
        self._client: Repository | None = None

    def find(self, branch: str, base: str) -> int | None:
        owner = self._name.split("/", 1)[0]

        def ask(repository: Repository) -> int | None:
            pulls = repository.get_pulls(
                state="all", head=f"{owner}:{branch}", base=base, sort="created", direction="desc"
            )
            # The filter is the forge's; what it lets through is looked at.
            found = [p.number for p in islice(pulls, 20) if p.head.ref == branch and _is_own(p)]
            return max(found, default=None)

        return self._ask(ask)

    def open(self, branch: str, base: str, title: str, body: str) -> int:
        def ask(repository: Repository) -> int:
            pull = repository.create_pull(
                base, branch, title=title, body=body, maintainer_can_modify=False
            )
            return int(pull.number)

        return self._ask(ask)

    def look(self, number: int) -> PullRequest:
        return self._ask(lambda repository: self._read(repository, number))

    def _read(self, repository: Repository, number: int) -> PullRequest:
        pull = repository.get_pull(number)
        if pull.raw_data.get("number") != number:
            raise ValueError(f"asked for {number}, told of another one")
        facts: dict[str, Any] = {
            "number": number,
            "url": pull.html_url,
            "state": "merged" if pull.merged is True else pull.state,
            "base": pull.base.ref,
            "branch": pull.head.ref,
            "fork": not _is_own(pull),
            "head": pull.head.sha,
        }
        if pull.merged is True:
            facts |= {"landed": pull.merge_commit_sha, "by": _account(pull.merged_by),
                      "at": _time(pull.merged_at), "approvals": _approvals(pull, pull.merged_at)}  # fmt: skip
        elif pull.state == "closed":
            # Only as an issue it says by whom.
            facts |= {"by": _account(repository.get_issue(number).closed_by),
                      "at": _time(pull.closed_at)}  # fmt: skip
        return PullRequest.model_validate(facts)

    def _ask(self, question: Callable[[Repository], T]) -> T:
        """Put it, and translate what may go wrong: PyGithub lets foreign and its own errors through, and runs into bare Python
        ones where an answer is not what it should be."""
        import github
        import requests

        try:
            return question(self._repository())
        except github.GithubException as error:
            said = error.data.get("message", "") if isinstance(error.data, dict) else ""
            # One line, and never what was sent.
            shown = " ".join(str(said).replace(self._token, "…").split())[:200]
            raise ForgeError(f"GitHub answers {error.status}: {shown}") from error
        except requests.RequestException as error:
            raise ForgeError(f"GitHub does not answer: {type(error).__name__}") from error
        except (
            github.BadAttributeException, ValueError, TypeError, KeyError, AttributeError,
            AssertionError, RuntimeError, ArithmeticError,
        ) as error:  # fmt: skip
            raise ForgeError(
                f"what answers is not GitHub's API, or redirects ({type(error).__name__})"
            ) from error

    def _repository(self) -> Repository:
        if self._client is None:
            import github

            client = github.Github(
                base_url=(self._url or "https://api.github.com").rstrip("/"),
                auth=github.Auth.Token(self._token), timeout=self._seconds,
                # Whoever asks asks again: a driver does not sleep in here.
                retry=None, seconds_between_requests=0, seconds_between_writes=0, lazy=True,
            )  # fmt: skip
            self._client = client.get_repo(self._name)
        return self._client


def _is_own(pull: TheirPull) -> bool:
    """Whether its branch is the repository's own."""
    ours = pull.base.repo.full_name.casefold()
    return pull.head.repo is not None and pull.head.repo.full_name.casefold() == ours


def _approvals(pull: TheirPull, merged: datetime | None) -> tuple[Review, ...]:
    """The last word of each reviewer, where it was a yes and came before the merge."""
    last: dict[int, Review | None] = {}
    for count, review in enumerate(pull.get_reviews()):
        if count >= MAX_REVIEWS:
            raise ValueError(f"more than {MAX_REVIEWS} reviews")
        said, when = review.state, review.submitted_at
        if said not in ("APPROVED", "CHANGES_REQUESTED", "DISMISSED"):
            continue
        account = _account(review.user)
        given = said == "APPROVED"
        if account is None or (given and (when is None or merged is None or when > merged)):
            continue
        known = given and review.commit_id is not None
        last[account.id] = Review(by=account, commit=review.commit_id) if known else None
    return tuple(review for review in last.values() if review is not None)


def _account(user: Any) -> Account | None:
    """None for an account that is gone."""
    return Account(login=user.login, id=user.id) if user is not None else None


def _time(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return rfc3339(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))
