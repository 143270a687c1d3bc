"""Where artefacts lie, as the command line takes it: paths and URLs, with the options that reach them."""

from __future__ import annotations

from typing import Annotated

import typer

from embedx.core.places import Access, Place, parse_place, parse_storage_option

StorageOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        help="NAME=VALUE for s3://, gs://, az://; repeatable; never logged.",
        rich_help_panel="Object stores",
        show_default=False,
    ),
]


def access_of(options: list[str] | None) -> Access:
    """Read `--storage-option` flags."""
    return Access(tuple(map(parse_storage_option, options or ())))


def place(text: str, options: list[str] | None) -> Place:
    """Read a path or URL."""
    return parse_place(text, access_of(options))
