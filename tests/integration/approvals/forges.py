"""A double of GitHub's API v3 and GitLab's API v4 on loopback, after their public formats, over a real bare repository.

https://docs.github.com/en/rest/pulls https://docs.gitlab.com/api/merge_requests/ https://docs.gitlab.com/api/merge_request_approvals/
"""

from __future__ import annotations

import json
import threading
import urllib.parse
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from tests.integration.git.repositories import git

REPOSITORY = "org/gitops"
TOKEN = "forge-token-of-the-tests"
IDS = {name: number for number, name in enumerate(("mara-gh", "joe-gh", "eve-gh", "dev"), 101)}


@dataclass
class Pull:
    """One pull request, as the double keeps it."""

    number: int
    branch: str
    base: str
    title: str
    body: str
    heads: list[str]
    state: Literal["open", "closed", "merged"] = "open"
    by: str | None = None
    landed: str | None = None
    at: str | None = None
    reviews: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(who, GitHub's word, head, time)"""


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ForgeDouble:
    """Serves until `close`; people act through its methods."""

    def __init__(self, kind: Literal["github", "gitlab"], remote: Path, work: Path) -> None:
        self.kind, self.remote, self.work = kind, remote, work
        self.pulls: list[Pull] = []
        self.fault: str | None = None
        self.asked: list[str] = []
        self.freed = threading.Event()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                double._serve(self, None)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                double._serve(self, json.loads(self.rfile.read(length) or b"{}"))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def policy(self) -> dict[str, str]:
        """As `forge` in policy.yaml."""
        url = self.address + ("/api/v3" if self.kind == "github" else "")
        return {"kind": self.kind, "repository": REPOSITORY, "url": url}

    def close(self) -> None:
        self.freed.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    # What people do.

    @property
    def pull(self) -> Pull:
        (found,) = self.pulls
        return found

    def pushed(self, pull: Pull) -> str:
        """What the branch is at now."""
        found = git("rev-parse", "--verify", "-q", pull.branch, at=self.remote, check=False)
        if pull.state == "open" and found.strip() and found.strip() != pull.heads[-1]:
            pull.heads.append(found.strip())
        return pull.heads[-1]

    def review(self, who: str, word: str = "APPROVED", head: str | None = None) -> None:
        pull = self.pull
        pull.reviews.append((who, word, head or self.pushed(pull), now()))

    def merge(self, who: str, how: Literal["merge", "squash"] = "merge") -> None:
        """The button: a commit on the base branch, and the branch removed."""
        pull = self.pull
        self.pushed(pull)
        pull.landed = self.lands(pull, how)
        git("update-ref", "-d", f"refs/heads/{pull.branch}", at=self.remote)
        pull.state, pull.by, pull.at = "merged", who, now()

    def lands(self, pull: Pull, how: Literal["merge", "squash"] = "merge") -> str:
        git("fetch", "--quiet", "origin", at=self.work)
        git("checkout", "--quiet", "--detach", f"origin/{pull.base}", at=self.work)
        option = "--squash" if how == "squash" else "--no-ff"
        head = self.pushed(pull)
        git(
            "merge",
            "--quiet",
            option,
            *(["-m", "Merged"] if how == "merge" else []),
            head,
            at=self.work,
        )
        if how == "squash":
            git("commit", "--quiet", "-m", "Squashed", at=self.work)
        git("push", "--quiet", "origin", f"HEAD:{pull.base}", at=self.work)
        return git("rev-parse", "HEAD", at=self.work).strip()

    def shut(self, who: str) -> None:
        """Closed without merging."""
        pull = self.pull
        self.pushed(pull)
        pull.state, pull.by, pull.at = "closed", who, now()

    # The API.

    def _serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        self.asked.append(f"{handler.command} {handler.path}")
        if self.fault == "down":
            handler.close_connection = True
            return
        if self.fault == "hangs":
            self.freed.wait(30)
        if self.fault == "drips":
            self._drip(handler)
            return
        status, said, headers = self._faulty() or (*self._answer(handler, body), {})
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        """An answer without an end, a byte at a time: no read of it takes long."""
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        with suppress(OSError):
            while not self.freed.wait(0.2):
                handler.wfile.write(b" ")

    def _faulty(self) -> tuple[int, Any, dict[str, str]] | None:
        elsewhere = {"Location": f"{self.address}/elsewhere"}
        return {
            "500": (500, {"message": "Server Error"}, {}),
            "429": (429, {"message": "later"}, {"Retry-After": "3600"}),
            "deep": (200, b"[" * 200_000, {}),
            "html": (200, b"<html>It works!</html>", {}),
            "cut": (200, b'{"number": 1, "state": "clo', {}),
            "empty": (200, {}, {}),
            "other": (200, {"number": 7, "iid": 7, "state": "closed", "merged": True}, {}),
            "301": (301, b"", {"Location": "http://localhost:9/elsewhere"}),
            "302": (302, b"", elsewhere),
            "307": (307, b"", elsewhere),
        }.get(self.fault or "")

    def _answer(
        self, handler: BaseHTTPRequestHandler, body: dict[str, Any] | None
    ) -> tuple[int, Any]:
        given = handler.headers.get("Authorization", "")
        if given not in (f"token {TOKEN}", f"Bearer {TOKEN}"):
            return 401, {"message": f"Bad credentials:\n{given}"}
        path, _, query = handler.path.partition("?")
        asked = {key: values[0] for key, values in urllib.parse.parse_qs(query).items()}
        root = {
            "github": f"/api/v3/repos/{REPOSITORY}/",
            "gitlab": f"/api/v4/projects/{REPOSITORY.replace('/', '%2F')}/",
        }[self.kind]
        path = path.replace("/api/v4/projects/5/", root)
        if not path.startswith(root):
            return 404, {"message": "Not Found"}
        parts = path.removeprefix(root).split("/")
        if self.kind == "github":
            return self._github(parts, asked, body)
        return self._gitlab(parts, asked, body)

    def _made(self, branch: str, base: str, title: str, body: str) -> Pull | None:
        if any(p.branch == branch and p.base == base and p.state == "open" for p in self.pulls):
            return None
        head = git("rev-parse", branch, at=self.remote).strip()
        self.pulls.append(Pull(len(self.pulls) + 1, branch, base, title, body, [head]))
        return self.pulls[-1]

    def _github(
        self, parts: list[str], asked: dict[str, str], body: dict[str, Any] | None
    ) -> tuple[int, Any]:
        if parts == ["pulls"] and body is not None:
            made = self._made(body["head"], body["base"], body["title"], body["body"])
            if made is None:
                return 422, {
                    "message": "Validation Failed",
                    "errors": [{"resource": "PullRequest"}],
                }
            return 201, self._github_pull(made)
        if parts == ["pulls"]:
            owner = REPOSITORY.split("/")[0]
            return 200, [
                self._github_pull(p) for p in reversed(self.pulls)
                if f"{owner}:{p.branch}" == asked["head"] and p.base == asked["base"]
            ]  # fmt: skip
        pull = next((p for p in self.pulls if str(p.number) == parts[1]), None)
        if pull is None:
            return 404, {"message": "Not Found"}
        if parts[0] == "issues":
            who = _user(pull.by) if pull.state != "open" else None
            return 200, {"number": pull.number, "closed_by": who}
        if parts[2:] == ["reviews"]:
            return 200, [
                {"id": n, "user": _user(who), "state": word, "commit_id": head, "submitted_at": at}
                for n, (who, word, head, at) in enumerate(pull.reviews)
            ]
        return 200, self._github_pull(pull)

    def _github_pull(self, pull: Pull) -> dict[str, Any]:
        repository = {"full_name": REPOSITORY}
        merged = pull.state == "merged"
        return {
            "number": pull.number, "html_url": f"{self.address}/{REPOSITORY}/pull/{pull.number}",
            "url": f"{self.address}/api/v3/repos/{REPOSITORY}/pulls/{pull.number}",
            "state": "open" if pull.state == "open" else "closed", "merged": merged,
            "merged_by": _user(pull.by) if merged else None,
            "merged_at": pull.at if merged else None, "closed_at": pull.at,
            "merge_commit_sha": pull.landed, "title": pull.title, "body": pull.body,
            "head": {"ref": pull.branch, "sha": self.pushed(pull), "repo": repository},
            "base": {"ref": pull.base, "sha": "0" * 40, "repo": repository},
        }  # fmt: skip

    def _gitlab(
        self, parts: list[str], asked: dict[str, str], body: dict[str, Any] | None
    ) -> tuple[int, Any]:
        if parts == ["merge_requests"] and body is not None:
            made = self._made(
                body["source_branch"], body["target_branch"], body["title"], body["description"]
            )
            if made is None:
                return 409, {"message": ["Another open merge request already exists"]}
            return 201, self._gitlab_pull(made)
        if parts == ["merge_requests"]:
            wanted = (asked["source_branch"], asked["target_branch"])
            return 200, [
                self._gitlab_pull(p) for p in reversed(self.pulls) if (p.branch, p.base) == wanted
            ]
        pull = next((p for p in self.pulls if str(p.number) == parts[1]), None)
        if pull is None:
            return 404, {"message": "404 Not found"}
        if parts[2:] == ["approvals"]:
            yes = [
                {"user": _account(who)} for who, word, _, _ in pull.reviews if word == "APPROVED"
            ]
            return 200, {"approved": bool(yes), "approved_by": yes}
        if parts[2:] == ["versions"]:
            self.pushed(pull)
            return 200, [{"id": n, "head_commit_sha": head} for n, head in enumerate(pull.heads)]
        return 200, self._gitlab_pull(pull)

    def _gitlab_pull(self, pull: Pull) -> dict[str, Any]:
        merged, shut = pull.state == "merged", pull.state == "closed"
        return {
            "id": 1000 + pull.number, "iid": pull.number, "project_id": 5,
            "web_url": f"{self.address}/{REPOSITORY}/-/merge_requests/{pull.number}",
            "state": "opened" if pull.state == "open" else pull.state,
            "source_branch": pull.branch, "target_branch": pull.base,
            "source_project_id": 5, "target_project_id": 5, "sha": self.pushed(pull),
            "merge_commit_sha": pull.landed, "squash_commit_sha": None,
            "merge_user": _account(pull.by) if merged else None, "merged_at": pull.at if merged else None,
            "closed_by": _account(pull.by) if shut else None, "closed_at": pull.at if shut else None,
        }  # fmt: skip


def _user(login: str | None) -> dict[str, Any] | None:
    return {"login": login, "id": IDS[login], "type": "User"} if login is not None else None


def _account(name: str | None) -> dict[str, Any] | None:
    return {"username": name, "id": IDS[name], "name": name} if name is not None else None
