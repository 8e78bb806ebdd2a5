"""The real package with another command line: see `__main__`."""

from pathlib import Path

__path__.append(str(Path(__file__).parents[4] / "higgsc"))
__version__ = "stand-in"
