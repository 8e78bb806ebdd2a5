"""The laws of the house (CONTRIBUTING.md), each one a test."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from higgsc.compiler.codes import CODES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "higgsc"
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "msgspec",
    "numpy",
    "safetensors",
    "soundfile",
    "soxr",
    "tensorboard",
    "fsspec",
    "fastapi",
    "starlette",
    "uvicorn",
    "prometheus_client",
}
COMPILE_SIDE = ("spec", "catalog", "compiler", "emit", "launch", "cli", "contract")
RUN_SIDE = ("data", "train", "deploy")


def modules(room: str) -> Iterator[Path]:
    return (PACKAGE / room).rglob("*.py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its head or inside a function, as a dotted name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("higgsc.")}


@pytest.mark.parametrize("room", COMPILE_SIDE)
def test_law_1_the_compile_side_imports_nothing_heavy(room: str) -> None:
    for path in modules(room):
        heavy = {name.split(".")[0] for name in imports(path)} & HEAVY
        assert not heavy, f"{path} imports {heavy}"


def test_law_1_a_build_loads_nothing_heavy() -> None:
    """Seen from inside the process, whatever the imports look like: build a spec and list what was loaded."""
    program = (
        "import sys; from pathlib import Path\n"
        "from higgsc.compiler.compile import compile_spec\n"
        "from higgsc.emit.build import builds_of\n"
        "from higgsc.emit.emitters import emit_all\n"
        "import higgsc.launch.local\n"
        "emit_all(builds_of(compile_spec(Path('specs/arabic.yaml')))[0])\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("room", RUN_SIDE)
def test_law_2_the_run_side_meets_the_compile_side_in_the_contract(room: str) -> None:
    for path in modules(room):
        assert not rooms_of(path) & {"compiler", "emit", "launch", "cli", "spec"}, path


def test_law_3_arrows_point_one_way() -> None:
    """cli → launch → emit → compiler → catalog, spec; the contract is below them all."""
    below = {
        "contract": set(),
        "spec": set(),
        "catalog": set(),
        "compiler": {"catalog", "spec", "contract"},
        "emit": {"compiler", "catalog", "spec", "contract"},
        "launch": {"emit", "compiler", "catalog", "spec", "contract"},
        "data": {"contract", "catalog", "train"},
        "train": {"contract", "catalog", "data"},
        "deploy": {"contract", "catalog", "data", "train"},
    }
    for room, allowed in below.items():
        for path in modules(room):
            assert rooms_of(path) <= allowed | {room, "__version__"}, f"{path} imports {rooms_of(path)}"


def test_law_3_no_module_imports_itself_through_others() -> None:
    """No circles between the files either, imports inside functions included."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph = {name: sorted((imports(path) & set(names)) - {name}) for name, path in names.items()}
    finished: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circle: {' → '.join((*way[way.index(name) :], name))}"
        if name not in finished:
            for below in graph[name]:
                visit(below, (*way, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_law_4_the_compiler_reads_no_clock_no_chance_and_no_environment() -> None:
    forbidden = {"time", "datetime", "random", "secrets", "socket", "platform", "uuid", "getpass", "subprocess"}
    for room in ("spec", "catalog", "compiler", "emit"):
        for path in modules(room):
            names = {name.split(".")[0] for name in imports(path)}
            assert not names & forbidden, f"{path} imports {names & forbidden}"
            assert "os.environ" not in path.read_text("utf-8"), path
            assert "getenv" not in path.read_text("utf-8"), path


def test_law_4_a_build_does_not_depend_on_where_it_runs(tmp_path: Path) -> None:
    """Another hash seed, locale, time zone, user and folder: the same bytes (the lock holds all hashes)."""
    program = (
        "import sys; from pathlib import Path\n"
        "from higgsc.compiler.compile import compile_spec\n"
        "from higgsc.emit.build import builds_of\n"
        "from higgsc.emit.emitters import emit_all\n"
        f"(build,) = builds_of(compile_spec(Path({str(ROOT / 'specs/arabic.yaml')!r})))\n"
        "sys.stdout.write(emit_all(build)['higgsc.lock'])"
    )
    locks = set()
    for seed, zone, cwd in (("1", "UTC", ROOT), ("2", "Asia/Riyadh", tmp_path)):
        places = {"TZ": zone, "LC_ALL": "C", "USER": seed, "PYTHONPATH": str(ROOT)}
        environment = {**os.environ, **places, "PYTHONHASHSEED": seed}
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True, check=True
        )
        locks.add(result.stdout)
    assert len(locks) == 1


def test_law_5_commands_are_argument_tuples_until_the_emitter() -> None:
    from higgsc.compiler.compile import compile_spec

    for spec in sorted((ROOT / "specs").glob("*.yaml")):
        for step in compile_spec(spec).compiled[0].plan.steps:
            assert isinstance(step.argv, tuple)
            assert all(isinstance(argument, str) and " " not in argument for argument in step.argv)


def test_law_5_one_function_makes_shell_text() -> None:
    """`shlex` is used in `emit/shell.py` alone; no other room builds shell text or runs a shell on a string."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        if path != PACKAGE / "emit" / "shell.py":
            assert "shlex" not in imports(path), path
            keeps_templates = path == PACKAGE / "emit" / "template_cache.py"
            assert "jinja2" not in imports(path) or path.parent.name in RUN_SIDE or keeps_templates, path
        assert "shell=True" not in text, path
        assert "os.system" not in text, path


def test_law_6_mistakes_are_diagnostics_never_tracebacks(tmp_path: Path) -> None:
    """The command line on each broken fixture: exit code 1, a place, no traceback."""
    for spec in sorted((ROOT / "tests" / "fixtures" / "diagnostics").glob("HC[0-35]*.yaml")):
        result = subprocess.run(
            [sys.executable, "-m", "higgsc", "check", str(spec)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        code = spec.stem.split("-")[0]
        assert result.returncode == (1 if CODES[code].severity == "error" else 0), (spec, result.stderr)
        assert code in result.stderr
        assert "-->" in result.stderr
        assert "Traceback" not in result.stderr
        assert result.returncode == 0 or result.stdout == ""
