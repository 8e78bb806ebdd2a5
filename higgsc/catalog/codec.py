"""Constants of the Higgs Audio v2 codec and of the chat layout around its frames.

Terms: a *frame* is one time step of the codec, eight codes wide (one per codebook); a *row* is one audio
position of the language model. The delay pattern shifts codebook `k` by `k` rows, so a clip takes more rows
than frames. Sources: the configuration of `bosonai/higgs-audio-v2-tokenizer`, and transformers'
`processing_higgs_audio_v2.py` (`build_delay_pattern`, `get_audio_tokens`).
"""

RELEASED_TOKENIZER = "bosonai/higgs-audio-v2-tokenizer"
"""Hub id of the released codec."""

SAMPLE_RATE = 24_000
"""Samples per second of the codec's mono input and output, in hertz."""

HOP_LENGTH = 960
"""Samples per frame: the product of the encoder's strides 8 * 5 * 4 * 2 * 3."""

FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
"""Frames per second of audio: 25."""

CODEBOOKS = 8
"""Codes per frame: the residual quantizers in use at 2 kbit/s."""

CODEBOOK_ENTRIES = 1_024
"""Codes a codebook holds, numbered 0 to 1023."""

STREAM_BOS = 1_024
"""Code that marks "before the first frame" in a codebook's stream."""

STREAM_EOS = 1_025
"""Code that marks "after the last frame" in a codebook's stream."""

CODEBOOK_SIZE = CODEBOOK_ENTRIES + 2
"""Rows per codebook in the language model's embedding and audio head: the entries, BOS and EOS.

The class default of transformers' `HiggsAudioV2Config.codebook_size` is 1024; the released checkpoint says
1026.
"""

DELAY_ROWS = CODEBOOKS - 1
"""Rows the delay pattern adds: the last codebook runs this many rows behind the first."""

EXTRA_ROWS_PER_CLIP = 2 + DELAY_ROWS
"""Rows of a clip beyond its frames: the BOS row, the EOS row and the delay."""

BEGIN_OF_TEXT = "<|begin_of_text|>"
"""Opens every prompt; written by the chat template, not by the tokenizer."""

END_OF_TEXT = "<|end_of_text|>"
"""End-of-text and padding token of the text tokenizer."""

START_HEADER = "<|start_header_id|>"
"""Opens a turn's header, which holds the role's name."""

END_HEADER = "<|end_header_id|>"
"""Closes a turn's header; two newlines follow."""

END_OF_TURN = "<|eot_id|>"
"""Closes a turn; the language model's end-of-sequence token."""

AUDIO_OUT_BOS = "<|audio_out_bos|>"
"""Opens a clip that the assistant speaks."""

AUDIO_EOS = "<|audio_eos|>"
"""Closes a clip."""

AUDIO_OUT = "<|AUDIO_OUT|>"
"""Placeholder of one audio row, except for the last `DELAY_ROWS` rows of a clip."""

AUDIO_DELAY = "<|reserved_special_token_6|>"
"""Placeholder of the last `DELAY_ROWS` rows of a clip."""

SCENE_START = "<|scene_desc_start|>"
"""Opens the description of the scene inside the system turn."""

SCENE_END = "<|scene_desc_end|>"
"""Closes the description of the scene."""

SPECIAL_TOKENS: tuple[str, ...] = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    START_HEADER,
    END_HEADER,
    "<|eom_id|>",
    END_OF_TURN,
    "<|audio_bos|>",
    AUDIO_EOS,
    AUDIO_OUT_BOS,
    AUDIO_DELAY,
    "<|AUDIO|>",
    AUDIO_OUT,
    "<|recipient|>",
    SCENE_START,
    SCENE_END,
    "<|generation_instruction_start|>",
    "<|generation_instruction_end|>",
    "<SE>",
    "</SE>",
    "<SE_s>",
    "</SE_s>",
    "<SE_e>",
    "</SE_e>",
)
"""Special tokens of the text tokenizer that the model was trained with, in the order of their ids."""


def audio_rows(frames: int) -> int:
    """Rows of the language model that a clip takes.

    Args:
        frames: Codec frames of the clip, at least one.

    Returns:
        `frames + 9`: BOS, the frames, EOS, and seven rows of delay.

    Raises:
        ValueError: If `frames` is below one; a clip without audio has no rows.
    """
    if frames < 1:
        raise ValueError(f"a clip has at least one frame, not {frames}")
    return frames + EXTRA_ROWS_PER_CLIP
