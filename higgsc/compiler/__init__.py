"""Spec text in, plan out: pure functions, no torch, no clock, no environment."""
