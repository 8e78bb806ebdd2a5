"""The way out that a message proposes, for the mistakes that have no fixture: it has to be right, or not be there.

`tests/fixtures/mistakes` has the common ones with their whole text; here is the rest of `hints.py`, `keys.py` and
`yaml_errors.py`, a line each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from higgsc.compiler.compile import compile_spec
from higgsc.compiler.diagnostics import Diagnostic
from higgsc.compiler.fixes import apply_fixes
from higgsc.compiler.reading.redact import mask
from higgsc.compiler.render import render

VALID = (Path(__file__).parent.parent / "fixtures" / "diagnostics" / "valid.yaml").read_text("utf-8")


def only(folder: Path, text: str) -> Diagnostic:
    spec = folder / "spec.yaml"
    spec.write_text(text, "utf-8")
    found = compile_spec(spec).diagnostics
    assert len(found) == 1, render(found, "text")
    return found[0]


def with_line(line: str) -> str:
    """The valid spec with a line of a top-level key replaced or added."""
    key = line.partition(":")[0]
    kept = [each for each in VALID.splitlines() if not each.startswith(f"{key}:")]
    return "\n".join([*kept, line]) + "\n"


TRAINING = "training: {{steps: 100, global_batch: {{samples: 8}}, learning_rate: {}}}"


@pytest.mark.parametrize(
    "line, help_",
    [
        ("lora:", "indent the keys of `lora` below it, or write `lora: null` to train the whole model"),
        ("seed:", "write a value behind the colon, or take the line out"),
        ("lora: {rank: 1.5}", "write it without a fraction"),
        ("lora: {rank: '1.5'}", "write a whole number"),
        ("seed: " + "9" * 40, "write a number with fewer digits"),
        ("seed: 5%", "write a whole number such as `100`"),
        ("merge: true", "take the line out: it is on by itself"),
        ("data: true", "write `data: {key: value}`, or its keys below it, indented"),
        ("merge: newest", "write `merge: {key: value}`, or its keys below it, indented"),
        ("lora: full", "`lora: null` trains the whole model"),
        ("lora: 16", "write `{rank: 16}`"),
        ("checkpoint: 100", "write `{every_steps: 100}`"),
        ("tracking: wandb", "write `{to: [wandb]}`"),
        ("tracking: [tensorboard, wandb]", "write `{to: [tensorboard, wandb]}`"),
        ("tracking: {to: 3}", "write a list such as `[tensorboard, wandb]`"),
        ("loss: {contrastive: true}", "write `{weight: 0.1}`"),
        ("loss: {contrastive: 0.3}", "write `{weight: 0.3}`"),
        ("loss: {codebooks: 8}", "write a list such as `[2, 1, 1, 1, 1, 1, 1, 1]`"),
        ("loss: {schedule: {text: [[0, 0.5]]}}", "write `{step: 0, factor: 0.5}`"),
        ("loss: {schedule: {codebooks: [[0, 1, 0]]}}", "write `{step: 0, factors: [1, 0]}`"),
        ("parallelism: fsdp", "`{shard: 8}` divides the weights between eight GPUs"),
        (
            "training: {steps: 9, global_batch: samples:8, learning_rate: 1e-3}",
            "a space is missing after the colon: `samples: 8`",
        ),
        (
            TRAINING.format("[1e-4, 2e-4]"),
            "a training takes one; to try each of them, write `sweep: {training",
        ),
        (TRAINING.format("[1e-4]"), "write `1e-4`, without the brackets"),
        (TRAINING.format("1e-3, warmup_steps: 0.1"), "write steps, not a share: `10` is 0.1 of 100"),
        ("lora: {targets: [lm_head]}", "take it out, and write `heads: [text]` in `lora`"),
        ("lora: {targets: [q_proj, lm_head], heads: [text]}", "take it out: `heads` has it"),
        ("sweep: [training.steps]", "write `sweep: {training.steps: [50, 100]}`, with the values to try"),
        ("seed: !env SEED", "nothing is read from the environment: write the value, or take the line out and give"),
        ("name: !!str 8", 'write `name: "8"`'),
        ("seed: !include x.yaml", "write it out here; what several specs share goes into a file of its own"),
        ("lora: !!map {rank: 8}", "take `!!map` out: what follows is taken as it is written"),
        ("secrets: 3", "write a list such as `[HF_TOKEN]`"),
        ("name: [a]", None),
        ("name: 'تجربة'", "write it in Latin letters, `arabic-1`"),
        ('data: {train: [{path: ""}]}', "it is empty: write `path: data/train_chatml.json`"),
        ('data: {train: [{path: "a\\nb"}]}', "write a path on one line"),
        (TRAINING.format("1 x 10^-3"), "write `1e-3`"),
        (TRAINING.format("100-3"), "write a number such as `1e-4`"),
        (TRAINING.format(".%"), "write a number such as `1e-4`"),
        (TRAINING.format(".nan"), "write a number"),
        ("evaluate: {temperature: 70%}", "write a share, not per cent: `0.7`"),
        ("evaluate: {temperature: warm}", "write a number such as `0.5`"),
        ("evaluate: {samples: 1,000}", "in braces a comma ends a value: write a number without one, `1000`, or with"),
        ("site: {exclusive: maybe}", "write `true` or `false`"),
        ("site: {time_limit: two hours}", 'write hours, minutes and seconds: `"24:00:00"`'),
        ("site: {time_limit: 100000 d}", 'write hours, minutes and seconds: `"24:00:00"`'),
        ("site: {time_limit: 1 fortnight}", 'write hours, minutes and seconds: `"24:00:00"`'),
        ("hardware: true", None),
        ("hardware: two H100", None),
        ("precision: 16", "write `bf16`: fp16 is not offered"),
        ("precision: int8", "write `bf16`, and `quantize: int8` in `model`: the frozen base is rounded"),
        ("precision: 4bit", "write `bf16`, and `quantize: nf4` in `model`"),
        ("ｌora: {rank: 3}", "write `lora`: the key holds U+FF4C, which only looks like a space or letter"),
        ('"lora ": {rank: 3}', "write `lora`, without blanks"),
        ("lora:rank: 3", "keys are nested here: write `lora: {rank: 3}`"),
        ("lora.rnk: 3", "did you mean `lora.rank`? keys are nested: write `lora: {rank: …}`"),
        ("training.samples: 3", "did you mean `training.global_batch.samples` or `training.micro_batch.samples`? keys"),
        ("a.b: 3", "keys are nested here, as in `lora: {rank: 16}`"),
        ("lora: {checkpoints: 3}", "did you mean `checkpoint` at the top level?"),
        ("learning_rat: 3", "did you mean `training.learning_rate`?"),
        ("lora: {samples: 3}", "did you mean `training.global_batch.samples` or `training.micro_batch.samples` or"),
        ("lora: {seed: 3}", "`seed` belongs at the top level: take the indentation away"),
        ("zzz: 3", None),
        ("secrets: [HF_TOKEN, 'HF_TOKEN=${HF_TOKEN}']", "write `HF_TOKEN_HF_TOKEN`, the name alone"),
    ],
)
def test_the_way_out_of_a_wrong_value(tmp_path: Path, line: str, help_: str | None) -> None:
    diagnostic = only(tmp_path, with_line(line))
    assert (diagnostic.help or "").startswith(help_ or "")
    assert (diagnostic.help is None) == (help_ is None)
    assert diagnostic.fix is None, "none of these is safe to apply unseen"


@pytest.mark.parametrize(
    "line, text",
    [
        ("lora: {targets: comprehensiv}", "comprehensive"),
        ("lora: {targets: self_attn.q_proj;self_attn.v_proj}", "[self_attn.q_proj, self_attn.v_proj]"),
        ("merge: last", "{select: last}"),
        ("evaluate: {samples: 5k}", "5000"),
        ("evaluate: {samples: 1'000}", "1000"),
        ("seed: 3.0", "3"),
        ("seed: ٣", "3"),
        ("data: {train: [{path: 3}]}", '"3"'),
        ("merge: {dtype: bfloat16}", "bf16"),
        ("site: {exclusive: yes}", "true"),
        ("hardware: CPU", "1xCPU"),
    ],
)
def test_a_safe_fix_is_right(tmp_path: Path, line: str, text: str) -> None:
    diagnostic = only(tmp_path, with_line(line))
    assert diagnostic.fix is not None
    assert diagnostic.fix.text == text
    apply_fixes((diagnostic,))
    compilation = compile_spec(tmp_path / "spec.yaml")
    assert compilation.compiled, render(compilation.diagnostics, "text")


@pytest.mark.parametrize(
    "text, place, message, help_",
    [
        ('name: "arabic\noutput: "runs/x"\n', (1, '"arabic'), 'the quote " is never closed', 'put " at the end'),
        ("name: 'it's'\n", (1, "s"), "something stands behind the closing quote", "written `''`"),
        ('name: "a" b\n', (1, "b"), "something stands behind the closing quote", 'written `\\"`'),
        ('path: "C:\\data"\n', (1, "\\"), "found unknown escape character", "use single quotes, or `/` in paths"),
        ("a: {b: [1, 2}\n", (1, "}"), "`}` where `]` is due", "`[` is closed by `]`"),
        ("x: 1\nabc\ny: 2\n", (2, "abc"), "a key without a colon", "followed by a colon and a space"),
        ("abc\ny: 2\n", (1, "abc"), "a key without a colon", "followed by a colon and a space"),
        ("a: - b\n", (1, "-"), "block sequence entries", "on a line of its own, or write `[a, b]`"),
        ("a: b: c\n", (1, ":"), "a second colon in one line", 'quote a value with a colon: `a: "b: c"`'),
        ("a: {b: c: d}\n", (1, ":"), "a second colon in one entry", "quote a value with a colon"),
        ("a:1\n  b: 2\n", (1, "a:1"), "a space is missing after the colon", "write `a: 1`"),
        ("train:\n  - a\n  b: 1\n", (3, "b: 1"), "a key between the entries of a list", "start the line with `- `"),
        ("a: 1\n- b\n", (2, "- b"), "an entry of a list between keys", "indent it below the key"),
        ("a:\n    b: 1\n  c: 2\n", (3, "c: 2"), "indented by 2, unlike the lines above", "4 spaces or 0 spaces"),
        ("%x\na: 1\n", (1, "\n"), "found unknown directive name", "quote a value"),
        ("a: !x b\n", (1, "!x"), "a spec has no tags such as `!x`", 'part of the text, write `a: "!x b"`'),
        ("a: &b !!int 8\n", (1, "!!int"), "a spec has no tags such as `!!int`", "write `a: 8`"),
        ("[a]: 1\n", (1, "[a]"), "a key must be a word, not a list", ""),
    ],
)
def test_the_way_out_of_broken_yaml(
    tmp_path: Path, text: str, place: tuple[int, str], message: str, help_: str
) -> None:
    diagnostic = only(tmp_path, text)
    span = diagnostic.primary.span
    assert (span.line, span.text) == place
    assert message in diagnostic.message
    assert help_ in (diagnostic.help or "")


def test_merged_keys_are_written_out(tmp_path: Path) -> None:
    text = with_line("lora: {<<: *d, alpha: 16}").replace("lora:", "d: &d {rank: 8, alpha: 4}\nlora:")
    assert (only(tmp_path, text).help or "").startswith("write `rank: 8` instead, and take `d` out; ")


@pytest.mark.parametrize(
    "text, alias",
    [
        ("a: &a [*a]\n", "*a"),  # without an end
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 80)), "*a63"),  # too deep
        (f"a: &a [{'x, ' * 200}]\nb: &b [{'*a, ' * 60}]\nc: *b\n", "*b"),  # 2 x 60 x 201 values
        (f"a: &a [{'x, ' * 200}]\n? &k b\n: &b {{*k : [{'*a, ' * 60}]}}\nc: {{d: [1, *b]}}\n", "*b"),
    ],
)
def test_of_aliases_the_one_that_is_too_much_is_marked(tmp_path: Path, text: str, alias: str) -> None:
    diagnostic = only(tmp_path, text)
    assert diagnostic.message.startswith("aliases unfold the spec to more than ")
    assert diagnostic.primary.span.text == alias


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "a.yaml").write_text("seed: 1\n")
    rule = "paths in `extends` start at the folder of this file: there is no "
    for path, missing in (
        ("nowhere/b.yaml", "folder `nowhere` beside it"),
        ("base/there/b.yaml", "folder `base/there`"),
        ("base/quite-another.yaml", "`quite-another.yaml` in `base`, only a.yaml"),
        ("quite-another.yaml", "`quite-another.yaml` beside it"),
    ):
        assert only(tmp_path, f"extends: {path}\n{VALID}").help == rule + missing


def test_two_marks_in_one_line_show_it_once(tmp_path: Path) -> None:
    text = render((only(tmp_path, with_line("loss: {text: 0, audio: 0}")),), "text")
    assert text.count("loss: {text: 0, audio: 0}") == 1
    assert [line.count("-") + line.count("^") for line in text.splitlines()[4:6]] == [1, 1]


def test_a_file_far_from_the_project_is_named_whole(tmp_path: Path) -> None:
    assert only(tmp_path, f"extends: /dev/null/x.yaml\n{VALID}").message == (
        "cannot read `/dev/null/x.yaml`: no such file"
    )


def test_an_empty_site_is_none(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(VALID)
    (found,) = compile_spec(tmp_path / "spec.yaml", site="").diagnostics
    assert (found.code, found.help) == ("HC204", "name one, or leave `--site` out")


@pytest.mark.parametrize(
    "sweep, message",
    [
        ("{name: [a, b]}", "`name` cannot be swept"),
        ("{extends: [a.yaml]}", "`extends` cannot be swept"),
        ("{sweep.seed: [1]}", "`sweep.seed` cannot be swept"),
        ("{'seed, seed': [[1, 2]]}", "`seed` is swept twice"),
        ("{seed: [1], 'seed, lora.rank': [[1, 2]]}", "`seed` is swept twice"),
        ("{'seed, lora.rank': [null]}", "each value of `seed, lora.rank` is a list of 2"),
        ("{seed: 1, lora.rank: [8]}", "`seed` has to be swept over a list"),
    ],
)
def test_a_sweep_never_does_nothing(tmp_path: Path, sweep: str, message: str) -> None:
    assert message in only(tmp_path, f"{VALID}sweep: {sweep}\n").message


@pytest.mark.parametrize(
    "override, message",
    [
        ("extends=other.yaml", "`extends` has been followed before"),
        ("seed=1\nname: b", "the value holds keys of its own"),
        ("a." * 100 + "a=1", "the key has 101 words"),
        ("seed=!!int 8", "in the value: a spec has no tags"),
    ],
)
def test_an_override_never_does_nothing(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(VALID)
    (found,) = compile_spec(tmp_path / "spec.yaml", overrides=(override,)).diagnostics
    assert message in found.message


def test_a_base_of_several_files_says_its_problem_once(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("a: 1\na: 2\n")
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text("extends: base.yaml\n")
    assert only(tmp_path, f"extends: [a.yaml, b.yaml]\n{VALID}").code == "HC004"


def test_infinity_is_no_value(tmp_path: Path) -> None:
    """JSON cannot hold it, and the job files are JSON."""
    assert only(tmp_path, with_line("lora: {alpha: .inf}")).code == "HC105"
    assert only(tmp_path, with_line("loss: {text: 1e999}")).code == "HC105"
    line = TRAINING.format("1e-3, max_grad_norm: .inf")
    assert only(tmp_path, with_line(line)).help == "write `1e9`, which no gradient reaches"


def test_what_would_drive_the_terminal_is_replaced(tmp_path: Path) -> None:
    diagnostic = only(tmp_path, f"{VALID}a: \x1b[2J \u202e\n")
    text = render((diagnostic,), "text")
    assert "a: \ufffd[2J \ufffd" in text
    assert not {"\x1b", "\u202e"} & set(text)


def test_of_a_long_line_the_part_in_question_is_shown(tmp_path: Path) -> None:
    text = f"{VALID}lora: {{targets: [{'self_attn.q_proj, ' * 900}nothing, {'self_attn.v_proj, ' * 900}]}}\n"
    (line, carets) = render((only(tmp_path, text),), "text").splitlines()[3:5]
    assert len(line) < 260
    assert line.index("nothing") == carets.index("^^^^^^^")


@pytest.mark.parametrize(
    "text, masked",
    [
        ("token: HF_TOKEN", "token: HF_TOKEN"),
        ("api_key: hunter2hunter2", "api_key: **************"),
        ("revision: " + "0a" * 20, "revision: " + "0a" * 20),
        ("x: " + "0a" * 20, "x: " + "*" * 40),
    ],
)
def test_masks(text: str, masked: str) -> None:
    assert mask(text) == masked


def test_half_a_token_is_not_shown(tmp_path: Path) -> None:
    """A message quotes sixty characters of a line; a token that begins in them is masked before they are cut."""
    token = "hf_" + "Ab1" * 9
    text = render((only(tmp_path, f"name:{'x' * 40}-{token}\nb: 1\n"),), "json")
    assert token[:6] not in text
