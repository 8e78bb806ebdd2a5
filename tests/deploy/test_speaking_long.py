"""Long texts, options of the sampling, adapters, and the command: what `Speaker` does beyond one prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
soundfile = pytest.importorskip("soundfile")

from higgsc.cli.generate import command  # noqa: E402
from higgsc.contract.outcome import ExitCode, StepError  # noqa: E402
from higgsc.data.audio import read_mono  # noqa: E402
from higgsc.data.layout import DEFAULT_SYSTEM  # noqa: E402
from higgsc.deploy.chunks import chunks  # noqa: E402
from higgsc.deploy.generate import Speaker  # noqa: E402
from higgsc.deploy.merge.fold import merge_adapter  # noqa: E402
from higgsc.deploy.voice import Voice  # noqa: E402
from higgsc.train.seeds import Purpose, torch_seed  # noqa: E402
from higgsc.train.speech.sampling import Sampling  # noqa: E402

CLIP = Path(__file__).parents[2] / "specs/data/quickstart/audio/huda-01.flac"
LONG = " ".join(f"This is sentence number {number}, of several that belong together." for number in range(9))
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker.load("builtin:tiny", "builtin:tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def voice(speaker: Speaker) -> Voice:
    return speaker.voice(read_mono(CLIP, max_seconds=30)[:24_000], "hello there")


def test_a_long_text_is_its_pieces_one_after_the_other(speaker: Speaker, voice: Voice) -> None:
    texts = chunks(LONG)
    assert len(texts) == 3
    pieces = list(speaker.pieces(voice, LONG, seed=3, max_seconds=0.6))
    whole = speaker.speak(voice, LONG, seed=3, max_seconds=0.6)
    assert np.array_equal(whole.codes, np.concatenate([piece.codes for piece in pieces]))
    assert np.array_equal(whole.wave, np.concatenate([piece.wave for piece in pieces]))
    # Each piece is what its text gives alone, with the piece's seed: the reference is all that it is told besides.
    for index, (text, piece) in enumerate(zip(texts, pieces, strict=True)):
        seed = 3 if index == 0 else torch_seed(3, Purpose.SAMPLING, index)
        prefix, middle = speaker._segments(voice, text, DEFAULT_SYSTEM, None)
        alone = speaker.respond(prefix, voice.codes, middle, seed=seed, sampling=Sampling(), max_seconds=0.6)
        assert np.array_equal(alone.codes, piece.codes)


def test_a_mistake_in_a_late_piece_is_found_before_the_first_is_said(speaker: Speaker, voice: Voice) -> None:
    with pytest.raises(StepError, match="control token"):
        speaker.pieces(voice, LONG + " <|eot_id|>")


def test_what_is_raised_after_a_row_ends_the_generation(speaker: Speaker, voice: Voice) -> None:
    rows = 0

    def after_row() -> None:
        nonlocal rows
        rows += 1
        if rows == 5:
            raise KeyboardInterrupt

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        speaker.speak(voice, LONG, after_row=after_row)
    assert rows == 5
    assert torch.equal(before, torch.get_rng_state())


def test_options_of_the_sampling_do_what_they_say(speaker: Speaker, voice: Voice) -> None:
    def codes(**options: float) -> np.ndarray:
        return speaker.speak(voice, "good bye", seed=1, sampling=Sampling(**options), max_seconds=1).codes  # type: ignore[arg-type]

    plain = codes()
    assert np.array_equal(plain, codes(top_p=0.95, top_k=50, ras_window=7, ras_max_repeats=2))
    # The single likeliest code, however it is asked for; without the window, which draws again from all of them.
    greedy = speaker.speak(voice, "good bye", sampling=GREEDY, max_seconds=1).codes
    assert np.array_equal(greedy, codes(top_k=1, ras_window=0))
    assert np.array_equal(greedy, codes(top_p=1e-6, ras_window=0))
    assert not np.array_equal(plain, greedy)
    # A window that reaches over the reference finds repeats; with enough of them allowed, they make no difference.
    without = codes(top_k=2, ras_window=0)
    assert not np.array_equal(without, codes(top_k=2, ras_window=1_000, ras_max_repeats=1))
    assert np.array_equal(without, codes(top_k=2, ras_window=1_000, ras_max_repeats=10_000))


@pytest.mark.parametrize("options", [{}, {"use_dora": True, "modules_to_save": ["audio_lm_head"]}])
def test_a_base_with_an_adapter_speaks_as_their_merge(
    make_adapter: Callable[..., Path],
    base: Path,
    tmp_path: Path,
    voice: Voice,
    speaker: Speaker,
    options: dict[str, object],
) -> None:
    adapter = make_adapter(**options)
    merge_adapter(base, adapter, tmp_path / "merged", dtype="fp32")
    merged = Speaker.load(tmp_path / "merged", "builtin:tiny").speak(voice, "good bye", sampling=GREEDY, max_seconds=1)
    adapted = Speaker.load(base, "builtin:tiny", adapter=adapter).speak(
        voice, "good bye", sampling=GREEDY, max_seconds=1
    )
    assert np.array_equal(merged.codes, adapted.codes)
    alone = speaker.speak(voice, "good bye", sampling=GREEDY, max_seconds=1)
    assert not np.array_equal(alone.codes, adapted.codes)
    (tmp_path / "step-5").mkdir()
    adapter.rename(tmp_path / "step-5" / "adapter")
    with pytest.raises(StepError, match="holds this adapter already"):
        Speaker.load(tmp_path / "merged", "builtin:tiny", adapter=tmp_path / "step-5")


def test_an_adapter_of_another_model_is_refused(make_adapter: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = make_adapter()
    weights = load_file(adapter / "adapter_model.safetensors")
    for change, word in (("layers.0", "layers.7"), ("", "")):
        changed = {
            name.replace(change, word): tensor if word else torch.cat((tensor, tensor)) if "lora_B" in name else tensor
            for name, tensor in weights.items()
        }
        save_file(changed, adapter / "adapter_model.safetensors")
        with pytest.raises(StepError, match="does not have" if word else "has \\["):
            Speaker.load(base, "builtin:tiny", adapter=adapter)


def generate(*arguments: str) -> tuple[int, str]:
    voice = ("--reference", str(CLIP), "--reference-text", "hello there")
    model = ("--model", "builtin:tiny", "--audio-tokenizer", "builtin:tiny", "--max-seconds", "0.4")
    result = CliRunner().invoke(command, [*model, *voice, *arguments])
    if isinstance(result.exception, StepError):
        return result.exception.code, str(result.exception)
    return result.exit_code, result.output


def test_each_line_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("\ufeffhello there\n\nكيف حالك؟\n", "utf-8")
    code, output = generate("--file", "lines.txt", "-o", "out", "--seed", "7", "--seed", "8")
    assert code == 0, output
    names = ["0001-seed-7.wav", "0001-seed-8.wav", "0003-seed-7.wav", "0003-seed-8.wav"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert "\nout/0001-seed-8.wav: 0." in output
    # A line's file is what the text alone gives, whatever else was said before it.
    assert generate("--text", "كيف حالك؟", "-o", "alone.wav", "--seed", "8")[0] == 0
    assert (tmp_path / "alone.wav").read_bytes() == (tmp_path / "out/0003-seed-8.wav").read_bytes()
    assert soundfile.info("alone.wav").samplerate == 24_000

    # Nothing is replaced unless it is asked for.
    code, output = generate("--file", "lines.txt", "-o", "out", "--seed", "8")
    assert code == 0  # one seed: the names have no seed in them
    before = (tmp_path / "alone.wav").stat().st_mtime_ns
    code, output = generate("--text", "hi", "-o", "alone.wav")
    assert (code, "--force" in output) == (ExitCode.USAGE, True)
    assert (tmp_path / "alone.wav").stat().st_mtime_ns == before
    assert generate("--text", "hi", "-o", "alone.wav", "--force")[0] == 0
    assert (tmp_path / "alone.wav").stat().st_mtime_ns != before


def test_mistakes_are_found_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Speaker, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "lines.txt").write_text("fine\nnot <|eot_id|> fine\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "one.txt").write_text("one text\u2028on a line\n", "utf-8")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for arguments, code, word in (
        (("--file", "lines.txt"), ExitCode.USAGE, "lines.txt:2: cannot speak this"),
        (("--file", "empty.txt"), ExitCode.BAD_DATA, "no text"),
        (("--file", "latin.txt"), ExitCode.BAD_DATA, "UTF-8"),
        (("--file", "no.txt"), ExitCode.MISSING_INPUT, "no.txt"),
        (("--text", "..."), ExitCode.USAGE, "nothing to say"),
        (("--text", "a", "-o", ".", "--force"), ExitCode.USAGE, "the output is a folder"),
        (("--file", "one.txt", "-o", "one.txt", "--force"), ExitCode.USAGE, "one.txt: the output is no folder"),
        (("--text", "a", "--file", "lines.txt"), 2, "one of --text, --file and --prompts"),
        ((), 2, "one of --text, --file and --prompts"),
        (("--text", "a", "--reference", "none.wav"), ExitCode.MISSING_INPUT, "none.wav: the audio file does not exist"),
        (("--text", "a", "--reference-text", "..."), ExitCode.USAGE, "nothing to say"),
        (("--text", "a", "--seed", "-1"), 2, "seed"),
        (("--text", "a", "--top-p", "0"), 2, "top-p"),
    ):
        result = generate(*arguments, *(() if "-o" in arguments else ("-o", "out")))
        assert result[0] == code, result
        assert word in result[1]
