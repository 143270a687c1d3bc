"""Expansion: what a user names, with patterns, lists and folders of shards, becomes one place per source."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from embedx.core.errors import CorpusError, UsageError
from embedx.corpora.decode import IMAGE_SUFFIXES
from embedx.corpora.folders import iterate_images
from embedx.corpora.locators import is_remote, scheme_of, url_path, url_problem
from embedx.corpora.plugins import is_plugin_place, plugin_modules
from embedx.corpora.prefixes import Prefix
from embedx.corpora.storage import Storage
from embedx.corpora.tables import table_format
from embedx.corpora.values import printable, unicode_problem

MAX_EXPANDED = 100_000
"""Sources of one pattern: a typing error in it must not fill the memory."""

STATS = "_stats.json"
"""How img2dataset's account of a shard ends."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Place:
    """One source before it is opened.

    Attributes:
        label: its name.
        path: its path or URL.
        files: of a remote folder of images, what is below it; None for anything else.
        ignored: files beside it that are no part of the corpus: reason -> count.
    """

    label: str
    path: str
    files: Prefix | None = None
    ignored: Counter[str] = field(default_factory=Counter)


def expand_sources(texts: Sequence[str], storage: Storage) -> Iterator[Place]:
    """Yield the places that the sources of a command line name, in their order.

    Raises:
        CorpusError: a place does not exist, or cannot be looked into.
        UsageError: a pattern or list makes no sense.
    """
    for text in _read_lists(texts):
        alias, path = _alias_and_path(text)
        paths = list(expand_pattern(path))
        for one in paths:
            if is_remote(one):
                label = _label(alias, one, len(paths) > 1)
                yield from _remote_places(label, one, alias is None, storage)
            elif is_plugin_place(one):
                yield Place(_label(alias, one.partition(":")[2], len(paths) > 1), one)
            else:
                _check_path(one)
                local = os.path.expanduser(one)
                yield from _local_places(_label(alias, os.path.realpath(local), len(paths) > 1), local)


def expand_pattern(path: str) -> Iterator[str]:
    """Yield what a pattern stands for: `{000..099}` counts, `{a,b}` lists; a path that exists is no pattern.

    Raises:
        UsageError: it stands for more than `MAX_EXPANDED` names, or counts backwards.
    """
    if not ("{" in path and "}" in path) or os.path.exists(path):
        yield path
        return
    expanded = [path]
    while any(_RANGE.search(name) or _CHOICE.search(name) for name in expanded):
        longer: list[str] = []
        for name in expanded:
            longer.extend(_expand_once(path, name))
            if len(longer) > MAX_EXPANDED:
                raise UsageError(f"the pattern {path} stands for more than {MAX_EXPANDED:,} names", "Narrow it")
        expanded = longer
    yield from expanded


def _expand_once(path: str, name: str) -> Iterator[str]:
    if found := _RANGE.search(name):
        first, last = found.groups()
        if int(first) > int(last):
            raise UsageError(f"the pattern {path} counts from {first} to {last}", "Give the smaller number first")
        if int(last) - int(first) >= MAX_EXPANDED:
            raise UsageError(f"the pattern {path} stands for more than {MAX_EXPANDED:,} names", "Narrow it")
        for number in range(int(first), int(last) + 1):
            yield f"{name[: found.start()]}{number:0{len(first)}d}{name[found.end() :]}"
    elif found := _CHOICE.search(name):
        for choice in found[1].split(","):
            yield name[: found.start()] + choice + name[found.end() :]
    else:
        yield name


def _read_lists(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        if not text.startswith("@") or os.path.exists(text):
            yield text
            continue
        path = Path(text[1:]).expanduser()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CorpusError(f"the list of sources {path} cannot be read ({reason})", "Check the path") from None
        listed = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not listed:
            raise CorpusError(f"the list of sources {path} is empty", "Give one source per line")
        yield from listed


def _alias_and_path(text: str) -> tuple[str | None, str]:
    if not text or "\0" in text:
        raise CorpusError(f"the source {text!r} is no path", "Name a folder of images, a tar or a table")
    alias, _, rest = text.partition("=")
    if alias and rest and not set("/:{") & set(alias) and not os.path.exists(text):
        return alias, rest
    return None, text


def _label(alias: str | None, path: str, is_one_of_many: bool) -> str:
    name = posixpath.basename(url_path(path).rstrip("/")) or url_path(path)
    if alias is None:
        return name
    return f"{alias}/{name}" if is_one_of_many else alias


def _check_path(path: str) -> None:
    if scheme_of(path):
        raise CorpusError(f"source {printable(path)}: {url_problem(path)}", "Fetch it first, or mount it")
    if wrong := unicode_problem("its name", os.path.abspath(path)):
        raise CorpusError(f"source {printable(path)} cannot be recorded: {wrong}", "Rename it, or a folder above")
    if not os.path.exists(os.path.expanduser(path)):  # not Path.exists, which raises on names that are too long
        added = [f"{name}:" for name in plugin_modules()]
        hint = f"; packages add {', '.join(added)}" if added else ""
        raise CorpusError(f"source {path} does not exist", f"Check the path{hint}")


# -- folders -------------------------------------------------------------------------------------------------------


def _local_places(label: str, path: str) -> Iterator[Place]:
    if not os.path.isdir(path):
        yield Place(label, path)
        return
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise CorpusError(f"cannot list {path}: {error.strerror}", "Check its permissions") from error
    if "dataset_dict.json" in names:
        for split in _json(path, "dataset_dict.json").get("splits", []):
            yield from _dataset_places(f"{label}/{split}", os.path.join(path, str(split)))
    elif "dataset_info.json" in names and any(name.endswith(".arrow") for name in names):
        yield from _dataset_places(label, path)
    else:
        shards = [name for name in names if is_shard(name)]
        if shards and next(iterate_images(Path(path), Counter()), None) is None:
            files = [name for name in names if os.path.isfile(os.path.join(path, name))]
            others = Counter(_reason(name) for name in files if not is_shard(name))
            yield from _shard_places(label, [os.path.join(path, name) for name in files if is_shard(name)], others)
        else:
            yield Place(label, path)


def _dataset_places(label: str, path: str) -> Iterator[Place]:
    """Yield the Arrow files of a dataset that Hugging Face's library saved, in the order its state gives."""
    state = _json(path, "state.json") if os.path.exists(os.path.join(path, "state.json")) else {}
    if state.get("_indices_data_files"):
        raise CorpusError(f"{path} is a selection of rows of a dataset", "Save it with flatten_indices() first")
    try:
        names = [str(file["filename"]) for file in state.get("_data_files") or []]
    except (TypeError, KeyError):
        raise CorpusError(f"{path}/state.json names no data files", "Save the dataset again") from None
    names = names or sorted(name for name in os.listdir(path) if name.endswith(".arrow"))
    for name in names:
        if os.path.basename(name) != name:
            raise CorpusError(f"{path}/state.json names the data file {name!r}", "A dataset's files lie in its folder")
        if not os.path.isfile(os.path.join(path, name)):
            raise CorpusError(f"{path} lacks its data file {name}", "Copy the dataset again")
        yield Place(f"{label}/{name}", os.path.join(path, name))


def _json(folder: str, name: str) -> dict:
    try:
        value = json.loads(Path(folder, name).read_text())
    except (OSError, ValueError) as error:
        raise CorpusError(f"{folder}/{name} cannot be read ({error})", "Save the dataset again") from None
    if not isinstance(value, dict):
        raise CorpusError(f"{folder}/{name} is no JSON object", "Save the dataset again")
    return value


def is_shard(name: str) -> bool:
    """Whether a file of a folder is a part of a corpus by itself: a tar, or a table other than a .txt."""
    if name.startswith((".", "_")):
        return False
    return name.lower().endswith(".tar") or table_format(name) not in (None, "txt", "arrow")


def _shard_places(label: str, shards: list[str], others: Counter[str]) -> Iterator[Place]:
    """Yield tars, else tables. Tables beside tars are img2dataset's account of them, and not the corpus."""
    tars = [path for path in shards if path.lower().endswith(".tar")]
    chosen = tars or shards
    ignored = Counter({reason: count for reason, count in others.items() if reason != STATS})
    if tables := len(shards) - len(chosen):
        ignored["beside a tar"] += tables
    if others[STATS]:
        ignored["beside a tar" if tars else ".json"] += others[STATS]
    for number, path in enumerate(chosen):
        yield Place(f"{label}/{posixpath.basename(path)}", path, ignored=ignored if number == 0 else Counter())


def _reason(path: str) -> str:
    """Return under which name a file that is no part of a corpus is counted."""
    return STATS if path.endswith(STATS) else posixpath.splitext(path)[1].lower() or "no suffix"


def _remote_places(label: str, url: str, is_derived: bool, storage: Storage) -> Iterator[Place]:
    if problem := url_problem(url):
        shown = url.partition("@")[2] or url
        raise CorpusError(f"the source {shown[:200]}: {problem}", "Check the URL; credentials go to the environment")
    if not storage.is_folder(url):
        yield Place(label, url)
        return
    files = Prefix(partial(storage.find, url))
    # Until the first image: it makes the prefix a folder of images, whose files are listed when its items are.
    if any(_is_image(file.place) for file in files.head):
        yield Place(label, url.rstrip("/"), files)
        return
    shards: list[str] = []
    others: Counter[str] = Counter()
    for file in files:
        if _is_image(file.place):
            yield Place(label, url.rstrip("/"), files)
            return
        if is_shard(posixpath.basename(file.place)):
            shards.append(file.place)
        else:
            others[_reason(file.place)] += 1
    if not shards:
        raise CorpusError(f"{url} has no images, tars or tables ({others.total():,} other files)", "Check the prefix")
    yield from _shard_places(label, shards, others)


def _is_image(place: str) -> bool:
    return posixpath.splitext(place)[1].lower() in IMAGE_SUFFIXES
