"""The public surface: its names, the Python API, and what importing it may cost."""

import subprocess
import sys

import numpy as np
import pytest

import embedx
from tests.conftest import SUPPORT

NAMES = ["EmbedxError", "extract", "fit_head", "index", "load_encoder", "open_head", "open_index", "open_store"]


def test_exported_names():
    assert embedx.__all__ == sorted(NAMES) == dir(embedx)
    for name in NAMES:
        assert getattr(embedx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'everything'"):
        embedx.everything  # noqa: B018


def test_python_api_end_to_end(tmp_path):
    report = embedx.extract(SUPPORT, "minilm", tmp_path / "s", columns=["intent"])
    assert report["items"]["embedded"] == 60
    ids, vectors = embedx.open_store(tmp_path / "s").vectors()
    assert vectors.shape == (60, 384) and len(ids) == 60
    embedx.index(tmp_path / "s", tmp_path / "i")
    encoder = embedx.load_encoder("minilm")
    queries, failures = encoder.embed_texts(["I want my money back"])
    assert failures == {}
    hits = embedx.open_index(tmp_path / "i").search(queries, 3)
    assert hits.ids[0][0] == "refund-00"
    embedx.fit_head(tmp_path / "s", "intent", tmp_path / "h", test_size=0.2)
    labels, _ = embedx.open_head(tmp_path / "h").predict(vectors)
    assert np.mean([label == item_id.split("-")[0] for label, item_id in zip(labels, ids)]) > 0.9
    with pytest.raises(embedx.EmbedxError, match="does not exist"):
        embedx.open_store(tmp_path / "gone")


def test_search_by_id_and_index_never_import_torch(tmp_path, support_store):
    code = (
        "import sys, embedx\n"
        "embedx.index(sys.argv[1], sys.argv[2])\n"
        "index = embedx.open_index(sys.argv[2])\n"
        "assert index.search(index.vector('refund-00')[None], 3).ids[0][0] == 'refund-00'\n"
        "print(sorted({'torch', 'sklearn', 'transformers', 'openvino', 'distributed'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(support_store), str(tmp_path / "i")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_cached_text_encoder_never_imports_torch(support_store):
    code = (
        "import sys, embedx\n"
        "assert embedx.load_encoder('minilm', precision='fp32', runtime='openvino').embed_texts(['hello'])[0].shape == (1, 384)\n"
        "print(sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
