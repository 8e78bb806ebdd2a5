"""The decoder on packed rows: transformers' modules and parameters, arithmetic of our own.

Equal to transformers' own `forward` (tests hold it to that), without what makes that one slow in training: boolean
indexing in every layer (a host synchronisation each on a GPU), a dense mask over the whole row, adapters as separate
products, and copies of activations that the backward pass does not need.
"""
