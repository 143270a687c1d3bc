"""Entry point of the `embedx` command: registers the commands and turns errors into exit statuses."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from embedx.cli import output
from embedx.core.errors import EmbedxError

app = typer.Typer(
    name="embedx",
    help="Frozen encoders over large corpora: extract vectors, index and search them, fit heads on top.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

UsageProblem: type[typer.BadParameter] = typer.BadParameter.__bases__[0]  # type: ignore[assignment]
"""The parser's own usage error; typer exports only its subclass."""


def register_commands() -> None:
    """Attach every command; each lives in the module of its name."""
    from embedx.cli import (
        conformance,
        encoders,
        evaluate,
        extract,
        fit_head,
        index,
        inspection,
        job,
        maintenance,
        predict,
        search,
    )

    commands = (extract, index, search, fit_head, evaluate, predict, encoders, conformance)
    for module in (*commands, inspection, maintenance, job):
        module.register(app)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    register_commands()
    try:
        status = app(args=arguments, standalone_mode=False)
    except EmbedxError as error:
        status = output.show_error(error.message, error.remedy, error.exit_code, as_json="--json" in arguments)
    except UsageProblem as error:
        message = error.format_message().rstrip(".")
        status = output.show_error(message, "See embedx --help", 2, as_json="--json" in arguments)
    except (typer.Abort, KeyboardInterrupt):
        status = output.show_error("interrupted", "", 130, as_json="--json" in arguments)
    except BrokenPipeError:
        status = 1
    except OSError as error:
        # Full disks, lost permissions, names that are too long: wherever they strike, one line says so.
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror or error}"
        status = output.show_error(message, "Mend the cause and run the same command", 1, as_json="--json" in arguments)
    sys.exit(status if isinstance(status, int) else 0)
