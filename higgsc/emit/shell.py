"""The one way from a value to shell text.

Templates are rendered with `quote` as Jinja's `finalize`: every value that a template inserts is quoted, without
the template having to ask for it. What must not be quoted as one word (an argument list, a comment) says so with
a filter, and is made safe by that filter.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Shell(str):
    """Text that is shell syntax already."""

    __slots__ = ()


def quote(value: object) -> Shell:
    """One shell word.

    Raises:
        ValueError: The value holds a control character; such a value has no business in a script.
    """
    if isinstance(value, Shell):
        return value
    text = str(value)
    if _CONTROL.search(text):
        raise ValueError(f"control character in {text!r}")
    return Shell(shlex.quote(text))


def quote_argv(argv: Iterable[str]) -> Shell:
    """A command: each argument one word."""
    return Shell(" ".join(quote(argument) for argument in argv))


def comment(value: object) -> Shell:
    """Text for a `#` comment: one line, no control characters."""
    text = str(value)
    if text.isprintable():
        return Shell(text)
    return Shell("".join(character if character.isprintable() else "?" for character in text))


def must_be_set(name: str) -> Shell:
    """A line that ends the script with a message unless the environment variable has a value."""
    if not name.isidentifier():
        raise ValueError(f"{name!r} is not the name of an environment variable")
    return Shell(f': "${{{name}:?set the secret {name} in the environment of the job}}"')


def alternatives(words: Iterable[str]) -> Shell:
    """The pattern of a `case` branch that takes any of the words."""
    return Shell(" | ".join(quote(word) for word in words))


def render(template: str, **values: Any) -> str:
    """Render a template of `templates/`; an undefined name is an error."""
    return _environment().get_template(template).render(**values)


def template_folder() -> Path:
    """`templates/`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from higgsc.emit.template_cache import TemplateCache

    environment = Environment(
        loader=FileSystemLoader(template_folder()),
        undefined=StrictUndefined,
        finalize=quote,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        bytecode_cache=TemplateCache(),
    )
    environment.filters.update(argv=quote_argv, comment=comment, must_be_set=must_be_set, alternatives=alternatives)
    return environment
