"""Word vectors equal gensim's own mean, whatever the file's format; unknown words are counted, unknown texts fail by name."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.conftest import write_jsonl
from tests.encoders.support import embed

from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders import word_table
from embedx.encoders.registry import open_encoder, parse_ref
from embedx.encoders.word2vec import split_words
from embedx.store.reader import open_store

gensim = pytest.importorskip("gensim")

WORDS = "the of and to paris is a city in france London river bridge Łódź café new_york don't e-mail".split()
TEXTS = ["Paris is a city in France", "the the the river of London", "café in Łódź, a bridge", "don't e-mail new_york"]


@pytest.fixture(scope="module")
def vectors():
    """Gensim's own object, of 18 words in 12 dimensions, most frequent first."""
    made = gensim.models.KeyedVectors(12)
    made.add_vectors(WORDS, np.random.default_rng(3).normal(size=(len(WORDS), 12)).astype(np.float32))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vectors):
    """The same vectors in every format."""
    path = tmp_path_factory.mktemp("vectors")
    vectors.save_word2vec_format(str(path / "w.bin"), binary=True)
    vectors.save_word2vec_format(str(path / "w.vec"), binary=False)
    vectors.save_word2vec_format(str(path / "glove.txt"), binary=False, write_header=False)
    (path / "w.vec.gz").write_bytes(gzip.compress((path / "w.vec").read_bytes()))
    (path / "w.bin.gz").write_bytes(gzip.compress((path / "w.bin").read_bytes()))
    vectors.save(str(path / "w.kv"))
    return path


@pytest.fixture(scope="module")
def fasttext(tmp_path_factory):
    """A fastText model with sub-words, trained by gensim and saved as the original tool does."""
    from gensim.models.fasttext import FastText, save_facebook_model

    sentences = [[word.lower() for word in split_words(text)] for text in TEXTS] * 5
    model = FastText(sentences, vector_size=8, min_count=1, bucket=500, epochs=2, seed=1, workers=1)
    path = tmp_path_factory.mktemp("fasttext") / "model.bin"
    save_facebook_model(model, str(path))
    return path


def in_vocabulary(text):
    return [word if word in WORDS else word.lower() for word in split_words(text)]


@pytest.mark.parametrize("name", ["w.bin", "w.vec", "glove.txt", "w.vec.gz", "w.bin.gz"])
def test_equals_the_mean_of_gensim(folder, vectors, name):
    result = embed(open_encoder(parse_ref(f"word2vec:{folder / name}")), TEXTS)
    reference = [vectors.get_mean_vector(in_vocabulary(text), pre_normalize=False) for text in TEXTS]
    np.testing.assert_allclose(result.vectors, reference, atol=1e-6)
    assert result.vectors.dtype == np.float32 and result.counts["unknown_words"] == 0


def test_unit_words_equal_the_default_of_gensim(folder, vectors):
    spec = EncoderSpec("word2vec", str(folder / "w.bin"), model_args={"unit_words": True})
    reference = [vectors.get_mean_vector(in_vocabulary(text)) for text in TEXTS]
    np.testing.assert_allclose(embed(open_encoder(spec), TEXTS).vectors, reference, atol=1e-6)


def test_weights_from_rank_equal_gensim_with_these_weights(folder, vectors):
    shares = 1 / np.arange(1, 19) / np.sum(1 / np.arange(1, 19))
    weighed = {"sif": 1e-3 / (1e-3 + shares), "idf": -np.log(shares)}
    for pooling, weights in weighed.items():
        encoder = open_encoder(parse_ref(f"word2vec:{folder / 'w.bin'}", pooling=pooling))
        assert encoder.card.identity["frequencies"] == "rank"
        reference = [
            vectors.get_mean_vector(words, weights[[WORDS.index(word) for word in words]], pre_normalize=False)
            for words in map(in_vocabulary, TEXTS)
        ]
        np.testing.assert_allclose(embed(encoder, TEXTS).vectors, reference, atol=1e-5)


def test_weights_from_a_file_of_frequencies(folder, vectors, tmp_path):
    frequencies = tmp_path / "counts.txt"
    frequencies.write_text("the 900\nriver 10\nelsewhere 90\n")
    spec = EncoderSpec("word2vec", str(folder / "w.bin"), pooling="sif")
    given = replace(spec, model_args={"frequencies": str(frequencies), "a": 0.01})
    encoder = open_encoder(given)
    # `of` has no frequency: it counts as the rarest word that has one.
    weights = np.array([0.01 / (0.01 + p) for p in (0.9, 0.01, 0.01)])
    reference = vectors.get_mean_vector(["the", "river", "of"], weights, pre_normalize=False)
    np.testing.assert_allclose(embed(encoder, ["the river of"]).vectors[0], reference, atol=1e-6)
    as_documents = open_encoder(replace(given, model_args={**given.model_args, "total": 2000}))
    prints = {open_encoder(spec).card.fingerprint, encoder.card.fingerprint, as_documents.card.fingerprint}
    frequencies.write_text("the 900\nriver 11\nelsewhere 90\n")
    assert len(prints | {open_encoder(given).card.fingerprint}) == 4
    frequencies.write_text("the many\n")
    with pytest.raises(EncoderError, match="no file of frequencies"):
        open_encoder(given)


def test_sub_words_equal_gensim(fasttext):
    model = gensim.models.fasttext.load_facebook_vectors(str(fasttext))
    texts = ["paris in france", "unseenly parisian Rivers", "bridge zzz"]
    encoder = open_encoder(parse_ref(f"word2vec:{fasttext}"))
    result = embed(encoder, texts)
    reference = [model.get_mean_vector(split_words(text), pre_normalize=False) for text in texts]
    np.testing.assert_allclose(result.vectors, reference, atol=1e-6)
    assert result.counts["words"] == 8 and result.counts["composed_words"] == 4 and not result.counts["unknown_words"]
    weighed = open_encoder(parse_ref(f"word2vec:{fasttext}", pooling="sif"))
    assert weighed.card.identity["frequencies"].startswith("counts ")  # a fastText model knows its words' counts
    sentences = [word.lower() for text in TEXTS for word in split_words(text)]
    share = {word: sentences.count(word) / len(sentences) for word in set(sentences)}
    weights = [1e-3 / (1e-3 + share[word]) for word in ("paris", "the")]
    reference = model.get_mean_vector(["paris", "the"], np.array(weights), pre_normalize=False)
    np.testing.assert_allclose(embed(weighed, ["paris the"]).vectors[0], reference, atol=1e-5)


def test_the_fingerprint_is_of_the_vectors_and_not_of_the_file(folder, tmp_path):
    prints = [
        open_encoder(parse_ref(f"word2vec:{folder / name}")).card.fingerprint
        for name in ("w.bin", "w.vec.gz", "glove.txt")
    ]
    assert len(set(prints)) == 1
    data = bytearray((folder / "w.bin").read_bytes())
    data[-3] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    changed = open_encoder(parse_ref(f"word2vec:{tmp_path / 'w.bin'}")).card.fingerprint
    sif = open_encoder(parse_ref(f"word2vec:{folder / 'w.bin'}", pooling="sif")).card.fingerprint
    assert len({prints[0], changed, sif}) == 3


def test_the_file_is_read_once_and_its_table_mapped(folder, monkeypatch):
    first = open_encoder(parse_ref(f"word2vec:{folder / 'w.vec'}"))
    monkeypatch.setattr(word_table, "open_word_file", None)
    again = open_encoder(parse_ref(f"word2vec:{folder / 'w.vec'}"))
    assert isinstance(again.build()._vectors.base, np.memmap) and again.card == first.card
    np.testing.assert_array_equal(embed(again, TEXTS).vectors, embed(first, TEXTS).vectors)


def test_pickles_are_refused_whatever_their_name(folder, tmp_path):
    (tmp_path / "w.bin").write_bytes((folder / "w.kv").read_bytes())
    for path in (folder / "w.kv", tmp_path / "w.bin"):
        with pytest.raises(EncoderError, match="never reads one") as refused:
            open_encoder(parse_ref(f"word2vec:{path}"))
        assert "save_word2vec_format" in refused.value.remedy and path.name in refused.value.message


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("short.bin", b"2 3\nword " + bytes(12) + b"more " + bytes(5), "ends after 1 of 2 words"),
        ("headless.bin", b"word 1 2 3\n", "begins with the number"),
        ("huge.bin", b"2 99999999\nword ", "promises 2 words of 99999999 numbers"),
        ("few.vec", b"3 2\none 1 2\ntwo 1 2\n", "it has 2 words, its first line promises 3"),
        ("narrow.txt", b"one 1 2 3\ntwo 1 2\n", "line 2 has 2 numbers instead of 3"),
        ("letters.txt", b"one 1 2 3\ntwo 1 x 3\n", "line 2"),
        ("empty.txt", b"", "neither a header nor"),
        ("broken.vec.gz", gzip.compress(b"2 2\none 1 2\ntwo 1 2\n", mtime=0)[:-9], "ended before"),
        ("cut.bin", (793_712_314).to_bytes(4, "little") + bytes(40), "no fastText model"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EncoderError, match=said) as error:
        open_encoder(parse_ref(f"word2vec:{tmp_path / name}"))
    assert name in error.value.message and error.value.remedy


def test_words_with_spaces_and_doubled_words(tmp_path):
    # Glove.840B has words with spaces; of a word that stands twice the first counts, as in gensim.
    (tmp_path / "g.txt").write_text("one 1 2 3\nat name@x.com 4 5 6\none 7 8 9\n")
    encoder = open_encoder(parse_ref(f"word2vec:{tmp_path / 'g.txt'}"))
    np.testing.assert_array_equal(embed(encoder, ["one One"]).vectors, [[1, 2, 3]])


def test_options_that_word_vectors_lack(folder, tmp_path):
    path = str(folder / "w.bin")
    with pytest.raises(UsageError, match="pooling 'max'"):
        open_encoder(EncoderSpec("word2vec", path, pooling="max"))
    with pytest.raises(UsageError, match="no layer"):
        open_encoder(EncoderSpec("word2vec", path, layer="x"))
    with pytest.raises(UsageError, match="unknown model_args 'frequency'"):
        open_encoder(EncoderSpec("word2vec", path, model_args={"frequency": "x"}))
    with pytest.raises(EncoderError, match="there is no file"):
        open_encoder(EncoderSpec("word2vec", str(tmp_path / "gone.bin")))


def test_extract_reports_unknown_words_and_names_texts_without_any(embedx, folder, tmp_path):
    rows = [{"id": f"t{place}", "text": text} for place, text in enumerate([*TEXTS, "zzz yyy", "?!", "the zzz"])]
    write_jsonl(tmp_path / "c.jsonl", rows)
    encoder = ("--encoder", f"word2vec:{folder / 'w.bin'}", "--pooling", "sif")
    arguments = ("extract", "c.jsonl", *encoder, "--out", "s", "--max-failures", "2", "--store-precision", "full")
    report = embedx.json(*arguments, env={"EMBEDX_SHARD_ITEMS": "3"})
    assert (report["items"]["embedded"], report["items"]["failed"]) == (5, 2)
    assert report["words"] == {"read": 24, "unknown_share": round(3 / 24, 4), "composed_share": 0.0}
    assert report["encoder"]["runtime"] == "direct fp32" and report["encoder"]["precision"] == "fp32"
    failures = {failure["id"]: failure for failure in embedx.json("failures", "s")["failures"]}
    assert failures["t4"]["error"] == "UnknownWords" and "'zzz', 'yyy'" in failures["t4"]["message"]
    assert failures["t5"]["error"] == "NoWords"
    ids, stored = open_store(tmp_path / "s").vectors()
    mine = embed(open_encoder(parse_ref(f"word2vec:{folder / 'w.bin'}", pooling="sif")), TEXTS).vectors
    np.testing.assert_allclose(stored[[list(ids).index(f"t{n}") for n in range(4)]], mine, atol=1e-6)
    embedx("index", "s", "--out", "i")
    assert embedx.json("search", "i", "--text", "the city Paris in France", "-k", "1")["hits"][0]["id"] == "t0"
    other = ("extract", "c.jsonl", *encoder, "--out", "other")
    assert "computes in float32" in embedx.json(*other, "--precision", "bf16", status=2)["error"]["message"]
    assert "does not run on torch" in embedx.json(*other, "--runtime", "torch", status=1)["error"]["message"]


def test_plain_vectors_need_neither_torch_nor_gensim(folder):
    code = (
        "import sys, json\n"
        "from embedx.steps.encoding import open_encoder_session\n"
        "session = open_encoder_session(json.loads(sys.argv[1]), '', 'fp32')\n"
        "assert session.embed_texts(['paris'])[0].shape == (1, 12)\n"
        "print(sorted({'torch', 'gensim', 'scipy', 'openvino'} & set(sys.modules)))"
    )
    spec = open_encoder(parse_ref(f"word2vec:{folder / 'w.bin'}")).card.spec
    done = subprocess.run([sys.executable, "-c", code, json.dumps(spec)], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
