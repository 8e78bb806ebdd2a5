"""Train the codec that `model.audio_tokenizer: builtin:tiny` stands for; write its weights into the package.

Speaks random sequences of the vocalised words in ``sentences.txt`` with espeak-ng, in nine voices, and fits
the codec to them: reconstruction in log-mel and STFT magnitude at five resolutions, residual vector
quantization with moving-average codebooks (van den Oord et al. 2017; Zeghidour et al. 2021). There is no
adversary, so voices buzz. A quarter of an hour on one CPU thread; needs the ``espeak-ng`` binary, soundfile
and soxr.

    python specs/data/quickstart/train_codec.py --minutes 13
"""

from __future__ import annotations

import argparse
import io
import math
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from higgsc.catalog.codec import HOP_LENGTH, SAMPLE_RATE
from higgsc.data.codec import audio_tokenizer_class
from higgsc.train.model.builtin import codec as builtin

SENTENCES = Path(__file__).with_name("sentences.txt")
VARIANTS = ("ar+m3", "ar+m7", "ar+f1", "ar+Annie", "ar+m1", "ar+m5", "ar+f2", "ar+f4", "ar")
CLIPS = 420
BATCH, FRAMES = 8, 20
LEARNING_RATE = 2e-3
CONTINUOUS_STEPS = 120
"""Steps before the quantizer is switched on."""


def speak(clips: int) -> list[Tensor]:
    """Clips of random word sequences at 24 kHz, `[N]` each, peak at -3 dBFS."""
    draw = random.Random(7)
    lines = SENTENCES.read_text(encoding="utf-8").splitlines()
    words = [word for line in lines if line and line[0] != "#" for word in line.split("\t")[-1].split()]
    waves = []
    for _ in range(clips):
        options = [
            "-v",
            draw.choice(VARIANTS),
            "-p",
            str(draw.randint(15, 80)),
            "-s",
            str(draw.randint(140, 185)),
        ]
        text = " ".join(draw.sample(words, draw.randint(5, 9)))
        wav = subprocess.run(["espeak-ng", *options, "--stdout", text], capture_output=True, check=True).stdout
        wave, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
        wave = soxr.resample(wave, rate, SAMPLE_RATE)
        loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
        wave = wave[loud[0] : loud[-1] + 1]
        waves.append(torch.from_numpy(np.float32(wave * 10 ** (-3 / 20) / np.abs(wave).max())))
    return waves


class SpectralLoss(nn.Module):
    """L1 distance of log-mel spectrograms and of STFT magnitudes, averaged over five window lengths."""

    RESOLUTIONS = ((128, 10), (256, 20), (512, 40), (1024, 80), (2048, 120))

    def __init__(self) -> None:
        super().__init__()
        for window, mels in self.RESOLUTIONS:
            self.register_buffer(f"mel{window}", mel_filters(window, mels))

    def forward(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Waves `[B, N]` to (log-mel distance in nepers, loss)."""
        mel_distance = torch.zeros(())
        loss = torch.zeros(())
        for window, _ in self.RESOLUTIONS:
            hann = torch.hann_window(window)
            ours, theirs = (
                torch.stft(wave, window, window // 4, window=hann, return_complex=True).abs().clamp(min=1e-6)
                for wave in (output, target)
            )
            mel = getattr(self, f"mel{window}")
            floor = 1e-3 * math.sqrt(window)
            distance = functional.l1_loss((mel @ ours + floor).log(), (mel @ theirs + floor).log())
            mel_distance = mel_distance + distance / len(self.RESOLUTIONS)
            convergence = (ours - theirs).norm() / theirs.norm()
            detail = functional.l1_loss((ours + floor).log(), (theirs + floor).log())
            loss = loss + (distance + 0.3 * convergence + 0.3 * detail) / len(self.RESOLUTIONS)
        return mel_distance, loss


def mel_filters(window: int, mels: int) -> Tensor:
    """Triangular filters on the mel scale of O'Shaughnessy, `[mels, window / 2 + 1]`, rows summing to one."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2) / 2595) - 1)
    bins = torch.linspace(0, SAMPLE_RATE / 2, window // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    nearest = functional.one_hot((bins - edges[1:-1, None]).abs().argmin(1), len(bins))
    filters = torch.where(filters.sum(1, keepdim=True) > 0, filters, nearest.float())
    return filters / filters.sum(1, keepdim=True)


class CodebookAverages:
    """Moving averages behind one codebook's entries; entries that fall out of use are drawn anew."""

    DECAY, UNUSED = 0.98, 0.01

    def __init__(self, entries: Tensor) -> None:
        self.entries = entries
        self.counts = torch.ones(len(entries))
        self.sums = entries.clone()

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor) -> None:
        """Move entries towards the vectors `[N, D]` that chose them by `indices [N]`."""
        share = 1 - self.DECAY
        self.counts.mul_(self.DECAY).index_add_(0, indices, torch.full((len(indices),), share))
        self.sums.mul_(self.DECAY).index_add_(0, indices, share * vectors)
        unused = (self.counts < self.UNUSED).nonzero()[:, 0]
        if len(unused):
            drawn = vectors[torch.randint(len(vectors), (len(unused),))]
            self.counts[unused] = share
            self.sums[unused] = share * drawn
        self.entries.copy_(self.sums / self.counts[:, None])


def quantize(model: Any, embeddings: Tensor, averages: list[CodebookAverages], used: int) -> tuple[Tensor, Tensor]:
    """Straight-through residual quantization with the first `used` codebooks.

    Takes `[B, T, H]`; returns the quantized embeddings `[B, T, H]` and the commitment loss.
    """
    residual, quantized, commitment = embeddings, torch.zeros_like(embeddings), torch.zeros(())
    for quantizer, average in list(zip(model.quantizer.quantizers, averages, strict=True))[:used]:
        vectors = quantizer.project_in(residual)
        indices = quantizer.codebook.encode(vectors)
        entries = quantizer.codebook.decode(indices)
        average.update(vectors.detach().flatten(0, 1), indices.flatten())
        commitment = commitment + functional.mse_loss(vectors, entries)
        chosen = quantizer.project_out(vectors + (entries - vectors).detach())
        quantized, residual = quantized + chosen, residual - chosen
    return quantized, commitment / used


def embed(model: Any, waves: Tensor) -> Tensor:
    """What the quantizer sees: waves `[B, 1, N]` to `[B, T, H]`, as the model's `encode` computes it."""
    semantic = model.encoder_semantic(model._extract_semantic_features(waves).mT)
    return model.fc(torch.cat([model.acoustic_encoder(waves), semantic], dim=1).mT)


def initialise(model: Any) -> None:
    """Fan-in scaled layers, residual branches damped, so that signals keep their scale from the start."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("semantic_model"):
                continue
            if parameter.ndim > 1 and not name.endswith("alpha"):
                fan_in = math.prod(parameter.shape[1:])
                if "conv_t1" in name:
                    fan_in = parameter.shape[0] * 2
                damping = 0.3 if "res_unit" in name and "conv2" in name else 1.0
                parameter.normal_(std=damping * fan_in**-0.5)
            elif name.endswith("bias"):
                parameter.zero_()
        model.acoustic_decoder.conv2.weight.mul_(0.1)


def start_codebooks(model: Any, batches: list[Tensor]) -> list[CodebookAverages]:
    """Draw each codebook's entries from the residuals that reach it."""
    averages = []
    with torch.no_grad():
        residual = torch.cat([embed(model, batch).flatten(0, 1) for batch in batches])
        scale = residual.std()
        for quantizer in model.quantizer.quantizers:
            dimension = quantizer.project_in.weight.shape[0]
            basis = torch.linalg.svd(residual - residual.mean(0), full_matrices=False).Vh[:dimension]
            quantizer.project_in.weight.copy_(basis / scale)
            quantizer.project_out.weight.copy_(basis.T * scale)
            vectors = quantizer.project_in(residual)
            entries = quantizer.codebook.embed
            entries.copy_(vectors[torch.randperm(len(vectors))[: len(entries)]])
            averages.append(CodebookAverages(entries))
            residual = residual - quantizer.project_out(quantizer.codebook.decode(quantizer.codebook.encode(vectors)))
    return averages


def train(model: Any, waves: list[Tensor], minutes: float) -> None:
    """Fit the model in place for `minutes`, printing the log-mel distance."""
    model.train()
    model.semantic_model.eval().requires_grad_(False)
    spectral, samples = SpectralLoss(), FRAMES * HOP_LENGTH
    waves = [wave for wave in waves if len(wave) > samples]

    def batch() -> Tensor:
        rows = []
        for _ in range(BATCH):
            wave = random.choice(waves)
            start = random.randrange(len(wave) - samples)
            rows.append(wave[start : start + samples] * 10 ** random.uniform(-0.5, 0.05))
        return torch.stack(rows)[:, None]

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.8, 0.99), weight_decay=1e-3)
    averages: list[CodebookAverages] = []
    began, step, smooth = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - began) / (60 * minutes)) < 1:
        if step == CONTINUOUS_STEPS:
            averages = start_codebooks(model, [batch() for _ in range(12)])
        rate = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        target = batch()
        embeddings, commitment = embed(model, target), torch.zeros(())
        if averages:
            used = 8 if random.random() < 0.6 else random.randint(1, 8)
            embeddings, commitment = quantize(model, embeddings, averages, used)
        output = model.acoustic_decoder(model.fc2(embeddings).mT)
        mel_distance, loss = spectral(output[:, 0], target[:, 0])
        optimizer.zero_grad()
        (loss + 0.25 * commitment).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        smooth = mel_distance.item() if step == 0 else 0.95 * smooth + 0.05 * mel_distance.item()
        step += 1
        if step % 50 == 0:
            print(f"step {step}  {progress:4.0%}  log-mel {smooth:.3f}  commitment {commitment:.4f}", flush=True)
    if not averages:
        raise SystemExit(f"{minutes} minutes were {step} steps: the quantizer starts after {CONTINUOUS_STEPS}")


def write(model: Any, path: Path) -> None:
    """Write what the builder reads: float16, without the training-time averages."""
    state = model.eval().state_dict()
    kept = {name: value.half().contiguous() for name, value in state.items() if not builtin.is_training_state(name)}
    save_file(kept, path, metadata={"format": "pt"})
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=13.0)
    parser.add_argument("--output", type=Path, default=builtin.WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    model = audio_tokenizer_class()(builtin.codec_config())
    initialise(model)
    train(model, speak(CLIPS), arguments.minutes)
    write(model, arguments.output)


if __name__ == "__main__":
    main()
