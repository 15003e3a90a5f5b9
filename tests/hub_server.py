"""A stand-in for the Hugging Face Hub: repositories of files in memory, spoken to by the real `huggingface_hub` client.

It knows what IRIS asks of the Hub: who am I, create a repository, commit files, list them and fetch them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from conftest import ROOT, subprocess_environment


class HubServer(ThreadingHTTPServer):
    """`repositories["models/user/name"]` maps paths to bytes; `address` is what HF_ENDPOINT names."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def revision(self, name: str) -> str:
        """A commit's name: forty hex digits of what the repository holds."""
        files = self.repositories[name]
        return hashlib.sha1(b"".join(path.encode() + files[path] for path in sorted(files))).hexdigest()

    def client(self, home: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python `code` as a user who is logged in to this Hub and keeps downloads in `home`."""
        told = {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_TOKEN": "hf_stand_in", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {name: value for name, value in subprocess_environment().items() if not name.startswith("HF_")} | told
        return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            return self._json({"name": "user", "type": "user", "auth": {"type": "access_token", "accessToken": {"role": "write"}}})
        listed = re.fullmatch(r"/api/((?:models|spaces)/[^/]+/[^/]+)(?:/(revision|tree)/[^/]+)?", path)
        if listed and listed[1] in self.server.repositories:
            return self._listing(listed[1], listed[2])
        found = re.fullmatch(r"/((?:spaces/)?)([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        name = f"{found[1] or 'models/'}{found[2]}" if found else ""
        if found and found[3] in self.server.repositories.get(name, {}):
            return self._file(name, found[3])
        self._json({"error": "Repository or file not found"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers.get("content-length") or 0)), self.path.partition("?")[0]
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('type', 'model')}s/{told['organization']}/{told['name']}"
            if name not in self.server.repositories and (told.get("private") or told.get("visibility") == "private"):
                self.server.private.add(name)  # of one that is there the wish is not heard, as on the Hub
            self.server.repositories.setdefault(name, {})
            return self._json({"url": f"{self.server.address}/{name.removeprefix('models/')}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        asked = re.fullmatch(r"/api/((?:models|spaces)/[^/]+/[^/]+)/(preupload|commit)/main", path)
        if asked is None or asked[1] not in self.server.repositories:
            return self._json({"error": "Repository not found"}, 404)
        if asked[2] == "preupload":
            return self._json({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]})
        for line in filter(None, body.splitlines()):
            self._change(self.server.repositories[asked[1]], json.loads(line))
        commit = self.server.revision(asked[1])
        self._json({"commitUrl": f"{self.server.address}/{asked[1].removeprefix('models/')}/commit/{commit}", "commitOid": commit, "success": True, "hookOutput": ""})

    @staticmethod
    def _change(files: dict[str, bytes], change: dict[str, Any]) -> None:
        value = change["value"]
        if change["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif change["key"] == "deletedFile":
            del files[value["path"]]

    def _listing(self, name: str, kind: str | None) -> None:
        files, commit = self.server.repositories[name], self.server.revision(name)
        tree = [{"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for path, data in files.items()]
        self._json(tree if kind == "tree" else {"id": name.partition("/")[2], "sha": commit, "private": name in self.server.private, "siblings": [{"rfilename": path} for path in files]})

    def _file(self, name: str, path: str) -> None:
        data = self.server.repositories[name][path]
        self._answer(data, "application/octet-stream", {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.server.revision(name)})

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), "application/json", {}, status)

    def _answer(self, data: bytes, kind: str, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for header, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """A Hub that is there until the block ends."""
    assert "HF_ENDPOINT" not in os.environ
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
