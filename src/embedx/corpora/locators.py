"""Locators: where the bytes of an item are, as one string of a plan.

/data/photos/cat.jpg                      a file
s3://bucket/photos/cat.jpg                an object; also gs://, az://, hf:// and http(s)://
tar:1536:20480:/data/shards/00000.tar     bytes of a file: a member of a tar, by offset and length
parquet:17:image:/data/part-0.parquet     a cell of a table: row 17 of the column `image`
arrow:17:image:/data/part-0.arrow         the same of an Arrow file
plugin:zip%3A/data/a.zip:cats/1.jpg       what the plug-in `zip` reads by the key cats/1.jpg from the place /data/a.zip
inline                                    the content stands in the plan itself (texts)
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

REMOTE = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https"))
"""URL schemes that are read. Not all of fsspec's: some run commands on other machines or read what a URL says."""


@dataclass(frozen=True)
class Locator:
    """Where bytes are.

    Attributes:
        kind: file, tar, parquet, arrow or plugin.
        place: the path or URL of the file; of a plug-in NAME:PLACE.
        offset: of a tar's member, in bytes.
        length: of a tar's member, in bytes.
        row: of a table, from 0.
        column: of a table.
        key: of a plug-in.
    """

    kind: str
    place: str
    offset: int = 0
    length: int = 0
    row: int = 0
    column: str = ""
    key: str = ""

    def __str__(self) -> str:
        if self.kind == "tar":
            return f"tar:{self.offset}:{self.length}:{self.place}"
        if self.kind in ("parquet", "arrow"):
            return f"{self.kind}:{self.row}:{quote(self.column, safe='')}:{self.place}"
        if self.kind == "plugin":
            return f"plugin:{quote(self.place)}:{self.key}"
        return self.place


def parse_locator(text: str) -> Locator:
    """Read a locator; whatever has no known form is the path of a file."""
    kind, _, rest = text.partition(":")
    if kind == "plugin":
        place, _, key = rest.partition(":")
        return Locator("plugin", unquote(place), key=key)
    if kind in ("tar", "parquet", "arrow"):
        first, _, rest = rest.partition(":")
        second, _, place = rest.partition(":")
        if kind == "tar":
            return Locator("tar", place, offset=int(first), length=int(second))
        return Locator(kind, place, row=int(first), column=unquote(second))
    return Locator("file", text)


def scheme_of(place: str) -> str:
    """Return the scheme of a URL in lower case; empty for a path."""
    scheme, mark, _ = place.partition("://")
    return scheme.lower() if mark and scheme.replace("+", "").isalnum() else ""


def is_remote(place: str) -> bool:
    """Whether a place is a URL of a kind that is read."""
    return scheme_of(place) in REMOTE


def url_path(place: str) -> str:
    """Return a place without the query of a URL, so that it ends as the name of the file does."""
    return place.partition("?")[0] if scheme_of(place) in ("http", "https") else place


def url_problem(url: str) -> str | None:
    """Return why a URL is not read, or None if it is."""
    if scheme_of(url) not in REMOTE:
        return f"URLs that begin with {scheme_of(url)[:20]}:// are not read; known are {', '.join(sorted(REMOTE))}"
    if "::" in url.partition("://")[2]:
        return "a chain of URLs (::) is not read"
    try:
        parts = urlsplit(url)
        if not parts.netloc or (parts.scheme.lower() in ("http", "https") and not parts.hostname):
            return "the URL names no host or bucket"
        if parts.password is not None or (parts.username and parts.scheme.lower() in ("http", "https")):
            return "the URL holds a user name or password, which would stand in plans and logs"
    except ValueError as error:
        return f"it is no URL: {error}"
    return None
