"""Tars of images (WebDataset shards): members are listed from their headers alone, and never unpacked to disk.

Consecutive members of one stem are a sample: an image and the .txt, .json or .cls beside it, which become columns.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from embedx.core.errors import CorpusError
from embedx.corpora.decode import IMAGE_SUFFIXES, MAX_FILE_BYTES
from embedx.corpora.folders import suffix_reason

MAX_HEADER_BYTES = 2**20
"""Long names and extended headers of a member: a name has 4 KiB at most, and tarfile reads them whole."""

MAX_COMPANION_BYTES = 2**20
"""A caption, a class or the metadata of one image."""

COMPANIONS = ("txt", "json", "cls")

HEAD_SAMPLES = 100
"""Samples read to learn which columns a tar has."""


@dataclass
class Sample:
    """An image of a tar.

    Attributes:
        name: of the member, without a leading `./`.
        offset: of its bytes in the tar.
        length: of its bytes.
        problem: why it must not be read; None if nothing is known against it.
        companions: extension -> (offset, length) of the small files of its stem.
    """

    name: str
    offset: int
    length: int
    problem: str | None
    companions: dict[str, tuple[int, int]] = field(default_factory=dict)


def iterate_samples(file: BinaryIO, place: str, ignored: Counter[str]) -> Iterator[Sample]:
    """Yield the images of a tar in its order.

    Args:
        file: the tar, at its beginning; seekable.
        place: what to call it.
        ignored: counts what is passed over, by suffix or reason.

    Raises:
        CorpusError: it is no tar, is compressed, damaged or cut off.
    """
    images: list[Sample] = []
    companions: dict[str, tuple[int, int]] = {}
    stem = None
    for member in _iterate_members(file, place, ignored):
        name = member.name
        folder, base = posixpath.split(name)
        member_stem = posixpath.join(folder, base.split(".", 1)[0])
        if member_stem != stem:
            yield from images
            stem, images, companions = member_stem, [], {}
        extension = posixpath.splitext(base)[1].lower()
        if base.startswith("."):
            ignored["hidden"] += 1
        elif extension in IMAGE_SUFFIXES:
            images.append(Sample(name, member.offset, member.size, _problem(member), companions))
        elif extension.removeprefix(".") in COMPANIONS:
            companions[extension.removeprefix(".")] = (member.offset, member.size)
        else:
            ignored[suffix_reason(extension, ignored)] += 1
    yield from images


def _problem(member: _Member) -> str | None:
    name = member.name
    if name.startswith("/") or ".." in name.split("/"):
        return f"the tar's member {name!r} leads out of the archive"
    if member.is_sparse:
        return f"the tar's member {name!r} is sparse"
    if member.size > MAX_FILE_BYTES:
        return f"the tar's member {name!r} has {member.size:,} bytes; more than {MAX_FILE_BYTES:,} are refused unread"
    return None


class _Member(NamedTuple):
    """A regular file of a tar: its name, where its bytes are, and where the next header is."""

    name: str
    offset: int
    size: int
    is_sparse: bool = False

    @property
    def next_header(self) -> int:
        return self.offset + -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _iterate_members(file: BinaryIO, place: str, ignored: Counter[str]) -> Iterator[_Member]:
    """Yield regular files; the others are counted: what a link or a device names is never looked at.

    Plain headers are read here, ten times as fast as tarfile does. Whatever else stands there is tarfile's to judge.
    """
    guarded = _Guarded(file, place)
    try:
        with tarfile.open(fileobj=guarded, mode="r:", errors="surrogateescape") as tar:  # type: ignore[call-overload]
            tar.firstmember, tar.offset = None, 0
            while True:
                while not tar.pax_headers and (plain := _read_plain(guarded, tar.offset)) is not None:
                    tar.offset = plain.next_header
                    yield plain
                guarded.seek(0)  # elsewhere: tarfile then looks whether the last member is whole
                member = tar.next()
                if member is None:
                    break
                tar.members = []  # else it keeps every header
                if member.isreg():
                    name = member.name.removeprefix("./")
                    yield _Member(name, member.offset_data, member.size, member.sparse is not None)
                elif not member.isdir():
                    ignored["link in a tar" if member.issym() or member.islnk() else "device in a tar"] += 1
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        raise CorpusError(f"{place} cannot be read ({_explain(guarded, error)})", "Fetch or write it again") from error
    _check_end(guarded, place, end, ignored)


_PLAIN = re.compile(rb"[^\0]{1,100}\0*")
_TIMES = re.compile(rb"(?:\d{1,3} (?:mtime|atime|ctime|uid|gid|uname|gname)=[^\n\0]*\n)+")
"""Records of an extended header that say nothing about the name and the bytes: WebDataset's writer adds the mtime."""


def _read_plain(file: _Guarded, offset: int) -> _Member | None:
    """Return the regular file whose header stands at an offset; None if it is anything but plain."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block[156:157] == b"x":
        size = _checked_size(block)
        if size is None or size > tarfile.BLOCKSIZE or not _are_times(file.read(tarfile.BLOCKSIZE)[:size]):
            return None
        offset += 2 * tarfile.BLOCKSIZE
        block = file.read(tarfile.BLOCKSIZE)
    size = _checked_size(block)
    # An old header with a slash at its end is a folder; one with a prefix has a part of the name there.
    if size is None or block[156] not in b"0\0" or block[345] or not _PLAIN.fullmatch(block, 0, 100):
        return None
    name = block[:100].rstrip(b"\0").decode("utf-8", "surrogateescape")
    return None if name.endswith("/") else _Member(name.removeprefix("./"), offset + tarfile.BLOCKSIZE, size)


def _checked_size(block: bytes) -> int | None:
    """Return the size that a header says; None if it is damaged or written otherwise than as plain octal digits."""
    size, checksum = block[124:136].rstrip(b" \0"), block[148:156].strip(b" \0")
    if len(block) != tarfile.BLOCKSIZE or not size.isdigit() or not checksum.isdigit():
        return None
    try:
        is_sound = int(checksum, 8) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
        return int(size, 8) if is_sound else None
    except ValueError:  # an 8 or 9
        return None


def _are_times(records: bytes) -> bool:
    """Whether the records of an extended header are of kinds that may be passed over, and as long as they say."""
    lines = records.splitlines(keepends=True) if _TIMES.fullmatch(records) else []
    return bool(lines) and all(int(line.partition(b" ")[0]) == len(line) for line in lines)


def _check_end(file: _Guarded, place: str, end: int, ignored: Counter[str]) -> None:
    """Judge what stands where tarfile stopped: it ends silently at damage, and at the first of several archives."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        ignored["tar without an end mark"] += 1
    elif block != tarfile.NUL * tarfile.BLOCKSIZE:
        raise CorpusError(f"{place} is damaged or cut off at byte {end:,}", "Fetch or write it again")
    while rest := file.read(MAX_HEADER_BYTES):
        if rest.strip(tarfile.NUL):
            raise CorpusError(
                f"{place} has more behind its end at byte {end:,}", "Several tars in one file: split them again"
            )


def _explain(file: _Guarded, error: Exception) -> str:
    file.seek(0)
    magic = file.read(6)
    for head, what in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")):
        if magic.startswith(head):
            return f"it is compressed with {what}: members are read by offset, so unpack it to a plain .tar"
    return " ".join(str(error).split())[:200] or type(error).__name__


class _Guarded:
    """A file of which tarfile reads headers only; a header that claims to be gigabytes is refused unread."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._file = file
        self._place = place

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise CorpusError(f"{self._place} has a member header of {size:,} bytes", "It is damaged or hostile")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def companion_values(file: BinaryIO, sample: Sample, wanted: set[str]) -> dict[str, Any]:
    """Read the columns that a sample's companions hold: `txt`, `cls`, `json` and the keys of its JSON object.

    Args:
        file: the tar.
        sample: of it.
        wanted: names of columns; only the companions that may have them are read.

    Returns:
        The values that are there. What is no UTF-8 or no JSON stands there as text with lone surrogates or is
        missing, for the caller to judge.
    """
    values: dict[str, Any] = {}
    for extension in ("txt", "cls"):
        if extension in wanted and extension in sample.companions:
            values[extension] = _read(file, sample.companions[extension]).strip()
    if "json" in sample.companions and wanted - {"txt", "cls", "label", "path"}:
        text = _read(file, sample.companions["json"])
        values["json"] = text.strip()
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            values = {**parsed, **values}
    return values


def _read(file: BinaryIO, span: tuple[int, int]) -> str:
    offset, length = span
    position = file.tell()
    file.seek(offset)
    data = file.read(min(length, MAX_COMPANION_BYTES))
    file.seek(position)
    return data.decode("utf-8", "surrogateescape")


def head_columns(file: BinaryIO, place: str) -> dict[str, str]:
    """Return the columns that the first samples of a tar have, all of type `string`.

    Raises:
        CorpusError: as `iterate_samples`.
    """
    names: dict[str, str] = {}
    for number, sample in enumerate(iterate_samples(file, place, Counter())):
        names |= dict.fromkeys(sample.companions, "string")
        names |= dict.fromkeys(companion_values(file, sample, {"*"}), "string")
        if number + 1 >= HEAD_SAMPLES:
            break
    return {name: kind for name, kind in names.items() if name}


def label_of(sample: Sample, values: dict[str, Any]) -> str | None:
    """Return the label of an image: its .cls, else the first folder of its name."""
    if "cls" in values:
        return str(values["cls"])
    return sample.name.split("/", 1)[0] if "/" in sample.name else None
