"""What `higgsc generate` is asked to say, and into which files; all of it checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from higgsc.contract.jobs import TextJob
from higgsc.contract.outcome import ExitCode, StepError
from higgsc.data.text import clean_text
from higgsc.deploy.chunks import MAX_CHARACTERS
from higgsc.deploy.prompts import ClonePrompt
from higgsc.train.speech.samples import file_stem

MAX_FILE_BYTES = 16_000_000
"""Largest file of texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """One text to be said once."""

    text: str
    seed: int
    wav: Path
    """The file to write."""
    line: int | None = None
    """Where the text stands in its file, from 1."""
    prompt: ClonePrompt | None = None
    """Whose voice it is said in, and in what setting; None where that is the same for all."""


def one_text(text: str, seeds: Sequence[int], output: Path) -> list[Take]:
    """A text, said with each of the seeds.

    Args:
        text: What to say.
        seeds: With several, the seed becomes part of the file's name: `out-seed-7.wav`.
        output: The WAV file.
    """
    return [Take(text=text, seed=seed, wav=_name(output, seed, seeds)) for seed in seeds]


def each_line(file: Path, seeds: Sequence[int], output: Path) -> list[Take]:
    """Each line of a UTF-8 file, said with each of the seeds; empty lines are passed over.

    Args:
        file: The texts.
        seeds: With several, the seed becomes part of the file's name: `0001-seed-7.wav`.
        output: A folder; a line's file has its number in the file, from 1: `0001.wav`.

    Raises:
        StepError: The file is missing (66), or not such a file (65).
    """
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise StepError(f"the file of texts is larger than {MAX_FILE_BYTES / 1e6:g} MB", path=file)
        lines = file.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise StepError(f"cannot read the texts: {error.strerror}", code=ExitCode.MISSING_INPUT, path=file) from error
    except UnicodeDecodeError as error:
        raise StepError(f"the texts are not UTF-8: {error.reason}", path=file, help="save it as UTF-8") from error
    takes = [
        Take(text=line, seed=seed, wav=_name(output / f"{number:04d}.wav", seed, seeds), line=number)
        for number, line in enumerate(lines, start=1)
        if line.strip()
        for seed in seeds
    ]
    if not takes:
        raise StepError("there is no text in the file", path=file)
    return takes


def each_prompt(prompts: Iterable[ClonePrompt], seeds: Sequence[int], output: Path) -> list[Take]:
    """Each prompt, said with each of the seeds.

    Args:
        prompts: From `read_prompts`.
        seeds: With several, the seed becomes part of the file's name: `ID-seed-7.wav`.
        output: A folder; a prompt's file is named by its id.
    """
    return [
        Take(
            text=prompt.text,
            seed=seed,
            wav=_name(output / f"{file_stem(prompt.id)}.wav", seed, seeds),
            line=prompt.line,
            prompt=prompt,
        )
        for prompt in prompts
        for seed in seeds
    ]


def check(takes: Sequence[Take], options: TextJob, *, file: Path | None, force: bool) -> None:
    """Refuse what cannot be said, and what would be written over.

    Args:
        takes: What is to be said.
        options: How texts are normalised.
        file: Where the texts come from.
        force: Whether files may be replaced.

    Raises:
        StepError: A text is empty, too long or holds a control token; or a file is there already (2). It names line
            or file.
    """
    for take in takes:
        try:
            if len(take.text) > MAX_CHARACTERS:
                raise ValueError(f"it has {len(take.text):,} characters, at most {MAX_CHARACTERS:,} are spoken")
            clean_text(take.text, options)
        except ValueError as error:
            raise StepError(
                f"cannot speak this: {error}",
                code=ExitCode.USAGE,
                path=file,
                line=take.line,
                help="give what is said in plain words",
            ) from error
    for take in takes:
        if take.wav.is_dir():
            help_ = "name a file, such as out.wav"
            raise StepError("the output is a folder", code=ExitCode.USAGE, path=take.wav, help=help_)
        if take.wav.parent.exists() and not take.wav.parent.is_dir():
            help_ = "several texts are spoken into a folder: name one with -o"
            raise StepError("the output is no folder", code=ExitCode.USAGE, path=take.wav.parent, help=help_)
    there = [take.wav for take in takes if take.wav.exists()]
    if there and not force:
        more = f", and {len(there) - 1} more" if len(there) > 1 else ""
        raise StepError(
            f"the file is there already{more}",
            code=ExitCode.USAGE,
            path=there[0],
            help="name another output, or pass --force to replace it",
        )


def _name(wav: Path, seed: int, seeds: Sequence[int]) -> Path:
    return wav if len(seeds) == 1 else wav.with_stem(f"{wav.stem}-seed-{seed}")
