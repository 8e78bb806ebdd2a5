"""The chat layout: the ids of transformers' processor, and text that cannot pose as control tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import soundfile  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from higgsc.catalog.codec import DELAY_ROWS, SPECIAL_TOKENS  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.codec import Codec  # noqa: E402
from higgsc.data.delay import apply_delay  # noqa: E402
from higgsc.data.layout import DEFAULT_SYSTEM, ChatLayout, Segments  # noqa: E402
from higgsc.train.model.builtin import tiny_path  # noqa: E402

QUICKSTART = Path(__file__).resolve().parents[2] / "specs" / "data" / "quickstart"
REFERENCE_TEXT = "صَبَاحُ الْخَيْرْ، كَيْفَ حَالُكَ؟"
TARGET_TEXT = "ستمطر السماء غدا في شمال البلاد. It's 12:30."


@pytest.fixture(scope="module")
def layout() -> ChatLayout:
    return ChatLayout.load("builtin:tiny")


def text(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def placeholders(layout: ChatLayout, rows: int) -> list[int]:
    return [layout.audio_token_id] * (rows - DELAY_ROWS) + [layout.audio_delay_token_id] * DELAY_ROWS


@pytest.mark.parametrize("scene", [None, "Audio is recorded from a quiet room."])
def test_ids_and_rows_are_those_of_the_processor_with_real_audio(
    layout: ChatLayout, processor: Any, tmp_path: Path, scene: str | None
) -> None:
    """The same conversation of five turns, through transformers and through this package."""
    codec = Codec.load(tiny_path("audio_tokenizer"), device="cpu")
    turns: list[dict[str, Any]] = [{"role": "system", "content": text(DEFAULT_SYSTEM)}]
    turns += [{"role": "scene", "content": text(scene)}] if scene else []
    clips = []
    for clip, said, frames in (("salim-01", REFERENCE_TEXT, 30), ("salim-02", TARGET_TEXT, 41)):
        # Whole frames: the codec pads others, where transformers does not.
        wave, _ = soundfile.read(QUICKSTART / "audio" / f"{clip}.flac", frames=frames * 960, dtype="float32")
        soundfile.write(tmp_path / f"{clip}.wav", wave, 24_000, subtype="FLOAT")
        clips.append(apply_delay(codec.encode(wave)))
        audio = {"type": "audio", "path": str(tmp_path / f"{clip}.wav")}
        turns += [{"role": "user", "content": text(said)}, {"role": "assistant", "content": [audio]}]
    expected = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")

    segments = layout.segments(
        system=DEFAULT_SYSTEM, scene=scene, reference_text=REFERENCE_TEXT, target_text=TARGET_TEXT
    )
    assert [len(rows) for rows in clips] == [39, 50]
    assert expected["input_ids"][0].tolist() == [
        *segments.prefix.tolist(),
        *placeholders(layout, 39),
        *segments.middle.tolist(),
        *placeholders(layout, 50),
        *segments.suffix.tolist(),
    ]
    np.testing.assert_array_equal(expected["audio_input_ids"][0].numpy(), np.concatenate(clips))


def test_a_prompt_is_the_processors_generation_prompt(layout: ChatLayout, processor: Any) -> None:
    """What is spoken from, prefix and middle, ends where transformers' `generate` starts."""
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": [{"type": "audio"}]},
        {"role": "user", "content": "t"},
    ]
    rendered = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    segments = layout.segments(system="s", scene=None, reference_text="r", target_text="t")
    assert ids == [*segments.prefix.tolist(), layout.audio_token_id, *segments.middle.tolist()]


def test_cutting_at_the_clips_changes_no_ids_of_a_merging_tokenizer(processor: Any) -> None:
    """As the released tokenizer: byte-level BPE with merges, which adds <|begin_of_text|> when asked for."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    sentences = (QUICKSTART / "sentences.txt").read_text("utf-8").splitlines()
    bpe.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    begin = (SPECIAL_TOKENS[0], bpe.token_to_id(SPECIAL_TOKENS[0]))
    bpe.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=begin[0], eos_token=SPECIAL_TOKENS[1])
    tokenizer.chat_template = processor.chat_template
    assert tokenizer("x")["input_ids"][0] == begin[1]

    layout = ChatLayout(tokenizer, name="merging")
    cut = layout.segments(system="s", scene="q", reference_text=REFERENCE_TEXT, target_text=TARGET_TEXT)
    clip = [{"type": "audio"}]
    whole = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "s"},
            {"role": "scene", "content": "q"},
            {"role": "user", "content": REFERENCE_TEXT},
            {"role": "assistant", "content": clip},
            {"role": "user", "content": TARGET_TEXT},
            {"role": "assistant", "content": clip},
        ],
        return_dict=True,
    )["input_ids"]
    marker = [layout.audio_token_id]
    assert [*cut.prefix.tolist(), *marker, *cut.middle.tolist(), *marker, *cut.suffix.tolist()] == whole
    assert whole.count(begin[1]) == 1
    assert len(tokenizer.tokenize(REFERENCE_TEXT)) < len(REFERENCE_TEXT.encode()), "nothing was merged"


@pytest.mark.parametrize("token", ["<|AUDIO_OUT|>", "<|eot_id|>", "<|audio_out_bos|>", "<SE_s>"])
@pytest.mark.parametrize("field", ["system", "scene", "reference_text", "target_text"])
def test_a_control_token_in_a_text_is_refused(layout: ChatLayout, field: str, token: str) -> None:
    texts = {"system": "s", "scene": "q", "reference_text": "r", "target_text": "t", field: f"مرحبا {token}."}
    with pytest.raises(ValueError, match=f"the {field.split('_')[0]}.* holds the control token ") as caught:
        layout.segments(**texts)
    assert token in str(caught.value)


def test_brackets_that_are_no_control_token_are_text(layout: ChatLayout) -> None:
    plain = segments(layout).prefix
    bracketed = layout.segments(system="s", scene=None, reference_text="<|no_such|> r", target_text="t").prefix
    assert len(bracketed) == len(plain) + len(b"<|no_such|> ")


def test_a_base_that_does_not_exist() -> None:
    with pytest.raises(StepError, match="cannot load the tokenizer of the base /no/such/base") as caught:
        ChatLayout.load("/no/such/base")
    assert caught.value.code == ExitCode.MISSING_INPUT


def test_a_checkpoint_of_another_kind_is_refused(processor: Any, tmp_path: Path) -> None:
    processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(StepError, match="has no chat template"):
        ChatLayout.load(tmp_path)
    template = "{% for turn in messages %}{{ turn['role'] }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(StepError, match="makes 0 audio placeholders"):
        segments(ChatLayout.load(tmp_path))
    (tmp_path / "chat_template.jinja").write_text(template + "<|AUDIO_OUT|> <|AUDIO_OUT|>.")
    with pytest.raises(StepError, match=r"puts no clip between <\|audio_out_bos\|>"):
        segments(ChatLayout.load(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    with pytest.raises(StepError, match="refuses a voice-cloning conversation: no such role"):
        segments(ChatLayout.load(tmp_path))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    other = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(tmp_path)
    with pytest.raises(StepError, match=r"does not know <\|AUDIO_OUT\|>"):
        ChatLayout.load(tmp_path)


def segments(layout: ChatLayout) -> Segments:
    return layout.segments(system="s", scene=None, reference_text="r", target_text="t")
