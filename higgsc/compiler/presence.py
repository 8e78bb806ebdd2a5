"""Whether the local files that a spec names are here, and the packages that its steps need beside the usual ones.

No part of compiling, which is a pure function of the spec: a build is the same whether the data are here or on the
cluster only. The commands ask afterwards, so that a misspelt path is not found by the prepare step after an hour in
the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from higgsc.catalog.remote import is_remote
from higgsc.compiler.compile import Compilation
from higgsc.compiler.diagnostics import Diagnostic, Sink, closest
from higgsc.compiler.ir import Ir


def missing_files(compilation: Compilation) -> tuple[Diagnostic, ...]:
    """A warning for each file or folder that a compiled spec reads and that does not exist on this machine."""
    sink = Sink()
    for made in compilation.compiled:
        for at, path in _local_paths(made.ir):
            place = compilation.root / path
            if place.exists():
                continue
            beside = sorted(other.name for other in place.parent.iterdir()) if place.parent.is_dir() else []
            match = closest(place.name, beside, cutoff=0.7)
            sink.add(
                Diagnostic(
                    "HC411",
                    f"`{path}` is not on this machine",
                    made.ir.label(at),
                    notes=(f"looked for {place}",),
                    help=f"did you mean `{path[: len(path) - len(place.name)]}{match}`?"
                    if match
                    else "paths start at the project root; if it lies on the cluster only, all is well",
                )
            )
    return sink.diagnostics


def missing_packages(compilation: Compilation) -> tuple[Diagnostic, ...]:
    """A warning for each package that the steps need for an option and this Python lacks, if it may run them.

    It may not where the site has an environment of its own for the steps, nor where there is no torch.
    """
    sink = Sink()
    for made in compilation.compiled:
        site = made.ir.spec.site
        elsewhere = site.venv is not None or site.conda is not None or site.container is not None
        if elsewhere or find_spec("torch") is None:
            continue
        for at, name, out in _packages(made.ir):
            if find_spec(name) is None:
                sink.add(
                    Diagnostic(
                        "HC414",
                        f"the package `{name}` is not installed here",
                        made.ir.label(at),
                        help=f"`pip install {name}` where the step runs, or leave `{out}` out",
                    )
                )
    return sink.diagnostics


def _packages(ir: Ir) -> Iterator[tuple[str, str, str]]:
    """Where the spec asks for something that takes a package of its own, the package, and what to leave out."""
    for index, name in enumerate(ir.spec.tracking.to):
        yield f"tracking.to.{index}", name, name
    if ir.spec.evaluate is not None and ir.spec.evaluate.recogniser is not None:
        yield "evaluate.recogniser", "jiwer", "recogniser"
    if ir.spec.merge is not None and ir.spec.merge.quantize is not None:
        yield "merge.quantize", "torchao", "quantize"


def _local_paths(ir: Ir) -> Iterator[tuple[str, str]]:
    """Where the spec names something on disk, and what."""
    for index, source in enumerate(ir.spec.data.train):
        if not is_remote(source.path):
            yield f"data.train.{index}.path", source.path
    if ir.spec.lora is not None and ir.spec.lora.start is not None:
        yield "lora.start", ir.spec.lora.start
    evaluate, model = ir.spec.evaluate, ir.spec.model
    for at, name in (
        ("model.base", model.base),
        ("model.audio_tokenizer", model.audio_tokenizer),
        ("model.whisper.encoder", None if model.whisper is None else model.whisper.encoder),
        ("evaluate.recogniser", None if evaluate is None else evaluate.recogniser),
        ("evaluate.similarity", None if evaluate is None else evaluate.similarity),
    ):
        if name is not None and name.startswith((".", "/")):
            yield at, name
