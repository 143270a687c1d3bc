"""Build a real corpus that every machine has: the docstrings of the installed Python packages.

    python jobs/docstrings.py OUT_FOLDER [--per-package 300]

Writes train.jsonl and heldout.jsonl with the columns id, text, package and name. Nothing is imported: the sources are
parsed. A docstring that occurs twice is taken once, and what is held out is chosen by a hash of the id, so that
running it again gives the same files.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "dask", "distributed", "duckdb", "fsspec", "jinja2", "networkx", "numpy", "openvino", "PIL", "pip", "pyarrow",
    "pydantic", "rich", "scipy", "skops", "sklearn", "sympy", "timm", "torch", "torchvision", "tornado", "transformers",
)  # fmt: skip
"""All of them come with embedx; those that are missing are left out."""

MIN_CHARACTERS = 60
HELD_OUT_SHARE = 0.2


def iterate_docstrings(package: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of a package's public classes and functions, its modules in hash order.

    In hash order, so that whoever stops early has a sample of the package and not its first modules.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("*.py"), key=lambda path: _hash(str(path.relative_to(root)))):
        relative = path.relative_to(root.parent).with_suffix("")
        if any(part.startswith(("test", "_vendor")) for part in relative.parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        module = ".".join(relative.parts)
        yield from _walk(tree, module)


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            qualified = f"{name}.{child.name}"
            text = ast.get_docstring(child, clean=False)
            if text:
                yield qualified, inspect.cleandoc(text)
            if isinstance(child, ast.ClassDef):
                yield from _walk(child, qualified)


def build(out: Path, per_package: int) -> dict[str, int]:
    """Write the two files; returns how many rows each has."""
    seen: set[str] = set()
    rows: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for package in PACKAGES:
        found: dict[str, dict[str, str]] = {}
        for name, text in iterate_docstrings(package):
            if len(text) >= MIN_CHARACTERS and text not in seen:
                seen.add(text)
                found[name] = {"id": name, "text": text, "package": package, "name": name.rpartition(".")[2]}
            if len(found) == per_package:
                break
        for row in found.values():
            rows["heldout" if _hash(row["id"]) < HELD_OUT_SHARE else "train"].append(row)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (out / f"{name}.jsonl").write_bytes(lines.encode("utf-8", "replace"))
    return {name: len(part) for name, part in rows.items()}


def _hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Docstrings of the installed packages as a corpus.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-package", type=int, default=300)
    arguments = parser.parse_args()
    counts = build(arguments.out, arguments.per_package)
    print(", ".join(f"{count} rows in {arguments.out / name}.jsonl" for name, count in counts.items()), file=sys.stderr)


if __name__ == "__main__":
    main()
