"""Finding a base, by folder, by `builtin:tiny` and on the hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.deploy.base import stored_dtype  # noqa: E402
from higgsc.train.model.folder import base_folder  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_folder_below_the_root_and_as_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(base)
    assert base_folder("models/mine", None, root=tmp_path) == tmp_path / "models" / "mine"
    assert base_folder(str(base), None, root=tmp_path) == base
    assert base_folder("builtin:tiny", None, root=tmp_path) == base


def offline(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process that may not use the network, with a hub cache of its own."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PATH": "/usr/bin:/bin", "HOME": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_hub_id_that_cannot_be_had(tmp_path: Path) -> None:
    code = """if True:
        import pathlib
        from higgsc.contract.outcome import StepError
        from higgsc.train.model.folder import base_folder
        for name, revision in (("nobody/no-such-base", "0ff4877"), ("/no/such/folder", None), ("no folder", None)):
            try:
                base_folder(name, revision, root=pathlib.Path("."))
            except StepError as error:
                assert error.code == 66 and name in error.message and (revision or "") in error.message, error
                assert not error.message.endswith(".") and "\\n" not in error.message, error
            else:
                raise AssertionError(name)
    """
    ended = offline(code, tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_hub_cache(base: Path, sharded_base: Path, tmp_path: Path, sharded: bool) -> None:
    # The layout of the hub's cache, as `huggingface_hub` documents it.
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--somebody--base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.parent.mkdir()
    snapshot.symlink_to(sharded_base if sharded else base)
    code = """if True:
        import pathlib, sys
        from higgsc.train.model.folder import base_folder
        from higgsc.deploy.weights import open_weights
        print(len(open_weights(base_folder("somebody/base", None, root=pathlib.Path("."))).tensors))
    """
    ended = offline(code, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 40


@pytest.mark.parametrize("config,code", [(None, 66), ("{", 65), ("[]", 65), ("{}", 65), ('{"dtype": "int8"}', 65)])
def test_stored_dtype_mistakes(tmp_path: Path, config: str | None, code: int) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(StepError) as raised:
        stored_dtype(tmp_path)
    assert raised.value.code == ExitCode(code)
    assert str(tmp_path) in str(raised.value)


def test_stored_dtype(base: Path, tmp_path: Path) -> None:
    assert stored_dtype(base) == torch.float32
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    assert stored_dtype(tmp_path) == torch.bfloat16
