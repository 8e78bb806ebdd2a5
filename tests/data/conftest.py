"""The tiny checkpoint's parts, and projects with data files and recordings in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import soundfile  # noqa: E402

from higgsc.contract.jobs import DataLimits, DataSource, ModelRef, PrepareJob, StepContext  # noqa: E402
from higgsc.contract.outcome import StepResult  # noqa: E402
from higgsc.data.codec import audio_tokenizer_class  # noqa: E402
from higgsc.data.store import Store  # noqa: E402
from higgsc.train.model.builtin import tiny_path  # noqa: E402

QUICKSTART = Path(__file__).resolve().parents[2] / "specs" / "data" / "quickstart"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def processor() -> Any:
    """transformers' own processor of the tiny checkpoint."""
    from transformers import HiggsAudioV2Processor

    audio_tokenizer_class()
    return HiggsAudioV2Processor.from_pretrained(tiny_path("model"))


@dataclass
class Project:
    """A project folder with a data file `data/train.json` and recordings beside it."""

    root: Path
    context: StepContext

    def __init__(self, root: Path) -> None:
        self.root = root
        self.context = StepContext(job_path=root / "job.json", root=root, rank=0, world_size=1)
        (root / "data" / "audio").mkdir(parents=True)

    def audio(self, name: str, seconds: float = 0.6, *, seed: int = 0) -> str:
        """Make a recording; returns its name as a data file has it."""
        noise = np.random.default_rng(seed).normal(0, 0.1, round(24_000 * seconds))
        soundfile.write(self.root / "data" / "audio" / name, noise, 24_000)
        return f"audio/{name}"

    def write(self, samples: list[Any], name: str = "data/train.json") -> Path:
        """Write a data file, a JSON array that is indented as people's are."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(samples, indent=2), "utf-8")
        return path

    def job(self, *files: str, **changes: Any) -> PrepareJob:
        limits = {"min_seconds": 0.2, "max_seconds": 30.0, "max_bad_fraction": 0.0, **changes.pop("limits", {})}
        fields = {
            "higgsc": "0.1.0",
            "name": "test",
            "root": ".",
            "run": "runs/test",
            "seed": 1,
            "device": "cpu",
            "model": ModelRef(
                base="builtin:tiny", revision=None, audio_tokenizer="builtin:tiny", audio_tokenizer_revision=None
            ),
            "sources": tuple(DataSource(path=file, format="auto") for file in files or ("data/train.json",)),
            "validation_fraction": 0.0,
            "limits": DataLimits(**limits),
            "store": "runs/test/store",
            "cache": "codes",
            **changes,
        }
        return PrepareJob(**fields)

    def prepare(self, *files: str, **changes: Any) -> StepResult:
        from higgsc.data.prepare import run

        return run(self.job(*files, **changes), self.context)

    def store(self) -> Store:
        return Store.open(self.root / "runs/test/store", verify=True)

    def contents(self) -> dict[str, bytes]:
        folder = self.root / "runs/test/store"
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def filled(project: Project) -> Project:
    """A project with two recordings."""
    project.audio("a.wav", seed=1)
    project.audio("b.wav", seed=2)
    return project


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The quickstart's speech, prepared once for all tests that only look at the result."""
    project = Project(tmp_path_factory.mktemp("quickstart"))
    shutil.copytree(QUICKSTART, project.root / "data", dirs_exist_ok=True)
    project.prepare("data/train_chatml.json", validation_fraction=0.1)
    return project
