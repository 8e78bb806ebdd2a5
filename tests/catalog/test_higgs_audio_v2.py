"""The catalog's shapes against transformers' class, instantiated without memory."""

import pytest

from higgsc.catalog.gpus import GPUS, find_gpu
from higgsc.catalog.higgs_audio_v2 import RELEASED, TINY, HiggsAudioV2Shape, shape_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPES = pytest.mark.parametrize("shape", [RELEASED, TINY], ids=["released", "tiny"])


def instantiate(shape: HiggsAudioV2Shape) -> "torch.nn.Module":
    config = transformers.HiggsAudioV2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        num_codebooks=shape.codebooks,
        codebook_size=shape.codebook_size,
        pad_token_id=1,
    )
    with torch.device("meta"):
        return transformers.HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)


@SHAPES
def test_parameters_match_the_class_in_name_order_and_shape(shape: HiggsAudioV2Shape) -> None:
    actual = [(name, tuple(parameter.shape)) for name, parameter in instantiate(shape).named_parameters()]
    assert list(shape.parameters().items()) == actual


@SHAPES
def test_linear_modules_match_the_class(shape: HiggsAudioV2Shape) -> None:
    actual = {
        name: tuple(module.weight.shape)
        for name, module in instantiate(shape).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert shape.linear_modules() == actual
    assert len(actual) == 10 * shape.layers + 2


def test_the_released_count_is_the_published_total() -> None:
    assert RELEASED.parameter_count() == 5_771_283_456
    assert len(RELEASED.linear_modules()) == 282


def test_shape_of() -> None:
    assert shape_of("builtin:tiny") is TINY
    assert shape_of("bosonai/higgs-audio-v2-generation-3B-base") is RELEASED


def test_find_gpu_ignores_case() -> None:
    assert find_gpu("h200") is GPUS["H200"]
    assert find_gpu("a100-80gb") is GPUS["A100-80GB"]
    assert find_gpu("TPU") is None
