"""The frame of a report that is one file: nothing to load, no scripts, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from higgsc.data.page.pictures import waveform

_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ARABIC = re.compile("[\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufefc]")


def write_whole(path: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, "utf-8")
    temporary.replace(path)


def document(title: str, head: str, body: str) -> str:
    """A page: well-formed XML as well as HTML, without scripts and without anything to load.

    Args:
        title: Of the window, as plain text.
        head: Content of the header, as markup.
        body: What follows, as markup.
    """
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta http-equiv="Content-Security-Policy" content="{policy()}"/>
<title>{text(title)}</title><style>{_style()}</style></head><body>
<header>{head}</header>
{body}
</body></html>
"""


def policy() -> str:
    """What the browser is told to allow: this one style by its hash, and sound that the page itself holds."""
    style = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{style}'; media-src data:; base-uri 'none'; form-action 'none'"


@cache
def _style() -> str:
    return resources.files("higgsc.data.page").joinpath("style.css").read_text("utf-8")


def text(value: str) -> str:
    """Escaped, and without the characters that XML has no way to write."""
    return html.escape(_UNWRITABLE.sub("\ufffd", value))


def section(title: str, note: str, content: str) -> str:
    """A part of the page under a heading; the content is markup."""
    return f"<section><h2>{text(title)} <small>{text(note)}</small></h2>{content}</section>"


def tiles(shown: Iterable[tuple[str, str, str]]) -> str:
    """The figures at the top: label, value and kind (`failed`, or nothing special) of each."""
    boxes = (
        f'<div class="tile {kind}"><b>{text(value)}</b><span class="soft">{text(label)}</span></div>'
        for label, value, kind in shown
    )
    return f'<section class="tiles">{"".join(boxes)}</section>'


def spoken(words: str, language: str | None = None) -> str:
    """A text that is said, as a paragraph in its own direction.

    Without a language, the script alone is named where it is Arabic, for the browser's choice of letters.
    """
    tag = language or ("und-Arab" if _ARABIC.search(words) else None)
    named = f' lang="{text(tag)}"' if tag else ""
    return f'<p class="text" dir="auto"{named}>{text(words)}</p>'


def player(samples: npt.NDArray[np.float32], rate: int, label: str = "recording") -> str:
    """Shape and sound of a recording, mono `[N]` within full scale, at least one sample; the page holds the sound."""
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format="FLAC", subtype="PCM_16")
    sound = base64.b64encode(target.getvalue()).decode()
    return (
        waveform(samples) + f'<audio controls="controls" preload="metadata" aria-label="{text(label)}" '
        f'src="data:audio/flac;base64,{sound}"></audio>'
    )
