"""`model.quantize`: a base that is rounded needs an adapter above it, and fp8 needs hardware that multiplies it."""

from __future__ import annotations

from collections.abc import Iterator

from higgsc.catalog.gpus import GPUS, find_gpu
from higgsc.catalog.quantized import FP8_CAPABILITY
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir


def quantized_base(ir: Ir, sink: Sink) -> Ir:
    """Refuse a quantised base where it cannot be trained on; a tensor group is the mesh's matter."""
    if ir.spec.model.quantize is not None:
        for problem in _problems(ir):
            sink.add(problem)
    return ir


def _problems(ir: Ir) -> Iterator[Diagnostic]:
    scheme, lora, hardware = ir.spec.model.quantize, ir.spec.lora, ir.spec.hardware
    here = ir.label("model.quantize")
    if lora is None:
        yield Diagnostic(
            "HC507",
            f"`quantize: {scheme}` rounds a frozen base, and `lora: null` trains all of it",
            here,
            secondary=(ir.label("lora", "trains the whole model"),),
            help="leave `quantize` out; or leave `lora: null` out, and train an adapter",
        )
    elif lora.dora:
        yield Diagnostic(
            "HC507",
            f"`lora.dora` needs the rows of the base as they are, and `quantize: {scheme}` rounds them",
            here,
            secondary=(ir.label("lora.dora", "trains the rows' lengths"),),
            help="leave `lora.dora` or `quantize` out",
        )
    if scheme != "fp8" or hardware.device == "cpu":
        return
    gpu = None if hardware.gpu is None else find_gpu(hardware.gpu)
    if gpu is not None and not gpu.has_fp8:
        capability = ".".join(map(str, FP8_CAPABILITY))
        yield Diagnostic(
            "HC508",
            f"the {gpu.name} does not multiply 8-bit floats",
            here,
            secondary=(Label(ir.label("hardware").span, f"below compute capability {capability}"),),
            notes=(f"these do: {', '.join(name for name, known in GPUS.items() if known.has_fp8)}",),
            help="write `quantize: int8`, which saves as much memory",
        )
    elif ir.spec.precision == "fp32":
        yield Diagnostic(
            "HC508",
            "on a GPU, products of 8-bit floats come out in bf16, not in fp32",
            here,
            secondary=(ir.label("precision", "asks for fp32"),),
            help="leave `precision: fp32` out, or write `quantize: int8`",
        )
