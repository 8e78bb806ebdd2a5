"""Receipts of a step that is divided into shards: the last shard to finish writes the receipt of the whole.

A shard's own receipt lies at `<run>/receipts/<step>/<shard>.json`. Shards that finish at the same time may both find
all of them there, and then write the same.
"""

from __future__ import annotations

from pathlib import Path

from higgsc.contract.receipts import Receipt, put_receipt, receipt_path, write_atomically


def put_shard_receipt(run: Path, receipt: Receipt, *, shard: int, shards: int) -> None:
    """Record that a shard finished, and the step with it if all others of the same job file have.

    Args:
        run: The run's folder.
        receipt: Of the shard.
        shard: Its number, from 0.
        shards: How many there are.
    """
    folder = receipt_path(run, receipt.step).with_suffix("")
    write_atomically(folder / f"{shard}.json", receipt.model_dump_json(indent=2) + "\n")
    paths = [folder / f"{number}.json" for number in range(shards)]
    if not all(path.is_file() for path in paths):
        return
    receipts = [Receipt.model_validate_json(path.read_text("utf-8")) for path in paths]
    if all(other.job_sha256 == receipt.job_sha256 for other in receipts):
        put_receipt(run, _whole(receipts))


def _whole(receipts: list[Receipt]) -> Receipt:
    figures: dict[str, float | int | str] = {}
    for receipt in receipts:
        for name, value in receipt.figures.items():
            sum_so_far = figures.get(name, 0)
            assert not isinstance(value, str)
            assert not isinstance(sum_so_far, str)
            figures[name] = sum_so_far + value
    counts = ", ".join(f"{value:,.0f} {name}" for name, value in figures.items())
    return Receipt(
        step=receipts[0].step,
        job_sha256=receipts[0].job_sha256,
        summary=f"{len(receipts)} shards: {counts}",
        seconds=max(receipt.seconds for receipt in receipts),
        figures=figures,
        inputs=tuple({stamp.path: stamp for receipt in receipts for stamp in receipt.inputs}.values()),
        outputs=receipts[0].outputs,
    )
