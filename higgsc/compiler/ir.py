"""What the passes work on: the typed spec with its tree, and the facts that they derive from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from higgsc.catalog.higgs_audio_v2 import HiggsAudioV2Shape
from higgsc.compiler.diagnostics import Label
from higgsc.compiler.plan import Step
from higgsc.compiler.reading.source import Node
from higgsc.spec import Experiment

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Derived:
    """A value that a pass computed, and how."""

    value: Value | tuple[str, ...]
    formula: str
    """For people: `128 samples / (8 ranks x 4)`."""
    by: str
    """The pass: `passes/batch.py`."""
    inputs: tuple[str, ...] = ()
    """Dotted paths of the values that went into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ir:
    """The state between two passes. A pass returns a new one."""

    spec: Experiment
    tree: Node
    spec_path: str
    """Relative to the project root."""
    build: str
    """The folder of the emitted files, relative to the project root."""
    swept: bool
    """Whether this is one point of a sweep."""
    shape: HiggsAudioV2Shape
    derived: Mapping[str, Derived] = field(default_factory=dict)
    """By dotted path, as in `resolved.yaml`."""
    steps: tuple[Step, ...] = ()

    def derive(
        self, path: str, value: Value | tuple[str, ...], formula: str, *, by: str, inputs: tuple[str, ...] = ()
    ) -> Ir:
        """This state with one more derived value."""
        return replace(self, derived={**self.derived, path: Derived(value, formula, f"passes/{by}.py", inputs)})

    def integer(self, path: str) -> int:
        """A derived whole number. The order of the passes guarantees that it is there."""
        value = self.derived[path].value
        assert isinstance(value, int)
        return value

    def text(self, path: str) -> str:
        """A derived string."""
        value = self.derived[path].value
        assert isinstance(value, str)
        return value

    def label(self, path: str, text: str = "") -> Label:
        """The place of a value in the spec; of the nearest one above it if the spec does not give it."""
        node, rest = self.tree.find(tuple(int(part) if part.isdigit() else part for part in path.split(".")))
        return Label(node.place if rest else node.span, text)

    def given(self, path: str) -> bool:
        """Whether the spec (or a file that it extends) gives this value itself."""
        return self.tree.at(path) is not None
