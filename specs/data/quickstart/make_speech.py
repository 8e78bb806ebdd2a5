"""Make the quickstart's small Arabic speech set: four synthetic voices, eight sentences each.

Reads ``sentences.txt`` beside this file, speaks every line with espeak-ng, and writes
``audio/<voice>-<nn>.flac`` (24 kHz mono, 16 bit) and ``train_chatml.json`` (voice-cloning samples).
Running it again writes the same samples. Needs the ``espeak-ng`` binary, numpy, soundfile and soxr.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 24_000
PEAK = 10 ** (-3 / 20)
KEPT_SILENCE_S = 0.05
SILENCE_BELOW_PEAK_DB = -40.0

FATHA, DAMMA, KASRA, SHADDA, SUKUN = "\u064e", "\u064f", "\u0650", "\u0651", "\u0652"
ALIF, ALIF_HAMZA, ALIF_MAQSURA, WAW, YA, LAM = "\u0627", "\u0623", "\u0649", "\u0648", "\u064a", "\u0644"
TA_MARBUTA = "\u0629"
VOWEL_MARKS = "\u064b-\u0652\u0670"


class Voice(NamedTuple):
    """An espeak-ng voice variant with the pitch (0-99) and the words per minute it speaks at."""

    variant: str
    pitch: int
    speed: int


VOICES = {
    "salim": Voice("ar+m3", 70, 170),
    "karim": Voice("ar+m7", 20, 160),
    "huda": Voice("ar+f1", 50, 160),
    "mariam": Voice("ar+Annie", 45, 170),
}


class Sentence(NamedTuple):
    """One line of ``sentences.txt``: ``transcript`` is what a reader sees, ``vocalised`` what is spoken."""

    clip: str
    transcript: str
    vocalised: str

    @property
    def voice(self) -> str:
        return self.clip.rsplit("-", 1)[0]


def read_sentences(path: Path) -> list[Sentence]:
    """Read the tab-separated lines, taking the vowel marks off the transcripts that are "bare"."""
    sentences = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        clip, form, vocalised = line.split("\t")
        if form not in ("bare", "marked"):
            raise ValueError(f"{path.name}: {clip}: the transcript is 'bare' or 'marked', not {form!r}")
        transcript = re.sub(f"[{VOWEL_MARKS}]", "", vocalised) if form == "bare" else vocalised
        sentences.append(Sentence(clip, transcript, vocalised))
    return sentences


def respell_for_espeak(vocalised: str) -> str:
    """Spell a vocalised sentence the way it sounds.

    espeak-ng's Arabic rules lose the vowel of a doubled letter, and know neither the joining alif between
    words nor the silent letters at a pause, so these are written out for it.
    """
    # Normalised Arabic has a doubled letter's vowel before its shadda.
    text = unicodedata.normalize("NFC", vocalised)
    text = re.sub(f"(.)([{VOWEL_MARKS}]){SHADDA}", rf"\1{SUKUN}\1\2", text)
    # The article's lam is silent before a doubled ("sun") letter.
    text = re.sub(rf"{ALIF}{LAM}(?=(.){SUKUN}\1)", ALIF, text)
    text = re.sub(f"{WAW}{ALIF}(?= )", WAW, text)
    # A joining alif is silent after a vowel, and shortens a long one.
    text = re.sub(f"[{ALIF}{ALIF_MAQSURA}{YA}]? {ALIF}(?![{VOWEL_MARKS}])", "", text)
    text = re.sub(f"(?<=[{DAMMA}{KASRA}]){ALIF}", "", text)
    text = re.sub(f"^{ALIF}(?![{VOWEL_MARKS}])", ALIF_HAMZA + FATHA, text)
    return re.sub(f"{TA_MARBUTA}{SUKUN}", "", text)


def speak(text: str, voice: Voice) -> np.ndarray:
    """Return espeak-ng's speech for ``text`` as mono float64 at ``SAMPLE_RATE``."""
    options = [f"-v{voice.variant}", f"-p{voice.pitch}", f"-s{voice.speed}", "-z", "--stdout"]
    wav = subprocess.run(["espeak-ng", *options, "--", text], check=True, capture_output=True).stdout
    speech, rate = soundfile.read(io.BytesIO(wav), dtype="float64")
    return soxr.resample(speech, rate, SAMPLE_RATE, quality="VHQ")


def trim_silence(speech: np.ndarray) -> np.ndarray:
    """Cut, or pad with zeros, so that about ``KEPT_SILENCE_S`` of quiet is left at either end."""
    kept = round(KEPT_SILENCE_S * SAMPLE_RATE)
    threshold = np.abs(speech).max() * 10 ** (SILENCE_BELOW_PEAK_DB / 20)
    loud = np.flatnonzero(np.abs(speech) > threshold)
    padded = np.pad(speech, kept)
    return padded[loud[0] : loud[-1] + 1 + 2 * kept]


def to_pcm16(speech: np.ndarray) -> np.ndarray:
    """Scale to ``PEAK`` and round here, so that the file holds the same samples whatever writes it."""
    scaled = speech * (PEAK / np.abs(speech).max())
    return np.round(scaled * 32767).astype(np.int16)


def chatml_sample(target: Sentence, reference: Sentence, seconds: float) -> dict[str, object]:
    """Return the voice-cloning sample that asks for ``target`` in the voice of ``reference``."""

    def audio(clip: str, duration: float | None) -> dict[str, object]:
        url = f"audio/{clip}.flac"
        return {"type": "audio", "audio_url": url, "raw_audio": "", "duration": duration, "offset": None}

    request = f"Please generate speech for given text in reference audio's voice: {target.transcript}"
    user = [
        {"type": "text", "text": reference.transcript},
        audio(reference.clip, None),
        {"type": "text", "text": request},
    ]
    assistant = [{"type": "text", "text": target.transcript}, audio(target.clip, seconds)]
    return {
        "messages": [
            {"role": "system", "content": "Generate audio following instruction."},
            {"role": "user", "content": user},
            {"role": "assistant", "content": assistant},
        ],
        "start_index": 0,
        "speaker": target.voice,
        "misc": {
            "sample_id": target.clip,
            "ref_transcript": reference.transcript,
            "target_transcript": target.transcript,
            "duration": seconds,
        },
    }


def next_clip_of_voice(sentences: list[Sentence], target: Sentence) -> Sentence:
    """Return the clip after ``target`` in its voice, the first one after the last."""
    same_voice = [sentence for sentence in sentences if sentence.voice == target.voice]
    return same_voice[(same_voice.index(target) + 1) % len(same_voice)]


def main() -> None:
    """Write the audio and the samples below ``--out``."""
    parser = argparse.ArgumentParser(description="Make the quickstart's Arabic speech set with espeak-ng.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this file's)")
    out = parser.parse_args().out
    (out / "audio").mkdir(parents=True, exist_ok=True)

    sentences = read_sentences(HERE / "sentences.txt")
    samples, total = [], 0.0
    for sentence in sentences:
        speech = speak(respell_for_espeak(sentence.vocalised), VOICES[sentence.voice])
        pcm = to_pcm16(trim_silence(speech))
        path = out / "audio" / f"{sentence.clip}.flac"
        soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16", format="FLAC", compression_level=1.0)
        seconds = len(pcm) / SAMPLE_RATE
        total += seconds
        samples.append(chatml_sample(sentence, next_clip_of_voice(sentences, sentence), round(seconds, 2)))

    text = json.dumps(samples, ensure_ascii=False, indent=2) + "\n"
    (out / "train_chatml.json").write_text(text, encoding="utf-8")
    print(f"{len(samples)} clips, {total:.1f} s, {len(VOICES)} voices -> {out}")


if __name__ == "__main__":
    main()
