"""Digests of weights files, remembered by the file's size and time so that a start costs no hashing."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

from embedx.core.digests import stat_token
from embedx.core.errors import EncoderError
from embedx.core.paths import cached_json, remember_json


@dataclass(frozen=True)
class WeightsFacts:
    """What is known of a set of tensors without building the model.

    Attributes:
        digest: sha256 over names, dtypes, shapes and bytes.
        shapes: name -> shape.
    """

    digest: str
    shapes: dict[str, list[int]]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def flops_per_token(self) -> float:
        """Two operations per weight that every token passes: all but the embedding tables."""
        tables = re.compile(r"embed|wte\.|wpe\.|shared\.|pooler", re.IGNORECASE)
        inner = [shape for name, shape in self.shapes.items() if not tables.search(name)]
        return 2.0 * sum(math.prod(shape) for shape in inner)


def safetensors_facts(paths: list[Path], ignored: tuple[str, ...] = ()) -> WeightsFacts:
    """Return the digest and shapes of the tensors in one or more safetensors files.

    Args:
        paths: the files.
        ignored: beginnings of the names of tensors that the model does not read.

    Raises:
        EncoderError: a file is damaged.
    """
    key = ["safetensors", 2, [[str(path.resolve()), stat_token(path)] for path in paths], ignored]
    if known := cached_json("weights", key):
        return WeightsFacts(**known)
    shapes: dict[str, list[int]] = {}
    digests: list[tuple[str, str]] = []
    for path in paths:
        try:
            digests += _hash_file(path, shapes, ignored)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EncoderError(f"{path} is not a whole safetensors file ({error})", "Fetch the file again") from error
    whole = hashlib.sha256("".join(f"{name}={digest};" for name, digest in sorted(digests)).encode())
    facts = WeightsFacts(whole.hexdigest(), shapes)
    remember_json("weights", key, {"digest": facts.digest, "shapes": facts.shapes})
    return facts


def _hash_file(path: Path, shapes: dict[str, list[int]], ignored: tuple[str, ...]) -> list[tuple[str, str]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        length = int.from_bytes(data[:8], "little")
        if length > min(len(data) - 8, 100 * 2**20):
            raise ValueError("its header is longer than the file")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        found = []
        for name, entry in header.items():
            if name.startswith(ignored):
                continue
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            if not 0 <= start <= stop <= len(data):
                raise ValueError(f"tensor {name} lies outside the file")
            with memoryview(data) as view:
                digest = hashlib.sha256(f"{entry['dtype']}|{entry['shape']}|".encode())
                digest.update(view[start:stop])
            found.append((name, digest.hexdigest()))
            shapes[name] = list(entry["shape"])
        return found


def cached_file_sha256(path: Path) -> str:
    """Return a file's sha256, remembered by its size and time."""
    from embedx.core.digests import file_sha256

    key = ["sha256", str(path.resolve()), stat_token(path)]
    known = cached_json("weights", key)
    if known is None:
        known = file_sha256(path)
        remember_json("weights", key, known)
    return str(known)
