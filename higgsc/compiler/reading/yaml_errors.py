"""What libyaml says about a text, put where the mistake is: its parser often notices lines later.

libyaml names two places: the mark of the problem, and the mark of the context (the bracket, quote or key that it was
reading then). The mistake usually is at the context: a bracket that is never closed, a key without its colon.
"""

from __future__ import annotations

import re
from contextlib import suppress

import yaml

from higgsc.compiler.diagnostics import Diagnostic, Label
from higgsc.compiler.reading.position import SourceFile, Span
from higgsc.compiler.reading.redact import mask
from higgsc.compiler.reading.yaml_foreign import foreign_text
from higgsc.compiler.reading.yaml_lines import indentation, line_above, raw_line, say

_ODD_SPACE = re.compile("[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff]+")
_SHOWN = 60


def yaml_error(source: SourceFile, error: yaml.MarkedYAMLError) -> Diagnostic:
    """One diagnostic for what the parser gave up at."""
    mark = error.problem_mark or error.context_mark
    at = source.offset(mark.line, mark.column) if mark else 0
    opened = source.offset(error.context_mark.line, error.context_mark.column) if error.context_mark else at
    problem = str(error.problem or error.context or error).replace("\n", " ")
    context = str(error.context or "")
    return (
        foreign_text(source, (opened, at))
        or _tab(source, at)
        or _odd_space(source, (opened, at))
        or _quote(source, problem, context, at, opened)
        or _bracket(source, problem, context, at, opened)
        or _first_character(source, problem, context, at, opened)
        or _colon(source, problem, at, opened)
        or indentation(source, problem, at)
        or say(source, problem, at, at + 1, "quote a value that holds `: `, ` #`, quotes or brackets")
    )


def reader_error(source: SourceFile, error: yaml.reader.ReaderError) -> Diagnostic:
    """A character that YAML does not allow anywhere. libyaml counts bytes here."""
    at = len(source.text.encode("utf-8", "surrogatepass")[: error.position].decode("utf-8", "ignore"))
    found = source.text[at : at + 1]
    which = f"U+{ord(found):04X}" if found else "a character"
    help_ = (
        "save the file as UTF-8 text" if found == "\0" else f"take {which} out, or write it as `\\x..` in double quotes"
    )
    return say(source, f"{which} is not allowed, {error.reason}", at, at + 1, help_)


def second_document(source: SourceFile, at: int) -> Diagnostic:
    """A second document that starts at or before an offset: the mistake is the line of dashes."""
    line = source.line_of(at)
    while line > 0 and not source.line_text(line).startswith("---"):
        line -= 1
    start = source.line_starts[line] if line else at
    return Diagnostic(
        "HC002",
        "not valid YAML: more than one YAML document in a spec",
        Label(Span(source, start, start + (3 if line else 0))),
        help="one file is one spec: take the `---` out, or put the second one into a file of its own",
    )


def _tab(source: SourceFile, at: int) -> Diagnostic | None:
    start, line = raw_line(source, at)
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" not in indent:
        return None
    tab = start + indent.index("\t")
    return say(source, "a tab in the indentation", tab, tab + 1, "indent with spaces, not tabs")


def _odd_space(source: SourceFile, offsets: tuple[int, ...]) -> Diagnostic | None:
    """A space that only looks like one, on the lines in question or the one above them."""
    lines = {source.line_of(offset) + step for offset in offsets for step in (0, -1)}
    for line in sorted(line for line in lines if line >= 0):
        start, text = raw_line(source, source.line_starts[line])
        # Behind a key that is in order, such a space is part of a value and does no harm to the lines.
        if (match := _ODD_SPACE.search(text.partition("#")[0])) and not re.match(
            r"\s*[\w.-]+: +\S", text[: match.start()]
        ):
            at = start + match.start()
            return say(
                source,
                f"U+{ord(match[0][0]):04X} looks like a space but is none",
                at,
                at + len(match[0]),
                "replace it by a plain space" if len(match[0]) == 1 else "replace them by plain spaces",
            )
    return None


def _quote(source: SourceFile, problem: str, context: str, at: int, opened: int) -> Diagnostic | None:
    if "quoted scalar" in context:
        if "escape" in problem or "hexdecimal" in problem:
            return say(
                source,
                problem,
                at,
                at + 1,
                "in double quotes `\\` starts an escape: use single quotes, or `/` in paths",
            )
        return _never_closed(source, opened, at)
    # A quote that was opened by mistake ends at the next one, and the parser stumbles over what follows that.
    if source.text[at - 1 : at] and (start := _long_quote(source, at)) is not None:
        return _never_closed(source, start, at)
    before = source.text[source.line_starts[source.line_of(at)] : at].rstrip()
    if problem.startswith("did not find expected") and before.endswith(("'", '"')):
        inside = "''" if before[-1] == "'" else '\\"'
        return say(
            source,
            "something stands behind the closing quote",
            at,
            at + 1,
            f"quotes go around the whole value; one inside it is written `{inside}`",
        )
    return None


def _never_closed(source: SourceFile, opened: int, at: int) -> Diagnostic:
    quote = source.text[opened : opened + 1]
    noticed = at if source.line_of(at) != source.line_of(opened) and at < len(source.text) else None
    _, line = raw_line(source, opened)
    end = opened + len(line) - (opened - source.line_starts[source.line_of(opened)])
    return say(
        source, f"the quote {quote} is never closed", opened, end, f"put {quote} at the end of the value", noticed
    )


def _long_quote(source: SourceFile, at: int) -> int | None:
    """The start of a quoted value of several lines that ends on the line of `at`, if there is one.

    The text is known to be broken, so that reading its tokens again ends in the error that is being explained; the
    tokens before it are what is asked for.
    """
    line = source.line_of(at)
    found = None
    with suppress(yaml.YAMLError):
        for token in yaml.scan(source.text, Loader=yaml.CSafeLoader):
            if token.start_mark.line > line:
                break
            if not isinstance(token, yaml.ScalarToken) or token.style not in ("'", '"'):
                continue
            if token.start_mark.line < token.end_mark.line == line:
                found = source.offset(token.start_mark.line, token.start_mark.column)
    return found


def _bracket(source: SourceFile, problem: str, context: str, at: int, opened: int) -> Diagnostic | None:
    found = source.text[at : at + 1]
    if found in ("]", "}") and "flow" not in context:
        return say(source, f"`{found}` closes nothing", at, at + 1, f"take the `{found}` out, or open it before")
    if "flow" not in context or "expected ','" not in problem:
        return None
    bracket = source.text[opened : opened + 1]
    closing = {"{": "}", "[": "]"}.get(bracket, "")
    if found in ("]", "}"):
        help_ = f"`{bracket}` is closed by `{closing}`"
        return say(source, f"`{found}` where `{closing}` is due", at, at + 1, help_)
    same_line = source.line_of(at) == source.line_of(opened)
    if same_line and found == ":":
        return say(source, "a second colon in one entry", at, at + 1, 'quote a value with a colon: `"a: b"`')
    _, line = raw_line(source, at)
    indent = len(line) - len(line.lstrip())
    _, opening_line = raw_line(source, opened)
    if not same_line and indent <= len(opening_line) - len(opening_line.lstrip()):
        return say(source, f"`{bracket}` is never closed", opened, opened + 1, f"put the `{closing}` at the end")
    return say(source, "a comma is missing before this", at, at + 1, "separate entries with `, `")


def _first_character(source: SourceFile, problem: str, context: str, at: int, opened: int) -> Diagnostic | None:
    """A value that starts with a character that means something in YAML."""
    start = opened if "alias" in context or "anchor" in context else at
    found = source.text[start : start + 1]
    if not ("cannot start any token" in problem or "alias" in problem + context or "anchor" in problem + context):
        return None
    match = re.match(r"[^\s,\]}]+", source.text[start : start + _SHOWN])
    word = match[0] if match else found
    help_ = f'quote the value: `"{word}"`' if word else "quote the value"
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-._")
    if plain and re.match(r"\s*name:", raw_line(source, start)[1]):
        help_ = f"write `name: {plain}`: a name has letters, digits, `.`, `_` and `-`"
    if found == "*" and re.fullmatch(r"\*[A-Za-z_][\w-]*", word):
        help_ = f"no value above is marked `&{word[1:]}`; if it is no alias, {help_}"
    return say(source, f"a value cannot start with `{found}` without quotes", start, start + len(word), help_)


def _colon(source: SourceFile, problem: str, at: int, opened: int) -> Diagnostic | None:
    if "expected ':'" in problem:
        start, line = raw_line(source, opened)
        if (fixed := _with_colon(line)) is not None:
            key = start + len(line) - len(line.lstrip())
            return say(source, fixed[0], key, start + len(line.rstrip()), f"write `{fixed[1]}`")
        help_ = "a key is followed by a colon and a space: `key: value`"
        return say(source, "a key without a colon", opened, start + len(line.rstrip()), help_)
    if "block sequence entries are not allowed" in problem:
        return say(source, problem, at, at + 1, "begin the list on a line of its own, or write `[a, b]`")
    if "mapping values are not allowed" not in problem:
        return None
    start, line = raw_line(source, at)
    before = line[: at - start]
    if match := re.match(r"\s*(?:- )*([\w.-]+): +(.*)", before):
        value = line[match.start(2) :].split(" #")[0].strip()
        help_ = f'quote a value with a colon: `{match[1]}: "{_cut(value)}"`'
        plain = re.sub(r"[^A-Za-z0-9._]+", "-", value).strip("-._")
        if match[1] == "name" and plain:
            help_ = f"write `name: {_cut(plain)}`: a name has letters, digits, `.`, `_` and `-`"
        return say(source, "a second colon in one line", at, at + 1, help_)
    above = line_above(source, at)
    if above is not None and (fixed := _with_colon(above[1])) is not None:
        key = above[0] + len(above[1]) - len(above[1].lstrip())
        return say(source, fixed[0], key, above[0] + len(above[1].rstrip()), f"write `{fixed[1]}`")
    if above is not None and re.fullmatch(r"\s*(?:- )*[A-Za-z_][\w.-]*\s*", above[1]):
        key = above[0] + len(above[1]) - len(above[1].lstrip())
        help_ = "a key is followed by a colon and a space: `key: value`"
        return say(source, "a key without a colon", key, above[0] + len(above[1].rstrip()), help_)
    return None


def _with_colon(line: str) -> tuple[str, str] | None:
    """What is wrong with a line `key:value` or `key = value`, and how it is written; None for any other line."""
    text = line.strip().removeprefix("- ").split(" #")[0].rstrip()
    if match := re.fullmatch(r"([A-Za-z_][\w.-]*):(\S.*)", text):
        return "a space is missing after the colon", f"{match[1]}: {_cut(match[2])}"
    if match := re.fullmatch(r"([A-Za-z_][\w.-]*)\s*(=|:=|=>|->)\s*(\S.*)", text):
        return f"a key is followed by `:`, not by `{match[2]}`", f"{match[1]}: {_cut(match[3])}"
    return None


def _cut(text: str) -> str:
    text = mask(text)  # before it is cut: half a token would not be recognised
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
