"""The tiny checkpoint `builtin:tiny`: the released layout at a size that trains on a CPU in seconds.

It is a complete sibling of the released pair, model and audio tokenizer, in the folder layout that
transformers' `save_pretrained` writes, so everything that reads the released checkpoint reads it too. It is
built on first use and kept in a cache; its bytes depend on nothing but this package and the library versions.
Importing this module loads neither torch nor transformers; building does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

from higgsc.catalog.codec import SAMPLE_RATE, SPECIAL_TOKENS
from higgsc.catalog.higgs_audio_v2 import BUILTIN_TINY, TINY

Part = Literal["model", "audio_tokenizer"]

_LIBRARIES: Final = ("torch", "transformers", "tokenizers", "safetensors")


def build_tiny(folder: Path) -> None:
    """Write the checkpoint to `folder/model` and `folder/audio_tokenizer`.

    The processor's configuration names the audio tokenizer by its absolute path, as transformers does for a
    local one; everything else is the same wherever it is built. The caller's random state is left alone.

    Args:
        folder: Existing or new folder.

    Raises:
        OSError: If it cannot be written.
    """
    _build(folder, audio_tokenizer=folder.resolve() / "audio_tokenizer")


def tiny_path(part: Part) -> Path:
    """Folder of one part of the checkpoint, built on first use.

    The cache is `$HIGGSC_CACHE`, or `~/.cache/higgsc`. The checkpoint is built in a folder of its own and put
    in place by one rename, so that processes which build at once never see a half-written one.

    Raises:
        OSError: If the cache cannot be written.
    """
    cache = Path(os.environ.get("HIGGSC_CACHE") or Path.home() / ".cache" / "higgsc").resolve()
    place = cache / f"tiny-{_identity()}"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".tiny-", dir=cache))
        try:
            _build(scratch, audio_tokenizer=place / "audio_tokenizer")
            try:
                scratch.rename(place)
            except OSError:
                # Another process was first, and put the same bytes there; anything else is an error.
                if not place.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return place / part


def resolve_base(name: str, part: Part = "model", *, root: Path | None = None) -> Path | str:
    """Turn a name from a spec into what `from_pretrained` accepts.

    Args:
        name: `builtin:tiny`, a hub id or a folder.
        part: Which of the two checkpoints the name stands for.
        root: The project root, below which a folder is looked for before the name is taken as it stands.

    Returns:
        The built folder for `builtin:tiny`, the folder below `root` if there is one; any other name unchanged.
    """
    if name == BUILTIN_TINY:
        return tiny_path(part)
    return root / name if root is not None and (root / name).is_dir() else name


@cache
def _identity() -> str:
    """Short hash of everything the checkpoint's bytes depend on."""
    digest = hashlib.sha256(repr((TINY, SPECIAL_TOKENS)).encode())
    digest.update(repr([version(library) for library in _LIBRARIES]).encode())
    for source in sorted(Path(__file__).parent.iterdir()):
        if source.suffix in (".py", ".jinja", ".safetensors"):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _build(folder: Path, *, audio_tokenizer: Path) -> None:
    """Write both parts; `audio_tokenizer` is where the processor will look for that part."""
    import torch
    from transformers import DacFeatureExtractor, HiggsAudioV2Processor

    from higgsc.train.model.builtin.codec import build_codec
    from higgsc.train.model.builtin.language_model import build_language_model
    from higgsc.train.model.builtin.text import build_tokenizer, chat_template

    # Building a model draws from the global random state before its weights are set.
    with torch.random.fork_rng(devices=[]):
        tokenizer = build_tokenizer()
        codec = build_codec()
        model = build_language_model(tokenizer)
    feature_extractor = DacFeatureExtractor(
        feature_size=1, hop_length=1, padding_side="right", padding_value=0.0, sampling_rate=SAMPLE_RATE
    )
    codec.save_pretrained(folder / "audio_tokenizer")
    feature_extractor.save_pretrained(folder / "audio_tokenizer")
    codec.name_or_path = str(audio_tokenizer)
    processor = HiggsAudioV2Processor(
        feature_extractor=feature_extractor,
        tokenizer=tokenizer,
        audio_tokenizer=codec,
        chat_template=chat_template(),
    )
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
