"""Speaking with the tiny checkpoint: prompts as transformers makes them, codes as its `generate` gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from higgsc.catalog.codec import STREAM_BOS, STREAM_EOS  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.data.codec import audio_tokenizer_class  # noqa: E402
from higgsc.data.delay import apply_delay  # noqa: E402
from higgsc.deploy.generate import Speaker, Speech  # noqa: E402
from higgsc.train.speech.sampling import Sampling  # noqa: E402
from higgsc.train.speech.speak import speak, spoken_codes  # noqa: E402

CLIP = Path(__file__).parents[2] / "specs/data/quickstart/audio/huda-01.flac"
TEXTS = ("hello there", "good bye, and thank you")


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker.load("builtin:tiny", "builtin:tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def reference() -> NDArray[np.float32]:
    """A second of speech, whole frames."""
    return read_mono(CLIP, max_seconds=30)[:24_000]


def say(
    speaker: Speaker,
    reference: NDArray[np.float32] | Path,
    reference_text: str,
    text: str,
    *,
    temperature: float = 1.0,
    **options: Any,
) -> Speech:
    voice = speaker.voice(reference, reference_text)
    return speaker.speak(voice, text, sampling=Sampling(temperature=temperature), **options)


def codes(seed: int, frames: int) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 1024, (frames, 8)).astype(np.uint16)


@pytest.mark.parametrize("frames", [1, 2, 40])
def test_well_formed_rows(frames: int) -> None:
    spoken, finished = spoken_codes(apply_delay(codes(0, frames)))
    assert finished
    assert spoken.dtype == np.uint16
    assert np.array_equal(spoken, codes(0, frames))


@pytest.mark.parametrize("rows", range(1, 49))
def test_rows_cut_off(rows: int) -> None:
    spoken, finished = spoken_codes(apply_delay(codes(0, 40))[:rows])
    assert not finished
    assert np.array_equal(spoken, codes(0, 40)[: max(rows - 8, 0)])


def test_one_codebook_ends_early() -> None:
    # Codebook 5 says its end at frame 30, and transformers then ends the others one row later each.
    rows = apply_delay(codes(0, 40))
    rows[30 + 1 + 5 :, 5] = STREAM_EOS
    spoken, finished = spoken_codes(rows)
    assert finished
    assert np.array_equal(spoken, codes(0, 40)[:30])


@pytest.mark.parametrize("marker", [STREAM_BOS, STREAM_EOS])
def test_marker_in_the_middle_is_not_taken_for_a_code_nor_for_the_end(marker: int) -> None:
    rows = apply_delay(codes(0, 40))
    rows[20 + 1 + 3, 3] = marker
    spoken, finished = spoken_codes(rows)
    assert not finished
    assert np.array_equal(spoken, codes(0, 40)[:20])


def test_end_at_once() -> None:
    rows = np.full((9, 8), STREAM_EOS)
    rows[np.triu_indices(8)] = STREAM_BOS
    spoken, finished = spoken_codes(rows)
    assert finished
    assert spoken.shape == (0, 8)


def test_prompt_is_that_of_the_processor(speaker: Speaker, base: Path, reference: NDArray[np.float32]) -> None:
    audio_tokenizer_class()  # makes transformers find the codec without torchaudio
    processor = transformers.AutoProcessor.from_pretrained(base)
    conversation = [
        {"role": "system", "content": "Generate audio following instruction."},
        {"role": "user", "content": [{"type": "text", "text": TEXTS[0]}]},
        {"role": "assistant", "content": [{"type": "audio", "audio": reference}]},
        {"role": "user", "content": [{"type": "text", "text": TEXTS[1]}]},
    ]
    expected = processor.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        sampling_rate=24_000,
        return_tensors="pt",
    )
    segments = speaker._layout.segments(
        system="Generate audio following instruction.", scene=None, reference_text=TEXTS[0], target_text=TEXTS[1]
    )
    inputs = speaker.prompt(segments.prefix, speaker._codec.encode(reference), segments.middle)
    assert set(inputs) == set(expected)
    for name, tensor in inputs.items():
        assert torch.equal(tensor, expected[name]), name


def test_speech(speaker: Speaker, reference: NDArray[np.float32]) -> None:
    speeches = [say(speaker, reference, *TEXTS, seed=seed, max_seconds=1) for seed in range(4)]
    for speech in speeches:
        assert speech.codes.dtype == np.uint16
        assert speech.codes.max() < 1024
        assert speech.wave.dtype == np.float32
        assert speech.wave.shape == (len(speech.codes) * 960,)
        assert speech.seconds == len(speech.codes) / 25
        assert np.isfinite(speech.wave).all()
    assert len({speech.codes.tobytes() for speech in speeches}) == 4


def test_same_seed_same_speech_and_the_callers_random_state_is_left_alone(
    speaker: Speaker, reference: NDArray[np.float32]
) -> None:
    before = torch.get_rng_state()
    first = say(speaker, reference, *TEXTS, seed=5, max_seconds=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    second = say(speaker, reference, *TEXTS, seed=5, max_seconds=1)
    assert np.array_equal(first.codes, second.codes)
    assert np.array_equal(first.wave, second.wave)


@pytest.fixture(scope="module")
def droning_speaker() -> Speaker:
    """One whose likeliest code is 7, always: every position has the same hidden state, and the head leans to 7."""
    speaker = Speaker.load("builtin:tiny", "builtin:tiny", dtype=torch.float32)
    model: Any = speaker._model
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.embed_audio_tokens.embed_audio_tokens.weight.fill_(1 / 8)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "audio_lm_head.weight")):
                parameter.zero_()
        head = model.audio_lm_head.weight.view(8, 1026, -1)
        head[:, 7] = 3 / head.shape[-1]
        # Sampled, it must not end either.
        head[:, 1024:] = -100
    return speaker


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seconds,frames", [(0.04, 1), (0.4, 10), (0.439, 10)])
def test_cut_off(
    droning_speaker: Speaker, reference: NDArray[np.float32], seconds: float, frames: int, temperature: float
) -> None:
    speech = say(droning_speaker, reference, *TEXTS, temperature=temperature, max_seconds=seconds)
    assert not speech.finished
    assert speech.codes.shape == (frames, 8)
    longer = say(droning_speaker, reference, *TEXTS, temperature=temperature, max_seconds=1)
    assert np.array_equal(speech.codes, longer.codes[:frames])


def test_greedy_search_does_not_depend_on_the_seed(droning_speaker: Speaker, reference: NDArray[np.float32]) -> None:
    # The checkpoint has repetition-aware sampling on, which would draw at random from the second repetition on.
    assert droning_speaker._model.generation_config.ras_win_len == 7
    speeches = [
        say(droning_speaker, reference, *TEXTS, seed=seed, temperature=0, max_seconds=1).codes for seed in range(3)
    ]
    assert all((codes == 7).all() for codes in speeches)
    sampled = say(droning_speaker, reference, *TEXTS, temperature=0.1, max_seconds=1).codes
    assert not (sampled == 7).all()


def test_greedy_is_what_the_model_predicts_given_reference_and_prompt(
    speaker: Speaker, reference: NDArray[np.float32]
) -> None:
    compared = 0
    codes = speaker._codec.encode(reference)
    for target_text in ("one", "two and", "three and then", "four, at last", "five"):
        segments = speaker._layout.segments(
            system="Generate audio following instruction.",
            scene=None,
            reference_text=TEXTS[0],
            target_text=target_text,
        )
        inputs = speaker.prompt(segments.prefix, codes, segments.middle)
        model: Any = speaker._model
        rows = speak(model.generate, model.generation_config, inputs, 20, seed=0, sampling=Sampling(temperature=0))
        placeholders = torch.full((1, len(rows)), model.config.audio_token_id)
        with torch.no_grad():
            logits = model(
                input_ids=torch.cat((inputs["input_ids"], placeholders), dim=1),
                audio_input_ids=torch.cat((inputs["audio_input_ids"], torch.from_numpy(rows)[None]), dim=1),
                audio_input_ids_mask=torch.ones((1, inputs["audio_input_ids"].shape[1] + len(rows)), dtype=torch.bool),
            ).logits[0]
        # The output one position before a row predicts it; row 0 is all BOS by force, as is the triangle after it,
        # and what follows an end of stream is forced, too.
        predicted = logits[-len(rows) - 1 : -1].reshape(len(rows), 8, 1026).argmax(-1).numpy()
        forced = np.triu(np.ones_like(rows)).astype(bool)
        assert (rows[forced] == STREAM_BOS).all()
        ends = np.flatnonzero((rows == STREAM_EOS).any(axis=1))
        free = ~forced[: ends[0] + 1 if len(ends) else None]
        assert np.array_equal(predicted[: len(free)][free], rows[: len(free)][free])
        compared += int(free.sum())
    assert compared > 20


def test_reference_file_is_the_same_as_its_samples(speaker: Speaker) -> None:
    by_path = say(speaker, CLIP, *TEXTS, max_seconds=0.4)
    by_array = say(speaker, read_mono(CLIP, max_seconds=30), *TEXTS, max_seconds=0.4)
    assert np.array_equal(by_path.codes, by_array.codes)


def test_the_reference_matters(speaker: Speaker, reference: NDArray[np.float32]) -> None:
    one = say(speaker, reference, *TEXTS, max_seconds=1)
    other = say(speaker, reference[::-1].copy(), *TEXTS, max_seconds=1)
    assert not np.array_equal(one.codes, other.codes)


def test_text_is_cleaned_as_in_training(speaker: Speaker, reference: NDArray[np.float32]) -> None:
    plain = say(speaker, reference, *TEXTS, max_seconds=0.4)
    dirty = say(speaker, reference, " hello\u200b\n there", "good  bye, and thank you\u202c ", max_seconds=0.4)
    assert np.array_equal(plain.codes, dirty.codes)


Call = Callable[[Speaker, NDArray[np.float32]], object]

MISTAKES: dict[str, tuple[Call, int, str]] = {
    "empty": (lambda s, r: say(s, r, TEXTS[0], " \n"), 2, "empty"),
    "empty reference text": (lambda s, r: say(s, r, "", TEXTS[1]), 2, "empty"),
    "control token": (lambda s, r: say(s, r, TEXTS[0], "stop <|eot_id|> now"), 2, "<|eot_id|>"),
    "placeholder": (lambda s, r: say(s, r, "a <|AUDIO_OUT|>", TEXTS[1]), 2, "<|AUDIO_OUT|>"),
    "no file": (lambda s, r: say(s, Path("no/such.wav"), *TEXTS), 66, "no/such.wav"),
    "not audio": (lambda s, r: say(s, Path(__file__), *TEXTS), 65, "test_generate.py"),
    "no samples": (lambda s, r: say(s, r[:0], *TEXTS), 65, "0.00 s"),
    "not finite": (lambda s, r: say(s, r * np.float32("nan"), *TEXTS), 65, "finite"),
    "stereo": (lambda s, r: say(s, np.stack((r, r)), *TEXTS), 65, "shape"),
    "temperature": (lambda s, r: say(s, r, *TEXTS, temperature=-1), 2, "temperature"),
    "silent": (lambda s, r: say(s, r * 0, *TEXTS), 65, "silent"),
    "too short": (lambda s, r: say(s, r[:9_600], *TEXTS), 65, "0.40 s"),
    "too long": (lambda s, r: say(s, np.tile(r, 61), *TEXTS), 65, "60 s"),
    "endless text": (lambda s, r: say(s, r, TEXTS[0], "a " * 25_001), 2, "50,002"),
    "seed": (lambda s, r: say(s, r, *TEXTS, seed=-1), 2, "seed"),
    "top_p": (lambda s, r: Sampling(top_p=0), 2, "top_p"),
    "top_k": (lambda s, r: Sampling(top_k=0), 2, "top_k"),
    "window": (lambda s, r: Sampling(ras_window=-1), 2, "ras_window"),
    "repeats": (lambda s, r: Sampling(ras_max_repeats=0), 2, "ras_max_repeats"),
    "length": (lambda s, r: say(s, r, *TEXTS, max_seconds=0.01), 2, "0.04"),
    "no model": (lambda s, r: Speaker.load("no/such/model", "builtin:tiny"), 66, "no/such/model"),
    "no codec": (lambda s, r: Speaker.load("builtin:tiny", "no/such/codec"), 66, "no/such/codec"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, speaker: Speaker, reference: NDArray[np.float32]) -> None:
    call, code, word = MISTAKES[mistake]
    with pytest.raises(StepError) as raised:
        call(speaker, reference)
    assert raised.value.code == ExitCode(code)
    assert word in str(raised.value)


def test_checkpoint_without_repetition_window(base: Path, tmp_path: Path, reference: NDArray[np.float32]) -> None:
    shutil.copytree(base, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("ras_")}
    path.write_text(json.dumps(kept))
    speaker = Speaker.load(tmp_path / "model", "builtin:tiny", dtype=torch.float32)
    for temperature in (0.0, 1.0):
        assert len(say(speaker, reference, *TEXTS, temperature=temperature, max_seconds=0.4).codes)
