"""The language: frozen models of what a user writes. The docstring under a field is its documentation."""

from higgsc.spec.experiment import Experiment

__all__ = ["Experiment"]
