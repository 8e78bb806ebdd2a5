"""Prompts out of data files: a recording, what it says, and what to say in its voice, in any format that is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from higgsc.contract.jobs import TextJob
from higgsc.contract.outcome import StepError
from higgsc.data.formats.paths import confine, homes_of
from higgsc.data.formats.reading import read_records
from higgsc.data.layout import DEFAULT_SYSTEM
from higgsc.data.records import AudioSpan, Record, Rejected
from higgsc.data.samples import span_of
from higgsc.data.text import DEFAULT_TEXT, clean_text
from higgsc.deploy.chunks import MAX_CHARACTERS
from higgsc.deploy.voice import read_reference
from higgsc.train.speech.samples import file_stem

_SHOWN = 10
"""Bad rows that are named; the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClonePrompt:
    """One sample of a data file, as something to say."""

    id: str
    reference: AudioSpan
    reference_text: str
    text: str
    """What to say; as it is in the data, as the other text is."""
    system: str
    scene: str | None
    line: int
    """1-based line of the data file where it starts."""


def read_prompts(
    file: Path, form: str = "auto", *, text: TextJob = DEFAULT_TEXT, root: Path | None = None
) -> list[ClonePrompt]:
    """All samples of a data file, each of which can be spoken; target audio is not looked at.

    Args:
        file: In any format of `higgsc.data.formats`, such as ChatML, as JSON array or JSONL.
        form: The format's name; `auto` looks at the file.
        text: How texts are normalised.
        root: The project: audio may lie in it or beside the file. None is the working directory.

    Raises:
        StepError: The file is missing (66), cannot be read, or is of no known format; or rows of it cannot be spoken
            (65). Those are named together, each with its line, and every reference has been decoded.
    """
    reader = _Reader(file, text, homes_of(file, Path.cwd() if root is None else root))
    made: list[ClonePrompt] = []
    bad: list[str] = []
    for line, record in read_records(file, form, root=file.parent):
        try:
            if isinstance(record, Rejected):
                raise ValueError(record.reason)
            made.append(reader.prompt(record, line))
        except ValueError as error:
            bad.append(f"{file}:{line}: {record.id}: {error}")
    if bad:
        lines = bad[:_SHOWN] + [f"and {len(bad) - _SHOWN} more"] * (len(bad) > _SHOWN)
        raise StepError(
            f"{len(bad)} of {len(bad) + len(made)} prompts cannot be spoken\n  " + "\n  ".join(lines),
            path=file,
            help="mend them or take them out; nothing was spoken",
        )
    if not made:
        raise StepError("there is no prompt in the file", path=file)
    return made


class _Reader:
    """Makes prompts of records, and refuses those that cannot be spoken or would be written over each other."""

    def __init__(self, file: Path, text: TextJob, homes: tuple[Path, ...]) -> None:
        self._file, self._text, self._homes = file, text, homes
        self._lines: dict[str, int] = {}
        self._heard: dict[AudioSpan, str | None] = {}

    def prompt(self, record: Record, line: int) -> ClonePrompt:
        """Raises ValueError: what is wrong with the row."""
        stem = file_stem(record.id)
        if stem in self._lines:
            raise ValueError(f"{stem}.wav would be its file and that of the prompt at line {self._lines[stem]}")
        self._lines[stem] = line
        if len(record.references) != 1:
            raise ValueError(f"{len(record.references) or 'no'} references, where a voice is taken from one")
        reference = record.references[0]
        if reference.audio is None:
            raise ValueError("the reference has no audio")
        made = ClonePrompt(
            id=record.id,
            reference=span_of(reference.audio, self._file, self._homes),
            reference_text=reference.text,
            text=record.target.text,
            system=record.system or DEFAULT_SYSTEM,
            scene=record.scene,
            line=line,
        )
        told = {"reference text": made.reference_text, "text": made.text, "system text": made.system}
        for what, words in (told | ({} if made.scene is None else {"scene": made.scene})).items():
            self._check_text(what, words)
        self._check_audio(made)
        return made

    def _check_text(self, what: str, words: str) -> None:
        if len(words) > MAX_CHARACTERS:
            raise ValueError(f"{what}: it has {len(words):,} characters, at most {MAX_CHARACTERS:,} are spoken")
        try:
            clean_text(words, self._text)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error

    def _check_audio(self, prompt: ClonePrompt) -> None:
        """Decodes each reference once, however many rows name it."""
        span = prompt.reference
        if span not in self._heard:
            try:
                confine(span.path, self._homes)
                read_reference(span)
                self._heard[span] = None
            except StepError as error:
                self._heard[span] = error.message
            except ValueError as error:
                self._heard[span] = str(error)
        if (problem := self._heard[span]) is not None:
            raise ValueError(f"reference audio {span.path.name}: {problem}")
