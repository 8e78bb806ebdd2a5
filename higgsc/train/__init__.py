"""The runtime that job files drive: model, LoRA, loss, packing, checkpoints, loop, metrics."""
