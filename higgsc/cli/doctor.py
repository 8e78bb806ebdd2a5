"""`higgsc doctor`: a site against the cluster that this machine belongs to."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from higgsc.cli.compiling import compile_and_report, composition_options
from higgsc.cli.words import count
from higgsc.compiler.compile import Compilation
from higgsc.compiler.composition.site import load_site
from higgsc.compiler.diagnostics import Diagnostic, Label, Sink
from higgsc.compiler.reading.source import Node
from higgsc.compiler.render.text import render_text
from higgsc.contract.outcome import ExitCode
from higgsc.emit.arrays import arrays
from higgsc.emit.build import builds_of
from higgsc.launch.built import BuiltResources
from higgsc.launch.secrets import exposed, way_out
from higgsc.launch.slurm.doctor import Finding, examine
from higgsc.launch.slurm.facts import ClusterFacts, ask_cluster

DOCTOR_SCHEMA = "higgsc.doctor/v1"
_CODES = {"error": "HC602", "warning": "HC603"}


@click.command("doctor")
@click.argument("spec", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@composition_options
def command(spec: Path | None, as_json: bool, site: str | None, overrides: tuple[str, ...]) -> None:
    """Compare a site with the cluster that this machine belongs to, and say what to do about the differences.

    With SPEC, its site and what its steps ask for; without, the site of --site alone."""
    values, resources, points, secrets, tree = _wanted(spec, site, overrides)
    cluster = ask_cluster()
    findings = [*examine(values, resources, cluster, tasks=points), *_exposed(secrets)]
    if as_json:
        click.echo(json.dumps(_document(findings, cluster, tree), indent=2, ensure_ascii=False))
    else:
        _show(findings, cluster, tree)
    if any(finding.severity == "error" for finding in findings):
        sys.exit(ExitCode.DIAGNOSTICS)


def _wanted(
    spec: Path | None, site: str | None, overrides: tuple[str, ...]
) -> tuple[dict[str, Any], list[BuiltResources], int, tuple[str, ...], Node]:
    """The site's values, what the steps ask for, the number of points, the names of secrets, and the tree that knows
    the places."""
    if spec is not None:
        compilation = compile_and_report(spec, site=site, overrides=overrides)
        if not compilation.compiled:
            sys.exit(ExitCode.DIAGNOSTICS)
        steps = [step for made in compilation.compiled for step in made.plan.steps]
        resources = [BuiltResources(**asdict(step.resources)) for step in steps]
        made = compilation.compiled[0]
        return made.ir.spec.site.model_dump(), resources, _tasks(compilation), made.plan.secrets, made.ir.tree
    if site is None or overrides:
        raise click.UsageError("name a spec, or a site with --site (and nothing else)")
    sink, folder = Sink(), Path("specs/sites") if Path("specs/sites").is_dir() else Path("sites")
    loaded = load_site(site, folder, Path.cwd(), sink)
    if loaded is None:
        click.echo(render_text(sink.diagnostics, cwd=Path.cwd(), colour=_colour()), err=True)
        sys.exit(ExitCode.DIAGNOSTICS)
    found, composed = loaded
    return found.model_dump(), [], 1, (), composed.tree


def _tasks(compilation: Compilation) -> int:
    """How many tasks the arrays of a sweep have; 1 where there are none."""
    builds = builds_of(compilation)
    return len(builds) if len(builds) > 1 and arrays(compilation.name, compilation.folder, builds) else 1


def _exposed(secrets: tuple[str, ...]) -> list[Finding]:
    """Files with secrets that others can read: the jobs refuse them."""
    return [
        Finding(
            severity="error",
            path="secrets",
            message=f"others can read or change {file}, which holds a secret",
            help=way_out([file]),
        )
        for file in exposed(secrets)
    ]


def _label(finding: Finding, tree: Node) -> Label | None:
    """The place of the value, or of the nearest one above it, in the spec or the site's file."""
    if finding.path is None:
        return None
    node, rest = tree.find(tuple(finding.path.split(".")))
    return Label(node.place if rest else node.span)


def _show(findings: list[Finding], cluster: ClusterFacts, tree: Node) -> None:
    sink, plain = Sink(), []
    for finding in findings:
        label = _label(finding, tree)
        if finding.severity in _CODES and label is not None:
            sink.add(Diagnostic(_CODES[finding.severity], finding.message, label, help=finding.help))
        else:
            plain.append(f"{finding.severity}: {finding.message}\n  = help: {finding.help}\n")
    if sink.diagnostics:
        click.echo(render_text(sink.diagnostics, cwd=Path.cwd(), colour=_colour()))
    click.echo("\n".join(plain), nl=bool(plain))
    names = {node.name for node in cluster.nodes}
    counts = [count(sum(f.severity == kind for f in findings), kind) for kind in ("error", "warning", "note")]
    place = f"{cluster.config.get('ClusterName', '?')}, Slurm {cluster.config.get('SLURM_VERSION', '?')}"
    click.echo(
        f"{place}, {count(len(cluster.partitions), 'partition')}, {count(len(names), 'node')}: {', '.join(counts)}"
    )


def _document(findings: list[Finding], cluster: ClusterFacts, tree: Node) -> dict[str, Any]:
    rows = []
    for finding in findings:
        label = _label(finding, tree)
        place = None if label is None else {"file": label.span.source.name, "line": label.span.line}
        rows.append({**asdict(finding), "place": place})
    return {
        "schema": DOCTOR_SCHEMA,
        "cluster": cluster.config.get("ClusterName"),
        "slurm": cluster.config.get("SLURM_VERSION"),
        "errors": sum(finding.severity == "error" for finding in findings),
        "findings": rows,
    }


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
