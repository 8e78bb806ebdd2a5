"""What an editor shows on a spec: completion, hover and errors, from the real yaml-language-server and our schema.

The server is the npm package that the editors' YAML extensions contain; `make test` installs it into `.venv/node`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SCHEMA = ROOT / "docs" / "schema" / "higgsc.v1.json"
MODELINE = f"# yaml-language-server: $schema={SCHEMA}\n"
SERVER = os.environ.get("HIGGSC_YAML_LANGUAGE_SERVER") or str(
    ROOT / ".venv" / "node" / "node_modules" / ".bin" / "yaml-language-server"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(SERVER) is None, reason="yaml-language-server is not installed: make tools"),
]


class Editor:
    """A language client of the few words that this test needs (Language Server Protocol 3.17)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([SERVER, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.number = 0
        self.published: dict[str, list[Any]] = {}
        self.request("initialize", {"processId": os.getpid(), "rootUri": ROOT.as_uri(), "capabilities": {}})
        self.notify("initialized", {})
        settings = {"validate": True, "completion": True, "hover": True, "schemaStore": {"enable": False}}
        self.notify("workspace/didChangeConfiguration", {"settings": {"yaml": settings}})

    def open(self, path: Path, text: str) -> str:
        document = {"uri": path.as_uri(), "languageId": "yaml", "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": document})
        return path.as_uri()

    def problems(self, uri: str) -> list[Any]:
        """The diagnostics that the server publishes for a document."""
        while uri not in self.published:
            self._dispatch(self._read())
        return self.published[uri]

    def request(self, method: str, params: dict[str, Any]) -> Any:
        self.number += 1
        self._send({"id": self.number, "method": method, "params": params})
        while True:
            message = self._read()
            if message.get("id") == self.number and "method" not in message:
                assert "error" not in message, message
                return message["result"]
            self._dispatch(message)

    def notify(self, method: str, params: dict[str, Any]) -> None:
        self._send({"method": method, "params": params})

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message.get("method") == "textDocument/publishDiagnostics":
            self.published[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "id" in message and "method" in message:  # a question to the client: nothing to say
            items = message.get("params", {}).get("items")
            self._send({"id": message["id"], "result": [None] * len(items) if items else None})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        length = 0
        while line := self.process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the language server ended"
        message: dict[str, Any] = json.loads(self.process.stdout.read(length))
        return message


@pytest.fixture(scope="module")
def editor() -> Iterator[Editor]:
    editor = Editor()
    yield editor
    editor.close()


def test_keys_are_completed_with_their_documentation(editor: Editor, tmp_path: Path) -> None:
    uri = editor.open(tmp_path / "complete.yaml", MODELINE + "lora:\n  ")
    place = {"textDocument": {"uri": uri}, "position": {"line": 2, "character": 2}}
    items = {item["label"]: item for item in editor.request("textDocument/completion", place)["items"]}
    assert {"targets", "heads", "rank", "alpha", "dropout"} <= set(items)
    assert "alpha / rank" in json.dumps(items["alpha"].get("documentation", ""))


def test_words_are_completed(editor: Editor, tmp_path: Path) -> None:
    uri = editor.open(tmp_path / "words.yaml", MODELINE + "precision: ")
    place = {"textDocument": {"uri": uri}, "position": {"line": 1, "character": 11}}
    labels = {item["label"] for item in editor.request("textDocument/completion", place)["items"]}
    assert {"bf16", "fp32"} <= labels


def test_hover_shows_what_a_key_means(editor: Editor, tmp_path: Path) -> None:
    uri = editor.open(tmp_path / "hover.yaml", MODELINE + "training:\n  warmup_steps: 500\n")
    place = {"textDocument": {"uri": uri}, "position": {"line": 2, "character": 5}}
    hover = json.dumps(editor.request("textDocument/hover", place))
    assert "the learning rate rises from 0 to its peak" in hover


def test_a_bad_key_is_underlined(editor: Editor, tmp_path: Path) -> None:
    uri = editor.open(tmp_path / "bad.yaml", MODELINE + "extends: base.yaml\nlora: {rnak: 16}\n")
    (problem,) = editor.problems(uri)
    assert "rnak" in problem["message"]
    assert problem["range"]["start"] == {"line": 2, "character": 7}


@pytest.mark.parametrize("spec", sorted((ROOT / "specs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_specs_have_no_problem(editor: Editor, spec: Path) -> None:
    assert editor.problems(editor.open(spec, spec.read_text("utf-8"))) == []
