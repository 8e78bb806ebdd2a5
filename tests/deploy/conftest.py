"""The tiny checkpoint as a base, and adapters made by PEFT itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from transformers import HiggsAudioV2ForConditionalGeneration  # noqa: E402

from higgsc.train.model.builtin import tiny_path  # noqa: E402
from tests.deploy.small_run import codec, context, merged, write_store  # noqa: E402, F401 - fixtures

MakeAdapter = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base() -> Path:
    """The tiny checkpoint: float32, one file."""
    return tiny_path("model")


@pytest.fixture(scope="session")
def audio_tokenizer() -> Path:
    return tiny_path("audio_tokenizer")


@pytest.fixture(scope="session")
def sharded_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16 and several shards, with the other files beside them."""
    folder = tmp_path_factory.mktemp("sharded")
    model = _load(base, torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((base / name).read_bytes())
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    return folder


@pytest.fixture
def make_adapter(base: Path, tmp_path: Path) -> MakeAdapter:
    """Writes an adapter whose A and B are both random, as after training, with the options of `LoraConfig`."""

    targets = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "audio_mlp.gate_proj"]

    def make(*, folder: str = "adapter", std: float = 0.05, **options: Any) -> Path:
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": targets, **options})
        model = peft.get_peft_model(_load(base), config)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    parameter.normal_(std=std, generator=generator)
                elif parameter.requires_grad:  # a magnitude of DoRA, a module to save
                    parameter.mul_(1 + std * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / folder)
        return tmp_path / folder

    return make


def _load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return HiggsAudioV2ForConditionalGeneration.from_pretrained(folder, use_text_head=True, dtype=dtype)
