"""The codec constants against the tiny codec, which has the released strides and codebooks."""

import numpy as np
import pytest

from higgsc.catalog import codec as constants
from higgsc.catalog.codec import audio_rows

pytest.importorskip("torch")
pytest.importorskip("transformers")

from higgsc.data.codec import Codec
from higgsc.train.model.builtin import tiny_path


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load(tiny_path("audio_tokenizer"))


def test_constants_match_the_configuration(codec: Codec) -> None:
    config = codec.model.config
    assert config.sample_rate == constants.SAMPLE_RATE
    assert config.hop_length == constants.HOP_LENGTH
    assert config.frame_rate == constants.FRAMES_PER_SECOND
    assert config.num_quantizers == constants.CODEBOOKS
    assert config.codebook_size == constants.CODEBOOK_ENTRIES


def test_one_second_is_25_frames(codec: Codec) -> None:
    codes = codec.encode(np.zeros(24_000, dtype=np.float32))
    assert codes.shape == (constants.FRAMES_PER_SECOND, constants.CODEBOOKS)


def test_rows_of_a_clip() -> None:
    assert constants.EXTRA_ROWS_PER_CLIP == 9
    assert audio_rows(25) == 34
    with pytest.raises(ValueError, match="at least one frame"):
        audio_rows(0)


def test_special_tokens_are_distinct() -> None:
    assert len(set(constants.SPECIAL_TOKENS)) == len(constants.SPECIAL_TOKENS) == 23
