"""`embedx run`: the steps of a job file, one after the other."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer

from embedx.cli import output
from embedx.core.errors import EmbedxError, UsageError

EPILOG = """Example: a job file

[[step]]
use = "extract"
sources = ["news.jsonl"]
encoder = "minilm"
out = "store"

[[step]]
use = "index"
store = "store"
out = "index"

embedx run jobs/news.toml"""

STEPS = ("extract", "index", "search", "fit-head", "evaluate", "predict", "verify")


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("run", epilog=EPILOG)(run)


def run(
    context: typer.Context,
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file; its paths are relative to here.")],
    as_json: output.AsJson = False,
) -> int:
    """Run the steps of a job file in order; the first that fails ends it with its exit status.

    A step's keys are the long flags of its command. Flags given in EMBEDX_* variables win over the file.
    """
    steps = read_job(job)
    reports = []
    group: Any = context.find_root().command
    for number, step in enumerate(steps, 1):
        name = step.pop("use")
        arguments, defaults = to_arguments(group.commands[name], step, f"{job} step {number} ({name})")
        captured = StringIO()
        with redirect_stdout(captured):
            try:
                status = group.main(
                    args=[name, *arguments, "--json"],
                    prog_name="embedx",
                    standalone_mode=False,
                    default_map={name: defaults},
                )
            except EmbedxError as error:
                error.message = f"step {number} ({name}): {error.message}"
                raise
        report = json.loads(captured.getvalue())
        reports.append({"use": name, "report": report})
        if status:
            output.show_report(
                {"job": str(job), "steps": reports}, as_json, [f"step {number} ({name}) ended with {status}"]
            )
            return int(status)
        if not as_json:
            output.show_report({}, False, [f"{number}/{len(steps)} {name}: {summarise(report)}"])
    if as_json:
        output.show_report({"job": str(job), "steps": reports}, True, [])
    return 0


def read_job(path: Path) -> list[dict[str, Any]]:
    """Read and check a job file.

    Raises:
        UsageError: it is missing, broken, or names a step nobody knows.
    """
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"job file {path} does not exist", "Check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"job file {path} cannot be read ({error})", "Mend the file") from None
    steps = data.pop("step", None)
    if data:
        raise UsageError(f"{path}: unknown key {next(iter(data))!r}", "A job file holds [[step]] tables only")
    if not isinstance(steps, list) or not steps:
        raise UsageError(f"{path} has no steps", 'Add a [[step]] table with use = "extract"')
    for number, step in enumerate(steps, 1):
        use = step.get("use") if isinstance(step, dict) else step
        if not isinstance(step, dict) or use not in STEPS:
            raise UsageError(f"{path} step {number}: unknown use {use!r}", f"Steps: {', '.join(STEPS)}")
    return steps


def to_arguments(command: Any, step: dict[str, Any], where: str) -> tuple[list[str], dict[str, Any]]:
    """Split a step's keys into positional arguments and the defaults of its flags.

    As defaults, flags lose to environment variables, and a key the command does not know is found here.

    Raises:
        UsageError: an unknown key.
    """
    flags = {_flag_key(parameter): parameter for parameter in command.params if parameter.param_type_name == "option"}
    positional = {parameter.name: parameter for parameter in command.params if parameter.param_type_name == "argument"}
    arguments: list[str] = []
    defaults: dict[str, Any] = {}
    for key, value in step.items():
        if key in positional:
            arguments += [str(item) for item in (value if isinstance(value, list) else [value])]
        elif key in flags and key != "json":
            is_list = isinstance(value, list)
            if flags[key].multiple:
                defaults[flags[key].name] = [str(item) for item in (value if is_list else [value])]
            else:
                defaults[flags[key].name] = ",".join(map(str, value)) if is_list else value
        else:
            known = [*positional, *(name for name in flags if name not in ("json", "help"))]
            raise UsageError(f"{where}: unknown key {key!r}", f"Known keys: {', '.join(known)}")
    return arguments, defaults


def _flag_key(parameter: Any) -> str:
    longest = max(parameter.opts, key=len)
    return str(longest).lstrip("-")


def summarise(report: dict[str, Any]) -> str:
    """Return one line on a step's report."""
    return ", ".join(_figures(report)) or "done"


def _figures(report: dict[str, Any]) -> Iterator[str]:
    for key in ("out", "index", "head", "version", "count", "n"):
        if report.get(key) is not None:
            yield f"{key} {report[key]}"
    for key, value in (report.get("items") or {}).items():
        if value and key in ("embedded", "failed", "unchanged", "updated", "removed"):
            yield f"{value:,} {key}"
    for key in ("accuracy", "macro_f1"):
        if key in (report.get("metrics") or {}):
            yield f"{key} {report['metrics'][key]:.4f}"
    if isinstance(report.get("recall"), dict):
        yield f"recall {report['recall'].get('value')}"
    if "ok" in report:
        yield "ok" if report["ok"] else "NOT ok"
