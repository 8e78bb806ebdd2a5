"""How fast rows are validated and converted and headers are read, beside plain `json` and `soundfile.info`.

    python benchmarks/data.py [--rows 1000000] [--files 2000] [--rounds 3]

Everything runs on one core, in this process, interleaved over the rounds; the best of each is shown. Seconds are of
the processor, so that what else runs on the machine counts for less; wall-clock seconds stand beside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from higgsc.data.convert import convert
from higgsc.data.probe import probe
from higgsc.data.samples import SourceFile
from higgsc.data.structure import check_structure

SYSTEM = "Generate audio following instruction."
REQUEST = "Please generate speech for given text in reference audio's voice: "
TEXTS = ("ستمطر السماء غدا في شمال البلاد.", "والميزة فيها يعني الكيس الماتيريال.", "كم يبلغ ثمن هذا الكتاب؟")


def main() -> None:
    """Make the data, time everything, print a table."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.jsonl"
        size = _write_rows(data, arguments.rows)
        source = SourceFile(path=data, format="chatml")
        arrays = {name: _write_array(data, data.with_name(f"{name}.json"), name) for name in ("compact", "indented")}
        tasks: dict[str, Callable[[], Any]] = {
            "convert: higgsc to canonical": lambda: convert(source, data.with_name("out.jsonl")),
            "convert: higgsc to ChatML": lambda: convert(source, data.with_name("chatml.jsonl"), to="chatml"),
            "validate: higgsc": lambda: check_structure((source,), root=data.parent, roots=()),
            **{
                f"validate: higgsc, {name} array": partial(check_structure, (one,), root=data.parent, roots=())
                for name, one in arrays.items()
            },
            "convert: json": lambda: _plain_convert(data, data.with_name("plain.jsonl")),
            "validate: json and checks": lambda: _plain_validate(data),
        }
        rows = _time(tasks, arguments.rounds)
        files = {kind: _write_audio(Path(folder) / kind, kind, arguments.files) for kind in ("wav", "flac")}
        probes: dict[str, Callable[[], Any]] = {}
        for kind, paths in files.items():
            probes[f"{kind}: soundfile.info"] = lambda paths=paths: [soundfile.info(str(path)) for path in paths]
            probes[f"{kind}: higgsc"] = lambda paths=paths: [probe(path) for path in paths]
        headers = _time(probes, arguments.rounds)
    print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.rows:,} rows of {size / arguments.rows:.0f} B, {arguments.files:,} files of each kind\n")
    _show(rows, arguments.rows, "rows/s", {"convert": "convert: json", "validate": "validate: json and checks"})
    _show(headers, arguments.files, "files/s", {kind: f"{kind}: soundfile.info" for kind in files})
    print("peak MiB: largest resident set of the process by then, in the order shown")


Taken = tuple[float, float, float]


def _time(tasks: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Taken]:
    """Best processor and wall-clock seconds of each task, and the peak of memory after its first round in MiB."""
    best: dict[str, Taken] = {}
    for _ in range(rounds):
        for name, task in tasks.items():
            wall, processor = time.perf_counter(), time.process_time()
            task()
            took = time.process_time() - processor, time.perf_counter() - wall
            peak = best[name][2] if name in best else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            best[name] = min((*took, peak), best.get(name, (*took, peak)))
    return best


def _show(best: dict[str, Taken], count: int, unit: str, peers: dict[str, str]) -> None:
    print(f"{'':34} {'CPU s':>8} {'wall s':>8} {unit:>11} {'x peer':>7} {'peak MiB':>9}")
    for name, (processor, wall, peak) in best.items():
        peer = best[peers[name.split(":")[0]]][0]
        print(f"{name:34} {processor:8.2f} {wall:8.2f} {count / processor:11,.0f} {peer / processor:7.1f} {peak:9.0f}")
    print()


def _write_rows(path: Path, rows: int) -> int:
    """Rows in the layout of three turns, as the community's files have them."""
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            text, said = TEXTS[number % 3], TEXTS[(number + 1) % 3]
            row = {
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": text},
                            {"type": "audio", "audio_url": f"audio/{number // 2}.wav"},
                            {"type": "text", "text": REQUEST + said},
                        ],
                    },
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "text", "text": said},
                            {"type": "audio", "audio_url": f"audio/{number}.wav", "duration": 2.13},
                        ],
                    },
                ],
                "start_index": 0,
                "speaker": f"speaker_{number % 500:03d}",
                "misc": {"sample_id": f"s-{number:07d}"},
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path.stat().st_size


def _write_array(lines: Path, path: Path, form: str) -> SourceFile:
    """The same rows as a JSON array, all on one line or with an indent of 2."""
    with lines.open(encoding="utf-8") as rows, path.open("w", encoding="utf-8") as stream:
        between = "["
        for line in rows:
            row = line[:-1]
            if form == "indented":
                row = textwrap.indent(json.dumps(json.loads(line), ensure_ascii=False, indent=2), "  ")
            stream.write(f"{between}\n{row}" if form == "indented" else between + row)
            between = "," if form == "indented" else ", "
        stream.write("\n]" if form == "indented" else "]")
    return SourceFile(path=path, format="chatml")


def _write_audio(folder: Path, kind: str, count: int) -> list[Path]:
    folder.mkdir()
    wave = np.random.default_rng(0).integers(-3000, 3000, 24_000, dtype=np.int16)
    paths = [folder / f"{number}.{kind}" for number in range(count)]
    for path in paths:
        soundfile.write(path, wave, 24_000)
    return paths


def _plain_rows(path: Path) -> Any:
    """The peer: `json`, and the same checks in plain Python. Yields what a sample is made of."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            system, user, assistant = row["messages"]
            assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
            heard_text, heard, request = user["content"]
            said, spoken = assistant["content"]
            kinds = [part["type"] for part in (*user["content"], *assistant["content"])]
            assert kinds == ["text", "audio", "text", "text", "audio"]
            for part in (heard_text, request, said):
                assert isinstance(part["text"], str)
                assert part["text"].strip()
                assert "<|" not in part["text"]
            for part in (heard, spoken):
                name = part["audio_url"]
                assert isinstance(name, str)
                assert name.strip()
                assert not name.startswith("/")
                assert ".." not in name
                assert ":" not in name
                for key in ("offset", "duration"):
                    assert part.get(key) is None or 0 <= part[key] < 1e9
            assert len(said["text"]) <= 2000
            assert row["misc"]["sample_id"].isprintable()
            assert row["speaker"].isprintable()
            yield row, system["content"], heard_text["text"], heard, said["text"], spoken


def _plain_validate(path: Path) -> None:
    ids: set[str] = set()
    speakers: Counter[str] = Counter()
    lengths: list[int] = []
    for row, _, _, _, said, _ in _plain_rows(path):
        assert row["misc"]["sample_id"] not in ids
        ids.add(row["misc"]["sample_id"])
        speakers[row["speaker"]] += 1
        lengths.append(len(said))


def _plain_convert(path: Path, output: Path) -> None:
    def audio(part: dict[str, Any]) -> dict[str, Any]:
        kept = {key: part[key] for key in ("offset", "duration") if part.get(key) is not None}
        return {"path": part["audio_url"], **kept}

    with output.open("w", encoding="utf-8") as stream:
        for number, (row, system, text, heard, said, spoken) in enumerate(_plain_rows(path), start=1):
            made = {
                "id": row["misc"]["sample_id"],
                "target": {"text": said, "audio": audio(spoken)},
                "references": [{"text": text, "audio": audio(heard)}],
                "speaker": row["speaker"],
                "system": system,
                "extra": {"misc": row["misc"]},
                "origin": f"{path.name}:{number}",
            }
            stream.write(json.dumps(made, ensure_ascii=False) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
