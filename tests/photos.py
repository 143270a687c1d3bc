"""A small corpus of pictures, written down in every way that a source can be."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.conftest import ROOT
from tests.corpora.hostile import encoded

PIXELS = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "plugins" / "pixels"), os.environ.get("PYTHONPATH", "")])}
"""The environment in which `--encoder pixels:8` is known."""


def picture(number: int) -> Image.Image:
    shade = 23 * number % 256
    image = Image.linear_gradient("L").resize((40 + number, 30)).convert("RGB")
    image.paste((shade, 255 - shade, 40), (number, 3, number + 12, 18))
    return image


def photos() -> dict[str, bytes]:
    """Ten pictures in two folders, one that is cut off and one that is a web page."""
    named = {
        f"{'cats' if number % 2 else 'dogs'}/{number}.{'png' if number % 3 else 'jpg'}": encoded(
            picture(number), "PNG" if number % 3 else "JPEG"
        )
        for number in range(10)
    }
    named["cats/cut.png"] = named["cats/1.png"][:60]
    named["dogs/page.jpg"] = b"<!doctype html><html><body>404</body></html>"
    return dict(sorted(named.items()))


def label_of(name: str) -> str:
    return name.partition("/")[0]


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, files: dict[str, bytes], **how: object) -> Path:
    rows = [{"id": name, "image": data, "label": label_of(name)} for name, data in files.items()]
    pq.write_table(pa.Table.from_pylist(rows), path, **how)
    return path


def write_dataset(path: Path, files: dict[str, bytes]) -> Path:
    """Save as Hugging Face's own library does."""
    import datasets

    classes = sorted({label_of(name) for name in files})
    features = datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    )
    columns = {
        "id": list(files),
        "image": [{"bytes": data, "path": name.rpartition("/")[2]} for name, data in files.items()],
        "label": [classes.index(label_of(name)) for name in files],
    }
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(path))
    return path


def write_url_table(path: Path, url: str, files: dict[str, bytes]) -> Path:
    rows = [{"id": name, "url": f"{url}/{name}", "label": label_of(name)} for name in files]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
