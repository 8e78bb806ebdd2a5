"""The tiny checkpoint: reproducible, complete, and readable by everything that reads the released one."""

import multiprocessing
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from higgsc.catalog.codec import SPECIAL_TOKENS  # noqa: E402
from higgsc.catalog.higgs_audio_v2 import TINY  # noqa: E402
from higgsc.data.codec import Codec, audio_tokenizer_class  # noqa: E402
from higgsc.train.model.builtin import build_tiny, resolve_base, tiny_path  # noqa: E402

ARABIC = "مرحبًا، كيف حالُكَ اليوم؟ ٱلْعَرَبِيَّةُ ١٢٣ — OK."


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_bytes_every_time_and_the_random_state_is_left_alone(tmp_path: Path) -> None:
    built = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        build_tiny(tmp_path / "tiny")
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.random.get_state()[1].tolist() == before[2]
        built.append(contents(tmp_path / "tiny"))
        shutil.rmtree(tmp_path / "tiny")
    assert built[0] == built[1]
    assert set(built[0]) == {
        "model/config.json",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/processor_config.json",
        "model/chat_template.jinja",
        "audio_tokenizer/config.json",
        "audio_tokenizer/model.safetensors",
        "audio_tokenizer/preprocessor_config.json",
    }


def _tiny_path(cache: str, answers: "multiprocessing.Queue[str]") -> None:
    import os

    os.environ["HIGGSC_CACHE"] = cache
    answers.put(str(tiny_path("model")))


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[str] = context.Queue()
    processes = [context.Process(target=_tiny_path, args=(str(tmp_path), answers)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert answers.get() == answers.get()
    assert len(list(tmp_path.iterdir())) == 1  # no scratch folder is left behind


def test_resolve_base() -> None:
    assert resolve_base("builtin:tiny") == tiny_path("model")
    assert resolve_base("builtin:tiny", "audio_tokenizer") == tiny_path("audio_tokenizer")
    assert resolve_base("bosonai/higgs-audio-v2-tokenizer", "audio_tokenizer") == "bosonai/higgs-audio-v2-tokenizer"


def test_the_model_loads_without_missing_or_unexpected_keys() -> None:
    model, info = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(
        tiny_path("model"), use_text_head=True, output_loading_info=True
    )
    assert not any(info.values())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == TINY.parameters()
    assert model.config.codebook_size == 1026
    generation = model.generation_config
    assert (generation.do_sample, generation.ras_win_len, generation.ras_win_max_num_repeat) == (True, 7, 2)


def test_ids_in_the_configuration_are_the_tokenizers() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_path("model"))
    config = transformers.AutoConfig.from_pretrained(tiny_path("model"))
    assert tokenizer.convert_ids_to_tokens(
        [
            config.bos_token_id,
            config.eos_token_id,
            config.pad_token_id,
            config.audio_token_id,
            config.audio_bos_token_id,
            config.audio_delay_token_id,
        ]
    ) == [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|end_of_text|>",
        "<|AUDIO_OUT|>",
        "<|audio_out_bos|>",
        "<|reserved_special_token_6|>",
    ]
    assert len(tokenizer) == config.vocab_size == TINY.vocab_size


def test_any_text_round_trips_through_the_tokenizer() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_path("model"))
    for text in (ARABIC, "  two  spaces\n", "\U0001f399 ok", "".join(map(chr, range(1, 0x700)))):
        assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text
    for token in SPECIAL_TOKENS:
        assert len(tokenizer(token)["input_ids"]) == 1
    assert tokenizer("a<|eot_id|>")["input_ids"] == tokenizer("a<|eot_id|>", add_special_tokens=False)["input_ids"]


def test_the_processor_loads_both_ways() -> None:
    codec = audio_tokenizer_class().from_pretrained(tiny_path("audio_tokenizer"))
    for load in (transformers.AutoProcessor, transformers.HiggsAudioV2Processor):
        processor = load.from_pretrained(tiny_path("model"))
        assert isinstance(processor, transformers.HiggsAudioV2Processor)
        assert isinstance(processor.audio_tokenizer, audio_tokenizer_class())
        assert load.from_pretrained(tiny_path("model"), audio_tokenizer=codec).audio_tokenizer is codec
    extractor = transformers.DacFeatureExtractor.from_pretrained(tiny_path("audio_tokenizer"))
    assert extractor.sampling_rate == 24_000


CONVERSATION = [
    {"role": "system", "content": [{"type": "text", "text": "Generate audio following instruction. "}]},
    {"role": "scene", "content": [{"type": "text", "text": "Audio is recorded from a quiet room."}]},
    {"role": "user", "content": [{"type": "text", "text": ARABIC}]},
    {"role": "assistant", "content": [{"type": "audio", "url": "unread.wav"}]},
    {"role": "user", "content": "target text"},
]

RENDERED = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nGenerate audio following instruction.\n\n"
    "<|scene_desc_start|>\nAudio is recorded from a quiet room.\n<|scene_desc_end|><|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n" + ARABIC + "<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|><|AUDIO_OUT|><|audio_eos|><|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\ntarget text<|eot_id|>"
)

GENERATION_PROMPT = "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>"


@pytest.fixture(scope="module")
def processor() -> "transformers.HiggsAudioV2Processor":
    audio_tokenizer_class()
    return transformers.HiggsAudioV2Processor.from_pretrained(tiny_path("model"))


def test_the_chat_template_renders_the_documented_prompt(
    processor: "transformers.HiggsAudioV2Processor",
) -> None:
    assert processor.apply_chat_template(CONVERSATION, tokenize=False) == RENDERED
    prompted = processor.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert prompted == RENDERED + GENERATION_PROMPT


def test_a_scene_may_hold_the_speakers_clips(processor: "transformers.HiggsAudioV2Processor") -> None:
    clip = {"type": "audio", "url": "unread.wav"}
    scene = [{"type": "text", "text": text} for text in ("A room.", "SPEAKER0:", "SPEAKER1:")]
    messages = [
        {"role": "system", "content": "S"},
        {"role": "scene", "content": [scene[0], scene[1], clip, scene[2], clip]},
    ]
    assert processor.apply_chat_template(messages, tokenize=False) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS\n\n<|scene_desc_start|>\n"
        "A room.\n\nSPEAKER0: <|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>\n"
        "SPEAKER1: <|audio_out_bos|><|AUDIO_OUT|><|audio_eos|>\n<|scene_desc_end|><|eot_id|>"
    )


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([{"role": "user", "content": "hello"}], "system message is required"),
        ([CONVERSATION[0], {"role": "assistant", "content": "text"}], "audio content only"),
        (
            [CONVERSATION[0], {"role": "assistant", "content": [{"type": "text", "text": "t"}]}],
            "audio content only",
        ),
    ],
)
def test_the_chat_template_refuses(
    processor: "transformers.HiggsAudioV2Processor", messages: list[dict[str, object]], complaint: str
) -> None:
    with pytest.raises(Exception, match=complaint):
        processor.apply_chat_template(messages, tokenize=False)


def test_one_step_of_the_released_class_runs_on_a_processed_conversation(
    processor: "transformers.HiggsAudioV2Processor",
) -> None:
    wave = np.sin(np.arange(24_000) / 20).astype(np.float32) / 2
    batch = processor(text=RENDERED + GENERATION_PROMPT, audio=[wave], sampling_rate=24_000, return_tensors="pt")
    rows = int(batch["audio_input_ids_mask"].sum())
    assert rows == Codec.load(tiny_path("audio_tokenizer")).frames(wave.size) + 9
    assert (batch["input_ids"] == 256).sum() == 1  # one <|begin_of_text|>
    model = transformers.HiggsAudioV2ForConditionalGeneration.from_pretrained(tiny_path("model"), use_text_head=True)
    output = model.generate(**batch, max_new_tokens=12, do_sample=False)
    assert output.shape[-1] == 8
