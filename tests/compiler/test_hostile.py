"""Files that nobody writes by hand, through the command line: a message and exit 1, no traceback, no long wait.

The limits are on work, not on time: the timeout of the process only ends what would never come to an end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

VALID = (Path(__file__).parent.parent / "fixtures" / "diagnostics" / "valid.yaml").read_text("utf-8")
TIMEOUT = 20
"""Seconds; each of these takes well below one."""


def check(spec: Path | str, *options: str, cwd: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `higgsc check`."""
    command = [sys.executable, "-m", "higgsc", "check", str(spec), *options]
    result = subprocess.run(command, capture_output=True, cwd=cwd, timeout=TIMEOUT, check=False)
    assert b"Traceback" not in result.stderr
    return result.returncode, result.stdout.decode("utf-8"), result.stderr.decode("utf-8")


def diagnostics_of(spec: Path | str, *options: str, cwd: Path) -> list[tuple[str, str]]:
    """Codes and messages; the exit code has to say that there are errors, or there have to be none."""
    code, out, _ = check(spec, "--json", *options, cwd=cwd)
    document = json.loads(out)
    assert code == (1 if document["errors"] else 0)
    return [(row["code"], row["message"]) for row in document["diagnostics"]]


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 20)


def symlink_loop(path: Path) -> None:
    path.symlink_to(path.with_name("other.yaml"))
    path.with_name("other.yaml").symlink_to(path)


def bomb(path: Path) -> None:
    lines = ["a: &a [" + ", ".join(["x"] * 10) + "]"]
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True):
        lines.append(f"{name}: &{name} [" + ", ".join([f"*{before}"] * 10) + "]")
    path.write_text("\n".join(lines))


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content, "utf-8") and None


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "binary": (lambda path: path.write_bytes(bytes(range(256)) * 64), "HC001"),
    "an executable": (lambda path: path.symlink_to(sys.executable), "HC001"),
    "UTF-16": (lambda path: path.write_bytes(VALID.encode("utf-16")), "HC001"),
    "UTF-16 without a mark": (lambda path: path.write_bytes(VALID.encode("utf-16-le")), "HC002"),
    "empty": (text(""), "HC003"),
    "only a byte order mark": (lambda path: path.write_bytes(b"\xef\xbb\xbf"), "HC003"),
    "a directory": (lambda path: path.mkdir(), "HC001"),
    "a FIFO": (os.mkfifo, "HC001"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "HC001"),
    "a symbolic link in a circle": (symlink_loop, "HC001"),
    "100 MB": (sparse, "HC001"),
    "billion laughs": (bomb, "HC006"),
    "100,000 brackets": (text("a: " + "[" * 100_000), "HC006"),
    "100,000 closed brackets": (text("a: " + "[" * 100_000 + "]" * 100_000), "HC006"),
    "100,000 dashes": (text("- " * 100_000), "HC006"),
    "100,000 question marks": (text("? " * 100_000), "HC006"),
    "half a million entries": (text(VALID + "x: [" + "a," * 500_000 + "]\n"), "HC006"),
    "a line of 1 MB": (text(VALID + "x: '" + "a " * 500_000 + "'\n"), "HC101"),
    "a quote of 1 MB that is never closed": (text(VALID + "x: '" + "a b " * 250_000), "HC002"),
    "a key of 900 kB": (text(VALID + "? " + "k" * 900_000 + "\n: 1\n"), "HC101"),
    "a number of 900 kB": (text(VALID + "seed: " + "9" * 900_000 + "\n"), "HC103"),
    "a time limit of 900 kB": (text(VALID + 'site: {time_limit: "' + "1" * 900_000 + '"}\n'), "HC106"),
    "a machine of blanks": (text(VALID.replace("1xCPU", '"' + " " * 900_000 + '"')), "HC106"),
    "forty stars": (text(VALID + "lora: {targets: ['" + "*" * 40 + "x']}\n"), "HC501"),
    "a sweep with 9,000 keys": (text(VALID + "sweep:\n" + "".join(f"  k{i}: [1]\n" for i in range(9_000))), "HC203"),
    "a sweep with too many points": (text(VALID + f"sweep: {{seed: {list(range(10_001))}}}\n"), "HC203"),
    "a sweep over a key of 200,000 words": (text(VALID + "sweep:\n  ? " + "a." * 200_000 + "a\n  : [1]\n"), "HC203"),
    "a name that is a list": (text(VALID.replace("example", f"[{','.join('a' * 9_000)}]")), "HC103"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_hostile_file_is_one_message(tmp_path: Path, what: str) -> None:
    make, code = FILES[what]
    spec = tmp_path / "spec.yaml"
    make(spec)
    found = diagnostics_of(spec, cwd=tmp_path)
    assert [each for each, _ in found] == [code], found


MANY = {
    "unknown keys": "".join(f"key{i}: 1\n" for i in range(9_000)),
    "unknown keys on one line": "lora: {" + ", ".join(f"key{i}: 1" for i in range(9_000)) + "}\n",
    "wrong values": "secrets: [" + ", ".join(f"wrong-{i}" for i in range(10_000)) + "]\n",
    "keys given twice": "lora: {rank: 1" + ", rank: 1" * 9_000 + "}\n",
    "targets": "lora:\n  targets:\n" + "".join(f"  - nothing{i}_proj\n" for i in range(10_000)),
}


@pytest.mark.parametrize("what", MANY)
def test_of_ten_thousand_errors_a_hundred_are_shown(tmp_path: Path, what: str) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(VALID + MANY[what])
    assert len(diagnostics_of(spec, cwd=tmp_path)) == 100
    code, _, shown = check(spec, cwd=tmp_path)
    assert code == 1
    assert "there are more; only the first 100 errors are shown" in shown
    assert len(shown) < 200_000


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_one_message(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(VALID)
    spec.chmod(0)
    assert diagnostics_of(spec, cwd=tmp_path) == [("HC001", "cannot read `spec.yaml`: permission denied")]


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="Linux only")
def test_a_file_without_size_or_end_is_not_read_to_the_end(tmp_path: Path) -> None:
    """`/proc` has regular files of no size that go on for terabytes."""
    found = diagnostics_of("/proc/self/pagemap", cwd=tmp_path)
    assert [code for code, _ in found] == ["HC001"]


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff\n\x1b[2J.yaml")
    (tmp_path / name).write_text("x: 1\n")
    for form in ("text", "concise", "json", "sarif", "github"):
        code, out, err = check(name, "--format", form, cwd=tmp_path)
        assert code == 1
        assert "HC102" in out + err
        assert "\x1b" not in out + err
    found = diagnostics_of(f"missing-{name}", cwd=tmp_path)
    assert [each for each, _ in found] == ["HC001"]


def test_an_argument_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(VALID)
    for argument in (os.fsdecode(b"name=\xff"), os.fsdecode(b"\xff"), "seed=\x1b[2J"):
        for form in ("text", "json", "sarif"):
            code, out, err = check("spec.yaml", "--set", argument, "--format", form, cwd=tmp_path)
            assert code == 1
            assert "HC202" in out + err
            assert "\x1b" not in out + err


@pytest.mark.parametrize("argument", ["a." * 5_000 + "a=1", "seed=" + "[" * 10_000, "seed=" + "9" * 10_000])
def test_an_argument_without_measure(tmp_path: Path, argument: str) -> None:
    (tmp_path / "spec.yaml").write_text(VALID)
    assert len(diagnostics_of("spec.yaml", "--set", argument, cwd=tmp_path)) == 1


def test_a_thousand_extended_files_are_too_many(tmp_path: Path) -> None:
    names = [f"part{i}.yaml" for i in range(1_000)]
    for name in names:
        (tmp_path / name).write_text("seed: 1\n")
    (tmp_path / "spec.yaml").write_text(f"extends: [{', '.join(names)}]\n{VALID}")
    assert diagnostics_of("spec.yaml", cwd=tmp_path) == [("HC006", "the spec extends more than 100 files")]
    (tmp_path / "spec.yaml").write_text(f"extends: [{', '.join(names[:100])}]\n{VALID}")
    found = diagnostics_of("spec.yaml", cwd=tmp_path)
    assert [code for code, _ in found] == ["HC411"]  # a warning: the data is not here


def test_a_chain_of_a_thousand_files_is_too_long(tmp_path: Path) -> None:
    for i in range(1_000):
        (tmp_path / f"part{i}.yaml").write_text(f"extends: part{i + 1}.yaml\n")
    assert diagnostics_of("part0.yaml", cwd=tmp_path) == [("HC006", "the spec extends more than 100 files")]


def test_a_file_that_many_extend_is_read_once(tmp_path: Path) -> None:
    """Forty levels of two files each that extend both files of the next one: 2^40 ways, 80 files."""
    for level in range(40):
        for side in "ab":
            both = f"extends: [{level + 1}a.yaml, {level + 1}b.yaml]\n" if level < 39 else "seed: x\n"
            (tmp_path / f"{level}{side}.yaml").write_text(both)
    (tmp_path / "spec.yaml").write_text(f"extends: [0a.yaml, 0b.yaml]\n{VALID}")
    assert [code for code, _ in diagnostics_of("spec.yaml", cwd=tmp_path)] == ["HC103"]


def test_a_circle_through_a_link_comes_to_an_end(tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "spec.yaml").write_text(f"extends: again/spec.yaml\n{VALID}")
    ((code, message),) = diagnostics_of("spec.yaml", cwd=tmp_path)  # where the system follows no more links
    assert code == "HC001"
    assert "again/again/again" in message
