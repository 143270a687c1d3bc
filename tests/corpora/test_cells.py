"""Images in the rows of Parquet and Arrow files: read by row, in any order, in bounded memory."""

import random
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.core.contracts import Broken
from embedx.core.errors import CorpusError
from embedx.core.places import NO_ACCESS
from embedx.core.specs import CorpusSpec
from embedx.corpora import cells, columnar, values
from embedx.corpora.cells import CellReader
from embedx.corpora.content import ImageReader, read_image
from embedx.corpora.listing import open_corpus
from embedx.corpora.locators import Locator, parse_locator
from tests import photos
from tests.corpora.hostile import encoded

PICTURES = [encoded(photos.picture(number), "PNG") for number in range(40)]


def rows_of(*sources, modality="image", **more):
    corpus = open_corpus(CorpusSpec(tuple(map(str, sources)), **more), modality=modality)
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()], corpus


def write(path, kind, struct=False):
    column = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(PICTURES)] if struct else PICTURES
    table = pa.table({"id": [str(n) for n in range(len(PICTURES))], "image": column})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=16)
    elif kind == "arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=16)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=16)
    return path


@pytest.mark.parametrize(("kind", "name"), [("parquet", "a.parquet"), ("arrow", "a.arrow"), ("file", "a.arrow")])
@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
def test_cells_are_read_in_any_order(tmp_path, kind, name, struct, order, monkeypatch):
    monkeypatch.setattr(cells, "BLOCK_ROWS", 5)
    rows, _ = rows_of(write(tmp_path / name, kind, struct))
    places = list(range(len(rows)))
    if order != "forward":
        places = places[::-1] if order == "backward" else random.Random(0).sample(places, len(places))
    reader = ImageReader([row["locator"] for row in rows], [row["identity"] for row in rows])
    with reader, ThreadPoolExecutor(4) as pool:
        sizes = dict(zip(places, pool.map(lambda place: reader.read(place).size_bytes, places)))
    assert [sizes[place] for place in range(len(rows))] == [len(data) for data in PICTURES]


def test_a_row_group_is_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "BLOCK_ROWS", 4)
    locators = [parse_locator(row["locator"]) for row in rows_of(write(tmp_path / "a.parquet", "parquet"))[0]]
    reader = CellReader(locators[0], NO_ACCESS)
    opened = []
    real = reader._file.parquet.iter_batches
    monkeypatch.setattr(reader._file, "parquet", _Counting(reader._file.parquet, opened, real))
    for locator in locators:
        assert reader.read(locator.row).data == PICTURES[locator.row]
    assert opened == [0, 1, 2]


class _Counting:
    def __init__(self, file, opened, real):
        self._file, self._opened, self._real = file, opened, real

    def iter_batches(self, *args, row_groups, **kwargs):
        self._opened += row_groups
        return self._real(*args, row_groups=row_groups, **kwargs)

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_nulls_and_other_contents_are_failures(tmp_path):
    data = [PICTURES[0], None, b"", b"no image", PICTURES[1]]
    pq.write_table(pa.table({"id": list("abcde"), "image": pa.array(data, pa.binary())}), tmp_path / "a.parquet")
    rows, _ = rows_of(tmp_path / "a.parquet")
    items = [read_image(row["locator"]).item for row in rows]
    assert [item.error if isinstance(item, Broken) else None for item in items] == [
        None, "NullCell", "EmptyFile", "UnidentifiedImageError", None,
    ]  # fmt: skip
    assert read_image(str(Locator("parquet", str(tmp_path / "a.parquet"), row=9, column="image"))).item.error == (
        "SourceChanged"
    )


def test_huge_cells_are_refused_before_they_are_copied(tmp_path, monkeypatch):
    for module in (cells, values):
        monkeypatch.setattr(module, "MAX_CELL_BYTES", 2000)
    table = {"id": list("abc"), "image": pa.array([PICTURES[0], b"x" * 3000, PICTURES[1]], pa.binary())}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    items = [read_image(row["locator"]).item for row in rows_of(tmp_path / "a.parquet")[0]]
    assert isinstance(items[1], Broken) and "has 3,000 bytes" in items[1].message
    assert not isinstance(items[0], Broken) and not isinstance(items[2], Broken)
    pq.write_table(pa.table({"id": list("abc"), "text": ["x", "y" * 3000, "z"]}), tmp_path / "t.parquet")
    rows, _ = rows_of(tmp_path / "t.parquet", modality="text")
    assert [row["content"] for row in rows] == ["x", None, "z"] and "holds 3,000 bytes" in rows[1]["problem"]
    with pytest.raises(CorpusError, match="cannot be carried"):
        rows_of(tmp_path / "t.parquet", modality="text", text_column="id", columns=("text",))


def test_blocks_are_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "BLOCK_BYTES", 4 * len(PICTURES[0]))
    path = write(tmp_path / "a.parquet", "parquet")
    reader = CellReader(Locator("parquet", str(path), column="image"), NO_ACCESS)
    for row in range(40):
        reader.read(row)
        assert sum(block.nbytes for block in reader._blocks.values()) <= 3 * cells.BLOCK_BYTES


@pytest.mark.parametrize("damage", [0.3, 0.5, 0.9])
def test_damaged_files_are_failures_or_errors(tmp_path, damage):
    for kind in ("parquet", "arrow"):
        path = write(tmp_path / f"a.{kind}", kind)
        data = bytearray(path.read_bytes())
        place = int(len(data) * damage)
        data[place : place + 64] = b"\xff" * 64
        path.write_bytes(data)
        try:
            rows, _ = rows_of(path)
        except CorpusError as error:
            assert f"a.{kind}" in error.message
            continue
        for row in rows:
            read_image(row["locator"])  # whatever comes of it, it comes back


def test_which_column_holds_the_images(tmp_path):
    path = tmp_path / "a.parquet"

    def understood(**columns):
        pq.write_table(pa.table({"id": ["a"], **columns}), path)
        return rows_of(path)[1].describe_sources()[0]["kind"]

    image = [{"bytes": PICTURES[0], "path": "a.png"}]
    binary = pa.array([PICTURES[0]], pa.binary())
    assert "images in 'photo'" in understood(photo=image, url=["x"], other=binary)
    assert "image bytes in 'blob'" in understood(blob=binary, url=["x"])
    assert "image bytes in 'jpg'" in understood(jpg=binary, sha=binary)
    assert "paths or URLs of images in 'url'" in understood(url=["x"], title=["y"])
    with pytest.raises(CorpusError, match=r"several columns that may hold images \(path, url\).*--image-column"):
        understood(path=["x"], url=["y"])
    pq.write_table(pa.table({"id": ["a"], "image": binary, "text": ["t"]}), path)
    assert rows_of(path)[1].kind == "image" and rows_of(path, modality="text")[1].kind == "text", "the encoder decides"
    with pytest.raises(CorpusError, match="holds bytes"):
        rows_of(path, columns=("image",))


def test_several_splits_and_class_names(tmp_path):
    import datasets

    files = {name: data for name, data in photos.photos().items() if name.startswith("cats")}
    for split in ("train", "test"):
        photos.write_dataset(tmp_path / "d" / split, {f"{split}-{name}": data for name, data in files.items()})
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    rows, corpus = rows_of(tmp_path / "d", columns=("label",))
    assert {source.label for source in corpus.sources} == {
        "d/train/data-00000-of-00001.arrow", "d/test/data-00000-of-00001.arrow",
    }  # fmt: skip
    assert {row["c_label"] for row in rows} == {"train-cats", "test-cats"} and len(rows) == 2 * len(files)
    split = datasets.load_from_disk(str(tmp_path / "d" / "train"))
    split.cast_column("label", datasets.ClassLabel(names=["only"])).to_parquet(str(tmp_path / "p.parquet"))
    assert {row["c_label"] for row in rows_of(tmp_path / "p.parquet", columns=("label",))[0]} == {"only"}


def test_hostile_state_of_a_dataset(tmp_path):
    photos.write_dataset(tmp_path / "d", {"cats/1.png": PICTURES[0]})
    for text, said in (
        ('{"_data_files": [{"filename": "../../etc/passwd"}]}', "names the data file"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "lacks its data file"),
        ('{"_data_files": [1]}', "names no data files"),
        ("[", "cannot be read"),
    ):
        (tmp_path / "d" / "state.json").write_text(text)
        with pytest.raises(CorpusError, match=said):
            rows_of(tmp_path / "d")


def test_class_numbers_outside_of_the_names_are_null():
    assert columnar._named(pa.array([0, -1, 5, None, 1]), ["a", "b"]).to_pylist() == ["a", None, None, None, "b"]


@pytest.mark.parametrize(("names", "pieces"), [(["id"], 1), (["id", "image.path"], 1), (["id", "text"], 4)])
def test_only_what_is_read_makes_pieces_small(tmp_path, monkeypatch, names, pieces):
    """Images beside the ids must not make listing them slow."""
    monkeypatch.setattr(columnar, "PIECE_BYTES", 300_000)
    noise = random.Random(0)
    images = [{"bytes": noise.randbytes(20_000), "path": f"{n}.jpg"} for n in range(100)]
    texts = [noise.randbytes(5_000).hex() for _ in range(100)]
    table = pa.table({"id": [str(n) for n in range(100)], "image": images, "text": texts})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    opened = columnar.ColumnarFile(str(tmp_path / "a.parquet"), "parquet", NO_ACCESS)
    found = list(opened.iterate_pieces(names, False))
    assert sum(len(piece) for piece in found) == 100 and len(found) == pieces
