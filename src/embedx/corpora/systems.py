"""File systems of other machines: fsspec's, and what of an object store's own calls they do not show.

What is added: reading a range only if the object is still the same (S3), and listing in pages, for fsspec's `find` and
`ls` hold all that they find (S3, Google Cloud Storage).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from embedx.core.errors import CorpusError
from embedx.core.specs import Access
from embedx.corpora.locators import scheme_of
from embedx.corpora.web import WebFiles

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
"""Scheme -> the extra of embedx that brings its library."""

S3 = ("s3", "s3a")
GOOGLE = ("gs", "gcs")
WEB = ("http", "https")

TIMEOUTS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}}}


@functools.lru_cache(maxsize=32)
def open_system(scheme: str, access: Access) -> Any:
    """Return the file system of a scheme.

    Raises:
        CorpusError: its library is not installed, or does not take the options.
    """
    options = {name: _option(value) for name, value in access.options}
    if scheme in WEB:
        from embedx.corpora.http import shared_fetcher

        headers = options.get("headers", {})
        if not isinstance(headers, dict):
            raise CorpusError("the --storage-option headers is no JSON object", 'Pass headers={"NAME": "VALUE"}')
        # Whoever names a web server as a source means it, also on a private network.
        return WebFiles(shared_fetcher(access, allow_private=True), {str(k): str(v) for k, v in headers.items()})
    import fsspec

    # Without its cache of listings a prefix is listed when it is asked for, and what has changed is seen.
    options = {**TIMEOUTS.get(scheme.removesuffix("a"), {}), "use_listings_cache": False, **options}
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        extra = f"pip install 'embedx[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "Install what the message names"
        raise CorpusError(f"{scheme}:// needs a library that is not installed ({error})", extra) from None
    except (TypeError, ValueError) as error:
        raise CorpusError(
            f"the file system of {scheme}:// does not take these options ({access.hide(str(error))})",
            "Check the --storage-option flags",
        ) from None


def _option(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def read_s3_range(system: Any, place: str, start: int, stop: int, tag: str) -> bytes:
    """Return some bytes of an S3 object, if it still has a tag; else S3 answers with an error."""
    from fsspec.asyn import sync

    bucket, key, _ = system.split_path(place)
    wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{stop - 1}", **system.req_kw}
    body = system.call_s3("get_object", IfMatch=f'"{tag}"', **wanted)["Body"]
    try:
        data: bytes = sync(system.loop, body.read)
        return data
    finally:
        body.close()


def iterate_files(system: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (URL, what its file system says) of the files below a prefix, in the order of their names.

    In flat memory on S3 and Google Cloud Storage, whose listings come in pages; elsewhere a folder at a time.
    """
    scheme = scheme_of(prefix)
    if scheme in S3:
        found = _iterate_s3(system, prefix)
    elif scheme in GOOGLE:
        found = _iterate_google(system, prefix)
    else:
        found = _iterate_folders(system, prefix)
    for name, info in found:
        if not name.endswith("/"):  # else it is a mark that stands for a folder
            yield f"{scheme}://{name}", info


def _iterate_s3(system: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    bucket, key, _ = system.split_path(prefix.rstrip("/") + "/")
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": key, **system.req_kw}
    while True:
        page = system.call_s3("list_objects_v2", **asked)
        for entry in page.get("Contents", ()):
            yield f"{bucket}/{entry['Key']}", {"size": entry["Size"], "ETag": entry["ETag"]}
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _iterate_google(system: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    bucket, _, key = prefix.partition("://")[2].rstrip("/").partition("/")
    asked: dict[str, Any] = {"prefix": f"{key}/" if key else "", "maxResults": 1000}
    while True:
        page = system.call("GET", "b/{}/o", bucket, json_out=True, **asked)
        for entry in page.get("items", ()):
            yield f"{bucket}/{entry['name']}", entry
        if not page.get("nextPageToken"):
            return
        asked["pageToken"] = page["nextPageToken"]


def _iterate_folders(system: Any, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    stack = [prefix.partition("://")[2].rstrip("/")]
    while stack:
        folder = stack.pop()
        folders = []
        for entry in sorted(system.ls(folder, detail=True), key=lambda entry: entry["name"]):
            name = entry["name"].partition("://")[2] or entry["name"]
            if entry.get("type") == "directory":
                if name.rstrip("/") != folder:
                    folders.append(name.rstrip("/"))
            else:
                yield name, entry
        stack.extend(reversed(folders))
