"""Whatever stands in a spec or on the command line: the compiler answers, it does not break.

Four ways to make bad input: mutated text, mutated trees, YAML from a grammar, and the command line with its sweeps
and extended files. Each goes through the real `compile_spec` on real files, and through every renderer. The runs are
the same every time; `HIGGSC_FUZZ_EXAMPLES=5000 pytest tests/compiler/test_fuzz.py` looks further, at random.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.diagnostics import Diagnostic
from higgsc.compiler.fixes import apply_fixes
from higgsc.compiler.render import FORMATS, render
from higgsc.compiler.words.keys import homes
from higgsc.emit.build import builds_of
from higgsc.emit.emitters import emit_all

ROOT = Path(__file__).parent.parent.parent
SCHEMA = json.loads((ROOT / "docs" / "schema" / "diagnostics.v1.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FIXTURES = ROOT / "tests" / "fixtures"
TEXTS = [
    path.read_text("utf-8")
    for path in sorted(
        chain((ROOT / "specs").glob("*.yaml"), FIXTURES.glob("*/*.yaml"), (ROOT / "specs" / "base").glob("*.yaml"))
    )
    if "not-utf8" not in path.name
]
COMPLETE = (FIXTURES / "diagnostics" / "valid.yaml").read_text("utf-8")
TOKENS = ("hf_" + "Ab1" * 9, "sk-proj-" + "xY9_" * 8, "ghp_" + "q7Z" * 12, "AKIA" + "QWERTYUIOP012345")

LONG = int(os.environ.get("HIGGSC_FUZZ_EXAMPLES", "0"))


def fuzz(share: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The settings of a test, with its share of the examples."""
    return settings(
        max_examples=max(1, int((LONG or 500) * share)),
        derandomize=not LONG,
        deadline=1000,  # milliseconds: what "never more than a second" means
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Project:
    """A folder with the shipped specs, into which examples are written; one for all of them."""

    def __init__(self, folder: Path) -> None:
        self.specs = folder / "specs"
        shutil.copytree(ROOT / "specs", self.specs)
        for name in ("diagnostics", "mistakes"):
            for below in ("parts", "sites"):
                shutil.copytree(FIXTURES / name / below, self.specs / below, dirs_exist_ok=True)

    def write(self, content: str | bytes, name: str = "fuzzed.yaml") -> Path:
        spec = self.specs / name
        spec.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return spec


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("fuzz"))


def check(spec: Path, overrides: tuple[str, ...] = (), site: str | None = None) -> tuple[Diagnostic, ...]:
    """Compile a spec and look at all that must hold, whatever is in it."""
    compilation = compile_spec(spec, overrides=overrides, site=site)
    found = compilation.diagnostics
    errors = [diagnostic for diagnostic in found if diagnostic.severity == "error"]
    assert bool(errors) != bool(compilation.compiled), found
    for diagnostic in found:
        labels = [diagnostic.primary, *diagnostic.secondary]
        for span in [label.span for label in labels] + ([diagnostic.fix.span] if diagnostic.fix else []):
            assert 0 <= span.start <= span.end <= len(span.source.text), diagnostic
            assert span.line >= 1
            assert span.column >= 1
        texts = [diagnostic.message, diagnostic.help or "", *diagnostic.notes, *(label.text for label in labels)]
        assert not any(character in text for text in texts for character in "\n\r\x1b\x00\u202e")
    # By name and text: two arguments are two places, a file that is read twice is not.
    spans = [diagnostic.primary.span for diagnostic in found]
    said = [(d.code, d.message, s.source.name, s.source.text, s.start) for d, s in zip(found, spans, strict=True)]
    assert len(said) == len(set(said)), "said twice"
    rendered = {form: render(found, form) for form in FORMATS}
    VALIDATOR.validate(json.loads(rendered["json"]))
    json.loads(rendered["sarif"])
    assert not any(character in rendered["text"] for character in "\x1b\x00\u202e\u2028\x85")
    assert len(rendered["concise"].splitlines()) == len(rendered["github"].splitlines()) == len(found)
    for text in rendered.values():
        text.encode("utf-8")  # no lone surrogates
        assert len(text) < 1_000_000
        assert not any(token[:14] in text for token in TOKENS)
    again = compile_spec(spec, overrides=overrides, site=site)
    assert {form: render(again.diagnostics, form) for form in FORMATS} == rendered
    for build, once_more in zip(builds_of(compilation)[:2], builds_of(again)[:2], strict=True):
        files = emit_all(build)
        assert files == emit_all(once_more)
        for path, text in files.items():
            text.encode("utf-8")
            assert not any(token in text for token in TOKENS)
            if path.endswith((".json", ".lock")):
                json.loads(text, parse_constant=_no_constant)
            if path.endswith(".yaml"):
                assert all(isinstance(part, dict) for part in yaml.load_all(text, Loader=yaml.CSafeLoader))
    return found


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


# Text ---------------------------------------------------------------------------------------------------------------

ODD = (
    ["\ufeff", "\u202e", "\u2066", "\u200b", "\u00a0", "\u2028", "\x85", "\x00", "\x1b[2J", "\x7f", "\r\n", "\r", "\t"]
    + ["🎙", "👨\u200d👩\u200d👧", "مَرْحَبًا", "漢字", "\U0010ffff", "e\u0301", "“", "’", "–", "−", "٣"]
    + list("{}[]:,#&*!|>'\"%@`-?=~<.\\ \n")
    + [": ", "- ", " #", "<<: ", "*a", "&a ", "!!str ", "---\n", "...\n", "%YAML 1.1\n", "? ", "{{", "]]", "'''"]
    + [".%", "1e999", ".inf", ".nan", "0x", "0o7", "1" * 40, "~", "null", "true", "${HOME}", "~/x", "../", "*" * 30]
    + [f" {token} " for token in TOKENS]
    + [f'"{TOKENS[0]}"', f"api_key: {TOKENS[1]}\n", f"@{TOKENS[0]}", f"[{TOKENS[2]}", f"# {TOKENS[3]}\n"]
)


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    """A spec that somebody or something edited: characters, lines and indentation."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["insert", "delete", "swap", "lines", "indent", "colon", "ends", "splice"]))
        at = draw(st.integers(0, len(text)))
        lines = text.splitlines(keepends=True) or [""]
        line, other = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        if kind == "insert":
            text = text[:at] + draw(st.one_of(st.sampled_from(ODD), st.text(max_size=6))) + text[at:]
        elif kind == "delete":
            text = text[:at] + text[at + draw(st.integers(1, 12)) :]
        elif kind == "swap":
            text = text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]
        elif kind == "lines":
            lines[line], lines[other] = draw(
                st.sampled_from([(lines[other], lines[line]), ("", lines[other]), (lines[line] * 2, lines[other])])
            )
            text = "".join(lines)
        elif kind == "indent":
            lines[line] = draw(st.sampled_from([" ", "  ", "\t", "   ", "- "])) + lines[line]
            text = "".join(lines)
        elif kind == "colon":
            text = text.replace(": ", draw(st.sampled_from([":", " : ", "=", ":\n", ": - ", ": !"])), 1)
        elif kind == "ends":
            text = text.replace("\n", draw(st.sampled_from(["\r\n", "\r", "\u2028"])))
        else:
            text = text[:at] + draw(st.sampled_from(TEXTS))[at:]
    return text


@fuzz(0.5)
@given(text=mutated_texts())
def test_edited_text(project: Project, text: str) -> None:
    check(project.write(text))


@fuzz(0.1)
@given(
    text=st.sampled_from(TEXTS),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]),
    junk=st.binary(max_size=30),
    cut=st.integers(0, 400),
)
def test_bytes(project: Project, text: str, encoding: str, junk: bytes, cut: int) -> None:
    content = text.encode(encoding)
    check(project.write(content[:cut] + junk + content[cut:]))


@fuzz(0.15)
@given(text=mutated_texts(), rounds=st.just(3))
def test_fixes_never_break(project: Project, text: str, rounds: int) -> None:
    """`--fix` on what it finds, again and again: it comes to an end, and each fix takes its error away."""
    spec = project.write(text)
    for _ in range(rounds):
        found = [d for d in compile_spec(spec).diagnostics if d.fix is not None and d.fix.span.source.path == spec]
        if not found:
            return
        (before, *_) = found
        apply_fixes((before,))
        left = compile_spec(spec).diagnostics
        assert (before.code, before.message, before.primary.span.start) not in {
            (d.code, d.message, d.primary.span.start) for d in left
        }, before


# Trees --------------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.dates(),
    st.binary(max_size=4),
    st.text(max_size=20),
    st.sampled_from(["auto", "8xH200", "bf16", "fp16", "no", "1e-4", "90m", ".%", "5%", "1,000", "٣", "x" * 2000]),
    st.sampled_from(["is not a hardware shape", "²x²", "1 k", "9" * 50, "../..", "/", "a\x00b", "$HOME/x", "1-1-1"]),
)
words = st.one_of(
    st.sampled_from(sorted(homes())),
    st.sampled_from(["lr", "num_train_epochs", "lora_rank", "--bf16", "rnak", "a.b", "<<", "", "0", "api_key", "a: b"]),
    st.text(max_size=12),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=12,
)
PATHS = sorted({path for paths in homes().values() for path in paths}, key=str)


def to_yaml(value: Any, depth: int = 0) -> str:
    """Flow YAML with everything plain that may be plain, as people write it: this reads back as other types."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {to_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_yaml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=True) if not value.isascii() or not value.isalnum() else value
    if isinstance(value, bytes):
        return f"!!binary {value.hex() or 'aa'}"
    if value is None:
        return "null"
    return str(value).lower()


def put(tree: dict[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    """Set a value, going through the first entry of lists."""
    node: Any = tree
    for part in path[:-1]:
        inner = node.get(part) if isinstance(node, dict) else None
        if isinstance(inner, list) and inner:
            inner = inner[0]
        if not isinstance(inner, dict):
            inner = {}
            node[part] = inner
        node = inner
    node[path[-1]] = value


@fuzz(0.5)
@given(edits=st.lists(st.tuples(st.sampled_from(PATHS), st.one_of(words, st.none()), values), min_size=1, max_size=4))
def test_any_value_at_any_key(project: Project, edits: list[tuple[Any, str | None, Any]]) -> None:
    tree = yaml.safe_load(COMPLETE)
    for path, word, value in edits:
        put(tree, path if word is None else (*path[:-1], word), value)
    check(project.write("\n".join(f"{json.dumps(key)}: {to_yaml(value)}" for key, value in tree.items())))


@fuzz(0.15)
@given(depth=st.integers(1, 200), opening=st.sampled_from(["[", "{a: ", "- ", "? ", "a:\n "]), rest=st.text(max_size=4))
def test_nesting(project: Project, depth: int, opening: str, rest: str) -> None:
    text = opening * depth if "\n" not in opening else "".join(f"{' ' * level}a:\n" for level in range(depth))
    check(project.write(f"{COMPLETE}x:\n {text}{rest}"))
    check(project.write(text + rest))


# Grammar ------------------------------------------------------------------------------------------------------------

plain = st.one_of(words, st.sampled_from(["1", "a b", "x#y", "1e5", "~", "yes", "2024-01-01"]))
anchors = st.sampled_from(["", "", "", "&a ", "&b ", "&a &b ", "!!int ", "!x ", "! "])
leaf = st.one_of(
    plain,
    plain.map(lambda word: f"'{word}'"),
    plain.map(lambda word: f'"{word}"'),
    st.sampled_from(["*a", "*b", "*", "|\n   text\n", ">-\n   text\n", "|9\n x", "", '"\\x', "<<", "@x", "%x", "`"]),
)
flow = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.builds("[{}]".format, st.lists(inner, max_size=4).map(", ".join)),
        st.builds("{{{}}}".format, st.lists(st.builds("{}: {}".format, inner, inner), max_size=4).map(", ".join)),
        st.builds("{}{}".format, anchors, inner),
    ),
    max_leaves=10,
)


@st.composite
def blocks(draw: st.DrawFn, indent: int = 0) -> str:
    """Block mappings and lists with flow values; now and then indented as they should not be."""
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        pad = " " * max(0, indent + draw(st.sampled_from([0, 0, 0, 0, 0, 1, -1])))
        head = draw(st.one_of(plain.map(lambda word: f"{word}:"), st.just("-"), leaf.map(lambda key: f"? {key}\n:")))
        if indent < 8 and draw(st.booleans()):
            lines.append(f"{pad}{head} {draw(anchors)}\n{draw(blocks(indent + 2))}")
        else:
            lines.append(f"{pad}{head} {draw(flow)}\n")
    return "".join(lines)


@fuzz(0.4)
@given(
    text=blocks(), complete=st.booleans(), head=st.sampled_from(["", "---\n", "%YAML 1.2\n---\n", "# x\n", "\ufeff"])
)
def test_yaml_of_all_kinds(project: Project, text: str, complete: bool, head: str) -> None:
    check(project.write(f"{head}{COMPLETE if complete else ''}{text}"))


# Command line, sweeps, extended files -------------------------------------------------------------------------------

KEYS = st.one_of(
    st.sampled_from(PATHS).map(lambda path: ".".join(map(str, path))),
    st.lists(words, min_size=1, max_size=4).map(".".join),
    st.sampled_from(["data.train.0.path", "sweep.lora.rank", "extends", "name", "", "a" * 300, "a." * 80 + "a"]),
)
arguments = st.one_of(
    st.builds("{}={}".format, KEYS, st.one_of(flow, values.map(to_yaml))),
    st.text(max_size=20),
    st.builds("{}=\udcff{}".format, KEYS, st.sampled_from(["", "\n", "\nb: 1", " # x", f" {TOKENS[0]}"])),
)


@fuzz(0.3)
@given(
    overrides=st.lists(arguments, min_size=1, max_size=3, unique=True),
    site=st.one_of(st.none(), st.just("example"), plain),
)
def test_overrides(project: Project, overrides: list[str], site: str | None) -> None:
    check(project.write(COMPLETE), tuple(overrides), site)


axes = st.dictionaries(
    st.one_of(KEYS, st.lists(KEYS, min_size=2, max_size=3).map(", ".join)),
    st.one_of(values, st.lists(values, max_size=3), st.lists(st.lists(scalars, max_size=3), max_size=3)),
    max_size=3,
)


@fuzz(0.3)
@given(sweep=st.one_of(axes, values))
def test_sweeps(project: Project, sweep: Any) -> None:
    check(project.write(f"{COMPLETE}sweep: {to_yaml(sweep)}\n"))


NAMES = ["a.yaml", "b.yaml", "c.yaml", "sub/d.yaml", "fuzzed.yaml"]
targets = st.one_of(
    st.sampled_from([*NAMES, "sub/../a.yaml", "../b.yaml", "none.yaml", "sub", ".", "", "/dev/null", "a", "x" * 300]),
    scalars,
)


@fuzz(0.2)
@given(
    graph=st.dictionaries(st.sampled_from(NAMES), st.one_of(targets, st.lists(targets, max_size=4)), min_size=1),
    texts=st.lists(st.one_of(mutated_texts(), st.just("seed: 1\n"), st.just("seed: x\n")), min_size=5, max_size=5),
)
def test_graphs_of_files(project: Project, graph: dict[str, Any], texts: list[str]) -> None:
    (project.specs / "sub").mkdir(exist_ok=True)
    for name, text in zip(NAMES, texts, strict=True):
        body = "\n".join(line for line in text.splitlines() if not line.startswith("extends"))
        project.write(f"extends: {to_yaml(graph[name])}\n{body}\n" if name in graph else body, name)
    check(project.specs / "fuzzed.yaml")
