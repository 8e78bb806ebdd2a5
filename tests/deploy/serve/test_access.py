"""Who may use a server: this machine alone, or whoever shows the token."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

from higgsc.cli.serve import command as serve_command  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.generate import Speaker  # noqa: E402
from higgsc.deploy.serve import guard  # noqa: E402
from higgsc.deploy.serve.settings import Settings, read_token  # noqa: E402
from higgsc.deploy.serve.voices import load_voices  # noqa: E402

TOKEN = "correct-horse-battery-staple"
CLIP = Path(__file__).parents[3] / "specs/data/quickstart/audio/huda-01.flac"


@pytest.fixture(scope="module")
def server(serving: Callable[..., Any]) -> Iterator[Any]:
    with serving(token=TOKEN) as running:
        yield running


@pytest.mark.parametrize(
    "shown",
    [None, "", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer \xff"],
)
@pytest.mark.parametrize("path", ["/v1/voices", "/metrics", "/v1/models", "/generate_speech", "/nowhere"])
def test_without_the_token_nothing_is_answered(server: Any, shown: str | None, path: str) -> None:
    header = b"" if shown is None else b"Authorization: " + shown.encode("latin-1") + b"\r\n"
    answer = server.raw(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n" % (path.encode(), header))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer" in answer
    assert TOKEN.encode() not in answer


def test_the_page_and_the_sign_of_life_are_open(server: Any) -> None:
    for path in ("/", "/health"):
        request = server.client.build_request("GET", path)
        request.headers.pop("Authorization")
        assert server.client.send(request).status_code == 200


def test_openai_with_and_without_the_token(server: Any) -> None:
    for key in (TOKEN, "something else"):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0)
        if key == TOKEN:
            assert client.audio.speech.create(model="tiny", voice="huda", input="hi").content.startswith(b"RIFF")
        else:
            with pytest.raises(openai.AuthenticationError):
                client.audio.speech.create(model="tiny", voice="huda", input="hi")


def test_a_server_with_a_token_may_have_any_name(server: Any) -> None:
    assert server.client.get("/v1/voices", headers={"Host": "speech.example.org"}).status_code == 200


def test_the_token_is_compared_in_constant_time(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    server.client.get("/v1/voices", headers={"Authorization": "Bearer x"})
    # Digests: neither length nor characters of what is shown change what is compared.
    assert [len(a) == len(b) == 32 for a, b in compared] == [True]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_a_host_that_others_reach_takes_a_token(host: str) -> None:
    with pytest.raises(StepError, match="token"):
        Settings(name="tiny", host=host)
    assert TOKEN not in repr(Settings(name="tiny", host=host, token=TOKEN))


def test_the_command_refuses_before_it_loads_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speaker, "load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.delenv("HIGGSC_SERVE_TOKEN", raising=False)
    (tmp_path / "open").write_text(TOKEN)
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "short").write_text("secret")
    (tmp_path / "short").chmod(0o600)
    for arguments, code, word in (
        (("--host", "0.0.0.0"), ExitCode.USAGE, "HIGGSC_SERVE_TOKEN"),
        (("--token-file", str(tmp_path / "open")), ExitCode.USAGE, "chmod 600"),
        (("--token-file", str(tmp_path / "short")), ExitCode.USAGE, "at least 16"),
        (("--token-file", str(tmp_path / "none")), ExitCode.MISSING_INPUT, "none"),
    ):
        error = CliRunner().invoke(serve_command, ["builtin:tiny", *arguments]).exception
        assert isinstance(error, StepError), error
        assert error.code == code
        assert word in str(error)
        assert TOKEN not in str(error)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = CliRunner().invoke(serve_command, ["builtin:tiny", "--port", str(port)]).exception
        assert isinstance(error, StepError)
        assert (error.code, str(port) in error.message) == (ExitCode.IO, True)
    # No option takes the token itself: it would be in the list of processes.
    assert not any(
        "--token" in option for one in serve_command.params for option in one.opts if option != "--token-file"
    )


def test_a_token_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HIGGSC_SERVE_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("HIGGSC_SERVE_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    (tmp_path / "token").write_text(f"{TOKEN}-2\n")
    (tmp_path / "token").chmod(0o600)
    assert read_token(tmp_path / "token") == f"{TOKEN}-2"
    monkeypatch.setenv("HIGGSC_SERVE_TOKEN", "")
    with pytest.raises(StepError):  # empty is no token, and not "none" either
        read_token(None)


def test_voices_in_a_folder(tmp_path: Path, speaker: Speaker) -> None:
    clip = CLIP.read_bytes()
    for problem, files, word in (
        ("folder", None, "no such folder"),
        ("empty", {}, "no voice"),
        ("text", {"a.flac": clip}, "a.txt"),
        ("name", {"a b.flac": clip, "a b.txt": b"hello"}, "name of a voice"),
        ("twice", {"a.flac": clip, "a.wav": clip, "a.txt": b"hello"}, "two recordings"),
        ("latin", {"a.flac": clip, "a.txt": b"caf\xe9"}, "UTF-8"),
        ("audio", {"a.wav": b"x", "a.txt": b"hello"}, "a.wav"),
        ("nothing said", {"a.flac": clip, "a.txt": b"\n"}, "a.txt: cannot speak this: the text is empty"),
    ):
        folder = tmp_path / problem
        if files is not None:
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
        with pytest.raises(StepError) as raised:
            load_voices(folder, speaker)
        assert word in str(raised.value), problem
    (tmp_path / "good").mkdir()
    for name in ("b", "a"):
        (tmp_path / "good" / f"{name}.flac").write_bytes(clip)
        (tmp_path / "good" / f"{name}.txt").write_text("مرحبا", "utf-8")
    (tmp_path / "good" / "notes.md").write_text("no voice")
    assert list(load_voices(tmp_path / "good", speaker)) == ["a", "b"]
