"""A service that hosts a repository, on loopback: GitHub's and GitLab's API shapes with state, and git over HTTP with a token.

Pushes and fetches go through git's own ``http-backend`` to a real bare repository, and only with the token. Faults are
played once each, before a request is carried out or after it (an answer that is lost).
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PROJECT, NUMBER = "ada/textkit", 7
TOKEN = "ghs_0123456789abcdefghijABCDEFGHIJ012345"
Answer = tuple[int, Any]


@dataclass(frozen=True)
class Fault:
    """Answers one request whose method and path fit ``where`` with a status; ``after`` it was carried out, or instead."""

    where: str
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    body: Any = None


@dataclass
class Forge:
    """What the service knows. ``me`` is who the token writes as; ``roles`` what people may do (GitHub's words)."""

    git_dir: Path
    me: str = "agent-bot"
    knows_me: bool = True
    roles: dict[str, str] = field(default_factory=lambda: {"ada": "admin", "42": "admin"})
    pulls: dict[int, dict[str, Any]] = field(default_factory=dict)
    comments: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.git_dir, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def tip(self, branch: str) -> str | None:
        found = self.git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")
        return found or None

    def add_comment(self, number: int, author: str, body: str) -> None:
        """What somebody else wrote."""
        self.comments.append({"id": len(self.comments) + 1, "number": number, "author": author, "body": body})

    def writes(self) -> list[tuple[str, str]]:
        """What changed something: not fetches of git, which are POSTs too."""
        return [each for each in self.requests if each[0] in ("POST", "PATCH", "PUT") and "upload-pack" not in each[1]]

    def github_variables(self) -> dict[str, str]:
        return {
            "GITHUB_ACTIONS": "true",
            "GITHUB_SERVER_URL": self.url,
            "GITHUB_API_URL": f"{self.url}/api/v3",
            "GITHUB_REPOSITORY": PROJECT,
        }

    def gitlab_variables(self) -> dict[str, str]:
        return {
            "GITLAB_CI": "true",
            "CI_PROJECT_URL": f"{self.url}/{PROJECT}",
            "CI_PROJECT_ID": str(NUMBER),
            "CI_API_V4_URL": f"{self.url}/api/v4",
        }

    def open_pull(self, branch: str, target: str, **more: Any) -> int:
        """A pull request of somebody's."""
        number = 100 + len(self.pulls)
        self.pulls[number] = {"branch": branch, "target": target, "title": "", "body": "", "state": "open", "in_project": True, **more}  # fmt: skip
        return number

    # GitHub

    def github(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        place = path.removeprefix(f"/repos/{PROJECT}")
        match method, place.strip("/").split("/"):
            case "GET", ["user"]:
                return (200, {"login": self.me}) if self.knows_me else (403, {"message": "Resource not accessible by integration"})  # fmt: skip
            case "GET", ["collaborators", who, "permission"]:
                return (200, {"permission": self.roles[who]}) if who in self.roles else (404, {"message": "Not Found"})
            case "GET", ["pulls"]:
                found = [
                    self.as_github(number)
                    for number, pull in self.pulls.items()
                    if pull["state"] == query["state"]
                    and query["head"] == f"ada:{pull['branch']}"
                    and pull["target"] == query["base"]
                ]
                return 200, page(found, query)
            case "POST", ["pulls"]:
                return self.new_pull(body["head"], body["base"], body["title"], body["body"], 422, self.as_github)
            case "GET", ["pulls", number]:
                return 200, self.as_github(int(number))
            case "PATCH", ["pulls", number]:
                self.pulls[int(number)] |= body
                return 200, self.as_github(int(number))
            case "GET", ["issues", number, "comments"]:
                return 200, page([github_comment(each) for each in self.comments if each["number"] == int(number)], query)  # fmt: skip
            case "POST", ["issues", number, "comments"]:
                self.add_comment(int(number), self.me if self.knows_me else "github-actions[bot]", body["body"])
                return 201, github_comment(self.comments[-1])
            case "PATCH", ["issues", "comments", which]:
                self.comments[int(which) - 1]["body"] = body["body"]
                return 200, github_comment(self.comments[int(which) - 1])
        return 404, {"message": "Not Found"}

    def as_github(self, number: int) -> dict[str, Any]:
        pull = self.pulls[number]
        repo = {"full_name": PROJECT if pull["in_project"] else "mallory/textkit"}
        head = {"ref": pull["branch"], "sha": self.tip(pull["branch"]), "repo": repo}
        return {"number": number, "title": pull["title"], "body": pull["body"], "head": head, "html_url": f"{self.url}/{PROJECT}/pull/{number}"}  # fmt: skip

    # GitLab

    def gitlab(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        match method, path.removeprefix(f"/projects/{NUMBER}").strip("/").split("/"):
            case "GET", ["user"]:
                return 200, {"username": self.me}
            case "GET", ["members", "all", who]:
                levels = {"admin": 50, "write": 30, "read": 20}
                return (200, {"access_level": levels[self.roles[who]], "state": "active"}) if who in self.roles else (404, {"message": "404 Not found"})  # fmt: skip
            case "GET", ["merge_requests"]:
                found = [
                    self.as_gitlab(number)
                    for number, pull in self.pulls.items()
                    if (pull["state"], pull["branch"], pull["target"])
                    == ({"opened": "open"}[query["state"]], query["source_branch"], query["target_branch"])
                ]
                return 200, page(found, query)
            case "POST", ["merge_requests"]:
                wanted = (body["source_branch"], body["target_branch"], body["title"], body["description"])
                return self.new_pull(*wanted, 409, self.as_gitlab)
            case "GET", ["merge_requests", number]:
                return 200, self.as_gitlab(int(number))
            case "PUT", ["merge_requests", number]:
                self.pulls[int(number)] |= {"title": body["title"], "body": body["description"]}
                return 200, self.as_gitlab(int(number))
            case "GET", ["issues" | "merge_requests", number, "notes"]:
                return 200, page([gitlab_note(each) for each in self.comments if each["number"] == int(number)], query)
            case "POST", ["issues" | "merge_requests", number, "notes"]:
                self.add_comment(int(number), self.me, body["body"])
                return 201, gitlab_note(self.comments[-1])
            case "PUT", ["issues" | "merge_requests", _, "notes", which]:
                self.comments[int(which) - 1]["body"] = body["body"]
                return 200, gitlab_note(self.comments[int(which) - 1])
        return 404, {"message": "404 Not Found"}

    def as_gitlab(self, number: int) -> dict[str, Any]:
        pull = self.pulls[number]
        return {
            "iid": number,
            "title": pull["title"],
            "description": pull["body"],
            "source_branch": pull["branch"],
            "target_branch": pull["target"],
            "source_project_id": NUMBER if pull["in_project"] else 8,
            "target_project_id": NUMBER,
            "sha": self.tip(pull["branch"]),
            "web_url": f"{self.url}/{PROJECT}/-/merge_requests/{number}",
        }

    def new_pull(
        self, branch: str, target: str, title: str, body: str, taken: int, show: Callable[[int], Any]
    ) -> Answer:
        if self.tip(branch) is None or self.tip(target) is None:
            return 422, {"message": "Validation Failed"}
        same = (branch, target, "open")
        if any((pull["branch"], pull["target"], pull["state"]) == same for pull in self.pulls.values()):
            return taken, {"message": "A pull request already exists"}
        number = self.open_pull(branch, target, title=title, body=body)
        return 201, show(number)


def page(found: list[Any], query: dict[str, str]) -> list[Any]:
    size, number = int(query["per_page"]), int(query["page"])
    return found[(number - 1) * size : number * size]


def github_comment(comment: dict[str, Any]) -> dict[str, Any]:
    return {"id": comment["id"], "user": {"login": comment["author"]}, "body": comment["body"]}


def gitlab_note(comment: dict[str, Any]) -> dict[str, Any]:
    return {"id": comment["id"], "author": {"username": comment["author"]}, "body": comment["body"], "system": False}


def _handler(forge: Forge) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.carry_out()

        def do_POST(self) -> None:
            self.carry_out()

        def do_PATCH(self) -> None:
            self.carry_out()

        def do_PUT(self) -> None:
            self.carry_out()

        def carry_out(self) -> None:
            data = self.body()
            parts = urlsplit(self.path)
            with forge.lock:
                forge.requests.append((self.command, self.path))
                forge.headers.append({name.lower(): value for name, value in self.headers.items()})
                fault = next((each for each in forge.faults if re.search(each.where, f"{self.command} {self.path}")), None)  # fmt: skip
                if fault is not None:
                    forge.faults.remove(fault)
                    if not fault.after:
                        self.say(fault.status, fault.body, fault.headers)
                        return
                if parts.path.startswith("/api/"):
                    status, found = self.api(parts.path, parts.query, data)
                    if fault is not None:
                        status, found = fault.status, fault.body
                    self.say(status, found, fault.headers if fault else {})
                else:
                    lost = None if fault is None else (lambda: self.say(fault.status, fault.body, fault.headers))
                    self.backend(parts.path, parts.query, data, lost)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def api(self, path: str, query: str, data: bytes) -> Answer:
            version, _, place = path.removeprefix("/api/").partition("/")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") if version == "v3" else self.headers.get("PRIVATE-TOKEN")  # fmt: skip
            if token != TOKEN:
                return 401, {"message": f"Bad credentials {token}"}
            values = {key: found[0] for key, found in parse_qs(query).items()}
            handle = forge.github if version == "v3" else forge.gitlab
            return handle(self.command, unquote("/" + place), values, json.loads(data) if data else None)

        def backend(self, path: str, query: str, data: bytes, lost: Callable[[], None] | None) -> None:
            """git's own server for HTTP, for who has the token; ``lost`` answers in its place once it has done its work."""
            given = self.headers.get("Authorization", "").removeprefix("Basic ")
            allowed = {base64.b64encode(f"{user}:{TOKEN}".encode()).decode() for user in ("x-access-token", "oauth2")}
            if given not in allowed:
                self.say(401, {"message": "who are you?"}, {"WWW-Authenticate": 'Basic realm="git"'})
                return
            env = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(forge.git_dir),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path.removeprefix(f"/{PROJECT}.git"),
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(data)),
                "REMOTE_USER": "agent",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            }
            if self.headers.get("Content-Encoding"):
                env["HTTP_CONTENT_ENCODING"] = self.headers["Content-Encoding"]
            done = subprocess.run(["git", "http-backend"], env=env, input=data, capture_output=True, check=True)
            if lost is not None:
                lost()
                return
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
            self.send_response(int(headers.pop("Status", "200 OK").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def say(self, status: int, found: Any, headers: dict[str, str]) -> None:
            content = json.dumps(found).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """The tests look at ``forge.requests``."""

    return Handler


@contextmanager
def serving(repository: Path, folder: Path) -> Iterator[Forge]:
    """Serve a bare copy of ``repository``, made in ``folder``, for the length of a block."""
    git_dir = folder / "remote.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", str(repository), str(git_dir)], check=True)
    subprocess.run(["git", "config", "http.receivepack", "true"], cwd=git_dir, check=True)
    forge = Forge(git_dir)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(forge))
    forge.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield forge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
