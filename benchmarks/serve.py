"""Does a server stand its load? Many clients at once, for a while: no answer but 200 and 429, and memory stays flat.

    python benchmarks/serve.py                  # 200 clients for 60 s, the tiny model on this machine
    python benchmarks/serve.py --clients 60 --seconds 8 --json

A third of the requests bring a recording, a third stream, the rest get a file; a client that is told 429 comes again
after a second. Ends with 1 if there was any other answer, an error of a connection, or memory grew by more than a tenth
after the first quarter of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx2 as httpx

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "specs/data/quickstart/audio/huda-01.flac"
GROWTH = 1.1


def main() -> None:
    """Parse, start a server, load it, say what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(Path(folder))
        try:
            figures = asyncio.run(load(port, process.pid, arguments.clients, arguments.seconds))
        finally:
            process.send_signal(signal.SIGTERM)
            figures_of_the_end = process.wait(timeout=60)
    figures["exit_status"] = figures_of_the_end
    memory = figures["memory_mb"]
    good = set(figures["answers"]) <= {"200", "429"} and memory[-1] <= GROWTH * memory[len(memory) // 4]
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"{arguments.clients} clients, {arguments.seconds:g} s: {figures['answers']}")
        print(f"  time to an answer 200: median {figures['median_s']:.2f} s, longest {figures['longest_s']:.2f} s")
        print(f"  time to a refusal 429: median {figures['median_refusal_s'] * 1000:.0f} ms")
        print(f"  memory of the server (MB): {' '.join(f'{value:.0f}' for value in memory)}")
    sys.exit(0 if good and figures_of_the_end == 0 else 1)


def start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The server as a process of its own, and its port."""
    (folder / "huda.flac").write_bytes(CLIP.read_bytes())
    (folder / "huda.txt").write_text("hello there")
    log = (folder / "log").open("w+")
    arguments = [
        "serve",
        "builtin:tiny",
        "--audio-tokenizer",
        "builtin:tiny",
        "--voices",
        str(folder),
        "--name",
        "tiny",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "higgsc", *arguments, "--port", "0", "--max-seconds", "1"],
        stdout=log,
        stderr=log,
        env=environment,
    )
    while not (found := re.search(r"running on http://\S+:(\d+)", (folder / "log").read_text())):
        if process.poll() is not None:
            sys.exit((folder / "log").read_text())
        time.sleep(0.1)
    return process, int(found.group(1))


async def load(port: int, pid: int, clients: int, seconds: float) -> dict[str, object]:
    """All clients at once, each one request after the other."""
    end = time.monotonic() + seconds
    answers: Counter[str] = Counter()
    took: dict[str, list[float]] = {"200": [], "429": []}
    memory: list[float] = []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as client:

        async def ask(number: int) -> None:
            while time.monotonic() < end:
                begun = time.monotonic()
                try:
                    status = await request(client, number)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                answers[status] += 1
                took.setdefault(status, []).append(time.monotonic() - begun)
                if status == "429":
                    await asyncio.sleep(1)

        async def watch() -> None:
            while time.monotonic() < end:
                memory.append(resident(pid))
                await asyncio.sleep(max(seconds / 12, 0.5))
            memory.append(resident(pid))

        await asyncio.gather(watch(), *(ask(number) for number in range(clients)))
    return {
        "answers": dict(answers),
        "median_s": statistics.median(took["200"] or [0]),
        "longest_s": max(took["200"] or [0]),
        "median_refusal_s": statistics.median(took["429"] or [0]),
        "memory_mb": memory,
    }


async def request(client: httpx.AsyncClient, number: int) -> str:
    """One request of three kinds; the status, as text."""
    if number % 3 == 0:
        form = {"reference_text": "hello there", "target_text": "good bye"}
        files = {"reference_audio": ("r.flac", CLIP.read_bytes())}
        return str((await client.post("/generate_speech", data=form, files=files)).status_code)
    body = {"model": "tiny", "voice": "huda", "input": "hi", "response_format": "pcm" if number % 3 == 1 else "wav"}
    async with client.stream("POST", "/v1/audio/speech", json=body) as answer:
        async for _ in answer.aiter_bytes():
            pass
    return str(answer.status_code)


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1000  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
