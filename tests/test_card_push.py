"""The pull request, against a stand-in of the Hub that writes down what arrives."""

import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

from auditor.card import push as pushing
from auditor.card.push import PushError, must_be_repository, open_pull_request
from auditor.errors import ConfigError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4
FILES = {
    "README.md": "# T\r\nünï 🎉\n".encode(),
    "compleak-llm-roc.png": PNG,
    ".eval_results/compleak-llm.yaml": b"- value: 1\n",
}
TOKEN = "hf_standin"


class Hub(ThreadingHTTPServer):
    """The routes that a commit of a few files takes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.header: dict[str, Any] = {}
        self.modes: dict[str, str] = {}
        self.refuse: tuple[str, int, bytes] | None = None
        self.silent = False
        self.present: dict[str, bytes] = {}


class Routes(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = b""
        while size := int(self.rfile.readline(), 16):
            parts += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return parts

    def do_GET(self) -> None:
        self.server.requests.append(("GET", self.path))
        self.answer({"id": "org/model", "sha": "0" * 40})

    def do_PUT(self) -> None:
        self.server.requests.append(("PUT", self.path))
        self.server.stored[self.path.rpartition("/")[2]] = self.body()
        self.answer(b"")

    def do_POST(self) -> None:
        hub, body = self.server, self.body()
        hub.requests.append(("POST", self.path))
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.silent:
            return
        if hub.refuse and hub.refuse[0] in self.path:
            self.answer(hub.refuse[2], hub.refuse[1])
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": [{"message": "empty metadata"}]})
        elif self.path == "/api/models/org/model/preupload/main?create_pr=1":
            self.answer({"files": [self.mode(file) for file in json.loads(body)["files"]]})
        elif self.path == "/org/model.git/info/lfs/objects/batch":
            self.answer({"objects": [self.place(one) for one in json.loads(body)["objects"]]})
        elif self.path == "/api/models/org/model/commit/main?create_pr=1":
            self.commit(body)
        else:
            self.answer({"error": "no such route"}, 404)

    def mode(self, file: dict[str, Any]) -> dict[str, Any]:
        path = file["path"]
        found: dict[str, Any] = {"path": path, "shouldIgnore": False}
        found["uploadMode"] = self.server.modes.get(path, "regular")
        if path in self.server.present:
            content = self.server.present[path]
            found["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return found

    def place(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}

    def commit(self, body: bytes) -> None:
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "header":
                self.server.header = item["value"]
            elif item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                self.server.files[item["value"]["path"]] = content
            else:
                assert item["key"] == "lfsFile"
                self.server.files[item["value"]["path"]] = self.server.stored[item["value"]["oid"]]
        url = f"{self.server.url}/org/model"
        number = {"pullRequestUrl": f"{url}/discussions/7", "commitUrl": f"{url}/commit/1"}
        self.answer({"success": True, "commitOid": "1" * 40, **number})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The stand-in speaks the older of the two protocols for large files.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


# huggingface_hub hands a file to its HTTP client in a way that this one is leaving behind.
@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_one_commit_with_every_byte(hub: Hub, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    hub.modes = {"compleak-llm-roc.png": mode}
    assert open_pull_request("org/model", FILES) == f"{hub.url}/org/model/discussions/7"
    assert hub.files == FILES
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert "compleak-llm" in hub.header["summary"]
    commits = [path for _, path in hub.requests if "/commit/" in path]
    assert commits == ["/api/models/org/model/commit/main?create_pr=1"]
    assert capfd.readouterr() == ("", "")


def test_what_the_repository_holds_already_is_no_pull_request(hub: Hub) -> None:
    hub.present = FILES
    found = open_pull_request("org/model", FILES)
    assert found == f"{hub.url}/org/model/commit/{'0' * 40}"
    assert not any("/commit/" in path for _, path in hub.requests)


@pytest.mark.parametrize(
    ("route", "status", "words"),
    [
        ("validate-yaml", 401, "hf auth login"),
        ("preupload", 401, "hf auth login"),
        ("preupload", 403, "may write pull requests"),
        ("preupload", 404, "check the name"),
        ("commit", 403, "may write pull requests"),
        ("commit", 500, "wait"),
        ("commit", 409, "wait"),
    ],
)
def test_a_refusal_is_one_error(hub: Hub, route: str, status: int, words: str) -> None:
    hub.refuse = (route, status, json.dumps({"error": "no <b>way"}).encode())
    with pytest.raises(PushError) as caught:
        open_pull_request("org/model", FILES)
    assert words in caught.value.fix
    assert "the local files are written" in caught.value.fix
    assert str(status) in caught.value.seen or "Repository Not Found" in caught.value.seen
    assert hub.files == {}


def test_a_card_that_the_hub_does_not_take(hub: Hub) -> None:
    errors = {"errors": [{"message": '"license" must be one of these'}], "warnings": []}
    hub.refuse = ("validate-yaml", 400, json.dumps(errors).encode())
    with pytest.raises(PushError) as caught:
        open_pull_request("org/model", FILES)
    assert '"license" must be one of these' in caught.value.seen


def test_an_answer_that_is_none(hub: Hub) -> None:
    hub.refuse = ("commit", 200, b"<html>a proxy</html>")
    with pytest.raises(PushError):
        open_pull_request("org/model", FILES)


def test_a_hub_that_says_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setattr(pushing, "TIMEOUT_S", 0.2)
        with pytest.raises(PushError, match="pull request"):
            open_pull_request("org/model", FILES)
    hub.silent = True
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    with pytest.raises(PushError, match="pull request"):
        open_pull_request("org/model", FILES)


def test_without_network_token_or_permission_to_go_online(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(PushError) as caught:
        open_pull_request("org/model", FILES)
    assert "check the connection" in caught.value.fix
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="pull request") as caught:
        open_pull_request("org/model", FILES)
    assert caught.value.seen == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(PushError) as caught:
        open_pull_request("org/model", FILES)
    assert caught.value.seen == "no token"
    assert hub.requests == []


@pytest.mark.parametrize("name", ["", "model", "a/b/c", "org/", "https://hf.co/org/model", "o/m\n"])
def test_a_repository_has_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="--push"):
        must_be_repository(name)
