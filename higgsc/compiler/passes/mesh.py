"""The mesh: replicate x shard x tensor has to be the number of processes, and tensor to divide what it divides."""

from __future__ import annotations

from collections.abc import Iterator

from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.ir import Ir


def mesh(ir: Ir, sink: Sink) -> Ir:
    """Derive `parallelism.replicate`, if the mesh fits; needs `hardware.processes`."""
    wrong = next(_problems(ir), None)
    if wrong is not None:
        sink.add(wrong)
        return ir
    given, world = ir.spec.parallelism, ir.integer("hardware.processes")
    if given.replicate != "auto":
        return ir.derive("parallelism.replicate", given.replicate, "as given", by="mesh")
    formula = f"{world} processes / shard {given.shard}" + (f" / tensor {given.tensor}" if given.tensor > 1 else "")
    inputs = ("hardware.processes", "parallelism.shard", "parallelism.tensor")
    replicate = world // (given.shard * given.tensor)
    return ir.derive("parallelism.replicate", replicate, formula, by="mesh", inputs=inputs)


def tensor_sizes(ir: Ir) -> list[int]:
    """Sizes of tensor groups that the model and the machines allow, 1 among them."""
    per_node = ir.spec.hardware.gpus_per_node
    return [n for n in range(1, per_node + 1) if per_node % n == 0 and ir.shape.indivisible(n) is None]


def undivided(ir: Ir) -> list[str]:
    """What the spec asks for that tensor groups cannot do, by path."""
    lora = ir.spec.lora
    asked = {
        "lora": lora is None,
        "lora.dora": lora is not None and lora.dora,
        "model.quantize": ir.spec.model.quantize is not None,
        "training.compile": ir.spec.training.compile,
    }
    return [path for path, on in asked.items() if on]


def _problems(ir: Ir) -> Iterator[Diagnostic]:
    """What is wrong, the cause before what follows from it."""
    hardware, given, world = ir.spec.hardware, ir.spec.parallelism, ir.integer("hardware.processes")
    together = given.shard * given.tensor
    processes = Label(ir.label("hardware").span, f"{world} processes")
    shard_tensor = f"shard {given.shard} x tensor {given.tensor}"
    if given.sequence and given.tensor == 1:
        sizes = [n for n in tensor_sizes(ir) if n > 1 and world % (given.shard * n) == 0]
        yield Diagnostic(
            "HC306",
            "sequence parallelism needs a tensor group, and `tensor` is 1",
            ir.label("parallelism.sequence"),
            help=f"{f'write `tensor: {sizes[0]}` as well, or ' if sizes else ''}leave `sequence` out",
        )
    if (size := ir.shape.indivisible(given.tensor)) is not None:
        also = f"nor does {shard_tensor} = {together} divide {world}" if world % together else ""
        yield Diagnostic(
            "HC301",
            f"tensor {given.tensor} does not divide {size}",
            ir.label("parallelism.tensor", also),
            secondary=(processes,) if also else (),
            help=_instead(ir),
        )
    if hardware.gpus_per_node % given.tensor:
        per_node = f"{hardware.gpus_per_node} in each machine" if hardware.nodes > 1 else f"{world} processes"
        yield Diagnostic(
            "HC305",
            f"tensor {given.tensor} does not divide the {hardware.gpus_per_node} processes of a machine",
            ir.label("parallelism.tensor"),
            secondary=(Label(processes.span, per_node),),
            notes=("a tensor group talks in every layer, so it stays within one machine",),
            help=_instead(ir),
        )
    for path in undivided(ir) if given.tensor > 1 else ():
        yield Diagnostic(
            "HC307",
            f"`{path}{': null' if path == 'lora' else ''}` cannot be combined with a tensor group",
            ir.label(path),
            secondary=(Label(ir.label("parallelism.tensor").span, f"{given.tensor} GPUs each"),),
            notes=("how much memory that takes is not predicted",) if path == "lora" else (),
            help="divide the whole model by `shard` instead, with `tensor: 1`"
            if path == "lora"
            else f"leave `{path}` out, or write `tensor: 1`",
        )
    if given.replicate == "auto":
        if world % together:
            product = shard_tensor + f" = {together}" if given.tensor > 1 else f"shard {given.shard}"
            message = f"{product} does not divide {world} processes"
            yield Diagnostic("HC301", message, ir.label("parallelism.shard"), (processes,), help=_instead(ir))
    elif given.replicate * together != world:
        product = f"replicate {given.replicate} x shard {given.shard}"
        product += f" x tensor {given.tensor}" if given.tensor > 1 else ""
        message = f"{product} = {given.replicate * together}, but the hardware has {world} processes"
        yield Diagnostic("HC301", message, ir.label("parallelism.replicate"), (processes,), help=_instead(ir))


def _instead(ir: Ir) -> str:
    """The largest groups up to those that were asked for."""
    given, world = ir.spec.parallelism, ir.integer("hardware.processes")
    tensor = max(n for n in tensor_sizes(ir) if n <= given.tensor)
    shard = max(n for n in range(1, min(given.shard, world) + 1) if world % (n * tensor) == 0)
    groups = f"`shard: {shard}`" if given.tensor == 1 else f"`tensor: {tensor}`, `shard: {shard}`"
    return f"{groups} leaves `replicate: {world // (shard * tensor)}`, which is what `auto` stands for"
