"""Places: a local path, or the URL of a prefix or object in an object store together with how it is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from embedx.core.errors import UsageError

OBJECT_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""Scheme of a URL -> which object store it is of."""

_URL = re.compile(r"^([a-z][a-z0-9+.-]*):/(/?)", re.IGNORECASE)


@dataclass(frozen=True, repr=False)
class Access:
    """How places outside this machine are reached. It travels to workers, and never into a plan, log or report.

    Attributes:
        options: of the file system (`--storage-option`), in the words of its fsspec library: `key`, `secret`, ...
        allow_private_networks: fetch the URLs of a corpus from addresses that are not public, too.
        hosts: folder in which the workers of a run share their connections to web servers; none is for one process.
    """

    options: tuple[tuple[str, str], ...] = ()
    allow_private_networks: bool = False
    hosts: str = ""

    def __repr__(self) -> str:
        # Tasks are printed with their arguments, by schedulers and in tracebacks: names only, no values.
        return f"Access({', '.join(name for name, _ in self.options)})"

    def hide(self, text: str) -> str:
        """Return a message without the values of the options, which some libraries repeat in theirs."""
        for _, value in sorted(self.options, key=lambda option: -len(option[1])):
            if len(value) > 3 and value.lower() != "true":
                text = text.replace(value, "***")
        return text


NO_ACCESS = Access()
"""Nothing outside this machine needs options."""


def parse_storage_option(text: str) -> tuple[str, str]:
    """Read `NAME=VALUE`.

    Raises:
        UsageError: it is none; the message does not repeat it, for it may be a secret.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value:
        raise UsageError("a --storage-option is not of the form NAME=VALUE", "Pass e.g. endpoint_url=https://HOST")
    return name.strip(), value


@dataclass(frozen=True)
class Url:
    """A prefix or an object of an object store. It prints as its text, and never shows how it is reached.

    Attributes:
        text: scheme, bucket and key, without a slash at the end.
        access: credentials and options.
    """

    text: str
    access: Access = NO_ACCESS

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text}/{name}", self.access)

    @property
    def scheme(self) -> str:
        """The object store's kind: s3, gs or az."""
        return OBJECT_SCHEMES[self.text.partition("://")[0].lower()]

    @property
    def bucket(self) -> str:
        """The bucket or container."""
        return self.text.partition("://")[2].partition("/")[0]

    @property
    def key(self) -> str:
        """What follows the bucket; empty for the bucket itself."""
        return self.text.partition("://")[2].partition("/")[2]

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> Url:
        """What it lies in; the bucket is its own parent."""
        return Url(self.text.rpartition("/")[0], self.access) if self.key else self


Place = Path | Url
"""Where an artefact lies."""


def parse_place(text: str | Path | Url, access: Access = NO_ACCESS) -> Place:
    """Understand a path or URL.

    Args:
        text: what the user gave.
        access: how object stores are reached.

    Raises:
        UsageError: a URL of another kind, or one that names no bucket or holds a password.
    """
    if isinstance(text, Url):
        return text
    match = _URL.match(str(text))
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), str(text)[match.end() :]
    if not match[2]:
        if isinstance(text, str) or scheme not in OBJECT_SCHEMES:
            return Path(text)
        raise UsageError(f"the path {text} was a URL, of which pathlib has dropped a slash", "Pass it as a str")
    if scheme == "file":
        return Path("/" + rest.lstrip("/"))
    if scheme not in OBJECT_SCHEMES:
        raise UsageError(
            f"{scheme}:// is no place for a store, index or head",
            "Pass a local path, or a URL of s3://, gs:// or az://",
        )
    parts = rest.rstrip("/").split("/")
    if not parts[0]:
        raise UsageError(f"{text} names no bucket", f"Pass e.g. {scheme}://bucket/store")
    if "@" in parts[0] and (":" in parts[0] or scheme != "abfss"):
        raise UsageError(
            f"a {scheme}:// URL holds a name or password before its bucket",
            "Pass credentials by the environment or --storage-option",
        )
    if any(part in ("", ".", "..") for part in parts) or "?" in rest or "#" in rest:
        raise UsageError(f"{text} has an empty part, '.', '..', '?' or '#'", "Pass a plain URL")
    return Url(f"{scheme}://{'/'.join(parts)}", access)


def absolute(place: Place) -> str:
    """Return a place as text that means the same in every working directory."""
    return str(place.resolve()) if isinstance(place, Path) else str(place)
