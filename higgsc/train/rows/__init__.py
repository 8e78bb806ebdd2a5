"""Samples of the store to rows for the model: order, sequence, packing."""
