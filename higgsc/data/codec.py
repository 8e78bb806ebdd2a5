"""The audio codec: waveform to codes and back.

This is the one module that deals with transformers' import of torchaudio. The class of the codec,
`HiggsAudioV2TokenizerModel`, imports torchaudio for a single call, `torchaudio.functional.resample`, which
takes the input from 24 to 16 kHz for its semantic branch. torchaudio follows torch's releases and lacks a
build for many of them, so where it is not installed a stand-in with that one function takes its place; see
`audio_tokenizer_class`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import sys
import threading
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from higgsc.catalog.codec import CODEBOOK_ENTRIES, CODEBOOKS, HOP_LENGTH, SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGE: Final = "transformers.models.higgs_audio_v2_tokenizer"
_CLASS: Final = "HiggsAudioV2TokenizerModel"
_VOLATILE_CONFIG_KEYS: Final = ("_name_or_path", "transformers_version", "dtype", "architectures")
_import_lock = threading.Lock()


def resample(waveform: torch.Tensor, orig_freq: int, new_freq: int) -> torch.Tensor:
    """Resample by windowed-sinc interpolation, as `torchaudio.functional.resample` does by default.

    The kernel is a sinc of six zero crossings on either side under a squared-cosine (Hann) window, cut off at
    0.99 of the lower Nyquist frequency; after J. O. Smith, https://ccrma.stanford.edu/~jos/resample/. By the
    same definition, the semantic branch gets the input that the released weights were trained with.

    Args:
        waveform: Samples, `[..., N]`, any floating dtype and device; gradients flow through.
        orig_freq: Rate of the input in hertz.
        new_freq: Rate of the output in hertz.

    Returns:
        Samples, `[..., ceil(N * new_freq / orig_freq)]`, dtype and device of the input.
    """
    divisor = math.gcd(orig_freq, new_freq)
    stride, phases = orig_freq // divisor, new_freq // divisor
    if stride == phases:
        return waveform
    zero_crossings, rolloff = 6, 0.99
    cutoff = min(stride, phases) * rolloff
    width = math.ceil(zero_crossings * stride / cutoff)
    taps = torch.arange(-width, width + stride, dtype=torch.float64) / stride
    offsets = torch.arange(phases, dtype=torch.float64) / phases
    time = ((taps[None, :] - offsets[:, None]) * cutoff).clamp(-zero_crossings, zero_crossings)
    window = torch.cos(time * (math.pi / zero_crossings / 2)).square()
    kernel = (torch.sinc(time) * window * (cutoff / stride)).to(waveform)

    length = waveform.shape[-1]
    padded = torch.nn.functional.pad(waveform.reshape(-1, 1, length), (width, width + stride))
    interleaved = torch.nn.functional.conv1d(padded, kernel[:, None], stride=stride).transpose(1, 2)
    wanted = math.ceil(phases * length / stride)
    return interleaved.reshape(*waveform.shape[:-1], -1)[..., :wanted]


@cache
def audio_tokenizer_class() -> Any:
    """The class `HiggsAudioV2TokenizerModel`, with or without torchaudio installed.

    Where torchaudio is installed, this is a plain import. Where it is not, the class's module is imported
    while `sys.modules` holds a stand-in with the one function it calls, and the class is then set on the
    packages that transformers resolves it through (`transformers` and the model's own), so that its processor
    and `AutoModel` find it. The stand-in leaves `sys.modules` again, and transformers' own check,
    `is_torchaudio_available()`, keeps answering no: no other part of transformers is told otherwise.

    Raises:
        ImportError: If torchaudio is installed but cannot be imported, for instance because it was built for
            another torch; uninstalling it is a way out.
    """
    transformers = importlib.import_module("transformers")
    # Importing this module executes the package's `__init__` again and puts a second `transformers` in
    # `sys.modules`; its processors resolve classes through that one.
    second_transformers = importlib.import_module("transformers.processing_utils").transformers_module
    if importlib.util.find_spec("torchaudio") is not None:
        try:
            importlib.import_module("torchaudio")
        except (ImportError, OSError) as error:
            raise ImportError(
                f"torchaudio is installed but does not load with torch {torch.__version__} ({error}); "
                "install the build for this torch, or uninstall torchaudio, which is not needed here"
            ) from error
        return getattr(transformers, _CLASS)

    # The check caches its answer, so it has to be asked before the stand-in is visible.
    importlib.import_module("transformers.utils.import_utils").is_torchaudio_available()
    stand_in = ModuleType("torchaudio")
    functional = ModuleType("torchaudio.functional")
    functional.resample = resample  # type: ignore[attr-defined]
    stand_in.functional = functional  # type: ignore[attr-defined]
    with _import_lock:
        sys.modules["torchaudio"] = stand_in
        try:
            module = importlib.import_module(f"{_PACKAGE}.modeling_higgs_audio_v2_tokenizer")
        finally:
            del sys.modules["torchaudio"]
    tokenizer_class = getattr(module, _CLASS)
    for package in (transformers, second_transformers, importlib.import_module(_PACKAGE)):
        setattr(package, _CLASS, tokenizer_class)
    return tokenizer_class


class Codec:
    """The codec in evaluation mode and float32, one clip at a time.

    One at a time because its encoder is not causal: zeros appended to fill a batch would change the codes of
    the frames before them.
    """

    kind: Final = "codec"
    width: Final = CODEBOOKS
    """Codes of a frame."""

    def __init__(self, model: Any, *, device: torch.device | str) -> None:
        """Wrap a loaded `HiggsAudioV2TokenizerModel`; `Codec.load` is the usual way in.

        Args:
            model: The model; it is moved, set to evaluation mode and frozen in place.
            device: Where it runs.

        Raises:
            ValueError: If its configuration is not that of the codec Higgs Audio v2 was trained on.
        """
        config = model.config
        expected = (SAMPLE_RATE, HOP_LENGTH, CODEBOOKS, CODEBOOK_ENTRIES)
        actual = (config.sample_rate, config.hop_length, config.num_quantizers, config.codebook_size)
        if actual != expected:
            raise ValueError(
                "this is not the codec of Higgs Audio v2: (sample rate, hop length, codebooks, entries) is "
                f"{actual}, should be {expected}"
            )
        self.device = torch.device(device)
        self.model = model.to(self.device, torch.float32).eval().requires_grad_(False)

    @classmethod
    def load(
        cls, path_or_name: str | Path, *, device: torch.device | str = "cpu", revision: str | None = None
    ) -> Codec:
        """Load a codec from a folder or the hub.

        Args:
            path_or_name: Folder in transformers' format, or hub id.
            device: Where it runs.
            revision: Commit, tag or branch on the hub; None is the default branch.

        Raises:
            ValueError: If weights are missing or left over, or the configuration is another codec's.
            OSError: If the folder or the hub id cannot be read.
        """
        options: dict[str, Any] = {} if revision is None else {"revision": revision}
        model, info = audio_tokenizer_class().from_pretrained(
            str(path_or_name), dtype=torch.float32, output_loading_info=True, **options
        )
        # transformers initialises what is missing at random and only warns.
        for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if info[problem]:
                raise ValueError(f"codec {path_or_name}: {problem.replace('_', ' ')}: {sorted(info[problem])}")
        return cls(model, device=device)

    @property
    def sample_rate(self) -> int:
        """Samples per second in and out, in hertz."""
        return SAMPLE_RATE

    def frames(self, samples: int) -> int:
        """Frames that `encode` returns for a clip of `samples` samples: a started frame counts."""
        return math.ceil(samples / HOP_LENGTH)

    @torch.inference_mode()
    def encode(self, wave: NDArray[np.float32]) -> NDArray[np.uint16]:
        """Encode one clip.

        The last frame is filled with silence. Left to itself, transformers' class pads such a clip by half a
        frame on both sides of the acoustic branch alone, which sets it 20 ms off the semantic branch; clips
        of whole frames get the same codes here as from `HiggsAudioV2Processor`.

        Args:
            wave: Mono samples at 24 kHz, float32, `[N]`, N at least 1, full scale at 1.

        Returns:
            Codes, uint16, `[frames(N), 8]`, each below 1024.

        Raises:
            ValueError: If the array has another shape or dtype, is empty, or holds a non-finite value.
        """
        if wave.ndim != 1 or wave.dtype != np.float32:
            raise ValueError(f"expected float32 samples of shape [N], got {wave.dtype} {list(wave.shape)}")
        if wave.size == 0 or not np.isfinite(wave).all():
            raise ValueError("no samples to encode" if wave.size == 0 else "samples are not all finite")
        frames = self.frames(wave.size)
        padded = np.zeros(frames * HOP_LENGTH, dtype=np.float32)
        padded[: wave.size] = wave
        with reproducible_convolutions():
            codes = self.model.encode(torch.from_numpy(padded).to(self.device)[None, None]).audio_codes
        assert codes.shape == (1, CODEBOOKS, frames), f"codec gave {tuple(codes.shape)} for {frames} frames"
        return np.ascontiguousarray(codes[0].T.cpu().numpy().astype(np.uint16))

    @torch.inference_mode()
    def decode(self, codes: NDArray[np.uint16]) -> NDArray[np.float32]:
        """Decode one clip.

        Args:
            codes: Codes without stream markers and delay, `[T, 8]`, T at least 1, each below 1024.

        Returns:
            Mono samples at 24 kHz, float32, `[T * 960]`; not clipped, so peaks may pass 1.

        Raises:
            ValueError: If the shape is another one, or a code is not in the codebook.
        """
        if codes.ndim != 2 or codes.shape[1] != CODEBOOKS or codes.shape[0] == 0:
            raise ValueError(f"expected codes of shape [T, {CODEBOOKS}], got {list(codes.shape)}")
        if int(codes.max()) >= CODEBOOK_ENTRIES:
            raise ValueError(f"code {int(codes.max())} is not one of the codebook's {CODEBOOK_ENTRIES} entries")
        indices = torch.from_numpy(codes.astype(np.int64)).to(self.device)
        with reproducible_convolutions():
            wave = self.model.decode(indices.T[None]).audio_values
        assert wave.shape == (1, 1, len(codes) * HOP_LENGTH), f"codec gave {tuple(wave.shape)} samples"
        samples: NDArray[np.float32] = wave[0, 0].cpu().numpy()
        return samples

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights, in hex: equal for codecs that give equal codes.

        Names and dates do not enter it, so a copy in another folder has the same fingerprint.
        """
        digest = hashlib.sha256()
        for chunk in self._identity():
            digest.update(len(chunk).to_bytes(8, "big"))
            digest.update(chunk)
        return digest.hexdigest()

    def _identity(self) -> Iterator[bytes | memoryview]:
        config = _without(self.model.config.to_dict(), _VOLATILE_CONFIG_KEYS)
        yield json.dumps(config, sort_keys=True).encode()
        for name, tensor in sorted(self.model.state_dict().items()):
            yield f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
            yield memoryview(tensor.cpu().contiguous().view(-1).numpy()).cast("B")


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    """A nested configuration without `keys`, at every depth."""
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    return value


def reproducible_convolutions() -> Any:
    """Same codes on every call: no autotuned, non-deterministic or TF32 convolution kernels on a GPU."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
