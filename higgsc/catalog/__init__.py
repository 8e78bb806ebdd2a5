"""What the compiler knows without loading anything: model shapes, codec constants, GPU types.

Data, not code: nothing here imports torch, transformers or numpy, so that a spec can be compiled on a login
node. Every figure names where it comes from, and the tests compare the shapes with the real classes.
"""
