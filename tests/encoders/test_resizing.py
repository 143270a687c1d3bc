"""Large images resized by torch: only where an encoder has said that its vectors stay, and never by default."""

import itertools
import json
import types

import numpy as np
import pytest
from PIL import Image

from embedx.encoders import resizing
from embedx.encoders.resizing import PAIRS, Resizing, torch_resize
from embedx.encoders.vision import ImageTransform
from embedx.inference.pipeline import Embedder, embed_together


def transform(interpolation="bilinear"):
    return ImageTransform((256, 256), (224, 224), interpolation, (0.5,) * 3, (0.5,) * 3)


def photograph(number=0, size=(1920, 1280)):
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("size", [(1920, 1280), (1280, 1920), (2400, 1500), (1701, 1203)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_torch_is_a_grey_level_off_at_most(interpolation, size):
    image = photograph(1, size)
    plain, fast = (transform(interpolation).apply(image, how).astype(int) for how in (None, torch_resize))
    assert plain.shape == fast.shape == (3, 224, 224)
    assert np.abs(plain - fast).max() <= 1
    assert (plain != fast).mean() < 0.01


IMAGE = photograph()


def asked(answer, precision="fp32", one=None):
    """A resizing with a judge who gives one answer, and what the judge was given."""
    seen = []

    def judge(plain, fast):
        seen.append((plain, fast))
        if isinstance(answer, Exception):
            raise answer
        return answer

    one = one or Resizing("fingerprint")
    one.ask(precision, judge)
    return one, seen


def by_torch(one, count, image=IMAGE, interpolation="bilinear"):
    return [one.apply(transform(interpolation), image)[1] for _ in range(count)]


@pytest.fixture
def taking(cache, monkeypatch):
    """Let Pillow's and torch's turns take so many seconds each."""

    def install(plain_s, fast_s):
        ticks = itertools.accumulate(itertools.cycle([0, plain_s, 0, fast_s]))
        monkeypatch.setattr(resizing, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks)))

    return install


@pytest.fixture
def torch_is_faster(taking):
    taking(2, 1)


@pytest.mark.usefixtures("torch_is_faster")
def test_after_a_sample_that_stays_the_same():
    one, seen = asked(True)
    assert by_torch(one, PAIRS + 2) == [False] * PAIRS + [True] * 2
    ((plain, fast),) = seen
    assert len(plain) == len(fast) == PAIRS
    assert np.array_equal(plain[0], transform().apply(IMAGE))
    assert np.array_equal(fast[0], transform().apply(IMAGE, torch_resize))
    assert np.array_equal(one.apply(transform(), IMAGE)[0], fast[0])
    other, seen = asked(False)
    assert by_torch(other, 2) == [False, True], "another process knows the answer"
    assert not seen


@pytest.mark.usefixtures("torch_is_faster")
def test_after_a_sample_that_does_not():
    one, seen = asked(False)
    assert not any(by_torch(one, PAIRS + 5))
    assert len(seen) == 1
    other, seen = asked(True)
    assert not any(by_torch(other, PAIRS + 5))
    assert not seen


def test_torch_that_is_slower_is_not_used(taking):
    taking(1, 2)
    one, seen = asked(True)
    assert not any(by_torch(one, PAIRS + 5))
    assert len(seen) == 1


@pytest.mark.usefixtures("torch_is_faster")
def test_a_judge_that_fails_costs_no_image_and_is_not_believed_for_ever():
    one, seen = asked(RuntimeError("no memory left"))
    assert not any(by_torch(one, 2 * PAIRS))
    assert len(seen) == 1
    other, _ = asked(True)
    assert any(by_torch(other, PAIRS + 2))


def test_a_trial_that_fails_costs_no_image(cache, monkeypatch):
    one, _ = asked(True)
    monkeypatch.setattr(resizing, "cached_json", lambda *_: "damaged")
    assert not any(by_torch(one, PAIRS + 2))


@pytest.mark.usefixtures("torch_is_faster")
def test_each_precision_has_a_say():
    one, _ = asked(True, "bf16")
    assert any(by_torch(one, PAIRS + 2))
    one, seen = asked(False, "fp32", one)
    assert not any(by_torch(one, PAIRS + 2)), "what holds for bf16 does not hold for fp32"
    assert len(seen) == 1
    one.withdraw("fp32", one._judges["fp32"])
    assert any(by_torch(one, 1))
    one.forbid()
    assert not any(by_torch(one, 1))


@pytest.mark.usefixtures("torch_is_faster")
def test_small_images_and_other_filters_are_pillow_s():
    one, _ = asked(True)
    assert any(by_torch(one, PAIRS + 2))
    assert not any(by_torch(one, 1, photograph(0, (1600, 1200))))
    assert not any(by_torch(one, 1, interpolation="lanczos"))


@pytest.mark.usefixtures("torch_is_faster")
def test_an_image_in_several_blocks_is_pillow_s():
    one, seen = asked(True)
    image = photograph(0, (2600, 1900))  # 20 MB; Pillow's blocks have 16 where nobody asked for larger ones
    assert not any(by_torch(one, 2 * PAIRS, image)) and not seen
    assert any(by_torch(one, PAIRS + 2))
    array, fast = one.apply(transform(), image)
    assert not fast
    assert np.array_equal(array, transform().apply(image))


def test_torch_is_not_loaded_for_a_few_images(cache, monkeypatch):
    monkeypatch.setattr(resizing, "sys", types.SimpleNamespace(modules={}))
    one, seen = asked(True)
    monkeypatch.setattr(resizing, "IMPORT_S", 1e9)
    by_torch(one, PAIRS + 2)
    assert not seen
    monkeypatch.setattr(resizing, "IMPORT_S", 0.0)
    by_torch(one, PAIRS + 2)
    assert seen


class Means:
    """An encoder and its runtime: the mean of each channel."""

    name, precision, parallel_requests = "means", "fp32", 1
    card = types.SimpleNamespace(modality="image", dim=3, normalized=False, ref="means")

    def __init__(self, wrong=0.0):
        self.wrong, self.batches = wrong, 0
        self.resizing = Resizing(f"means {wrong}")

    def prepare(self, items):
        from embedx.core.contracts import Prepared

        arrays, by_torch = zip(*(self.resizing.apply(transform(), item) for item in items))
        counts = {"resized_by_torch": sum(by_torch)}
        return Prepared(list(arrays), np.arange(len(items)), {}, counts=counts)

    def cost(self, prepared):
        return np.ones(len(prepared.items), dtype=np.int64)

    def collate(self, entries):
        return {"pixels": np.stack(entries)}

    def forward(self, inputs):
        # Not of torch's form: the second of the two that the judge compares.
        self.batches += len(inputs["pixels"]) == PAIRS
        vectors = inputs["pixels"].astype(np.float32).mean((2, 3))
        return vectors + self.wrong * np.arange(3) * (self.batches == 2)

    def batch_budget(self, modality):
        return 5


def embed(encoders, count=60):
    images = [photograph(number) for number in range(4)]
    embedders = [Embedder(encoder, encoder, 1) for encoder in encoders]
    from embedx.inference.clock import Clock

    return embed_together(
        embedders, count, lambda a, b: [images[n % 4] for n in range(a, b)], [Clock() for _ in embedders]
    )


@pytest.mark.usefixtures("torch_is_faster")
@pytest.mark.parametrize("wrong", [0.0, 5.0])
def test_the_vectors_decide(wrong):
    encoder = Means(wrong)
    ((embedded,),) = embed([encoder])
    assert encoder.resizing.by_torch == (wrong == 0)
    assert embedded.counts["resized_by_torch"] == (60 - PAIRS if wrong == 0 else 0)
    assert len(embedded.vectors) == 60


@pytest.mark.usefixtures("torch_is_faster")
def test_what_several_encoders_share_is_pillow_s():
    several = [Means(), Means()]
    results = embed(several)
    assert all(result[0].counts["resized_by_torch"] == 0 for result in results)
    assert [encoder.resizing.by_torch for encoder in several] == [False, False]


def test_an_embedder_that_is_closed_is_asked_no_longer(cache):
    encoder = Means()
    embedder = Embedder(encoder, encoder, 1)
    assert encoder.resizing.by_torch is None
    embedder.close()
    assert encoder.resizing.by_torch is False


def test_a_run_of_large_photographs(embedx, tmp_path, shared):
    from embedx.api import open_store
    from embedx.inference.gates import measure_fidelity, passes_gate

    real = sorted((shared / "data" / "clothing" / "test").rglob("*.jpg"))[::15]
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(real[:22]):
        large = Image.open(path).convert("RGB").resize((1800, 1200), Image.Resampling.BICUBIC)
        large.save(tmp_path / "photos" / f"{number:02}.bmp")
    weights = shared / "weights" / "squeezenet1_0.pth"
    arguments = ("extract", "photos", "--encoder", "torchvision:squeezenet1_0", "--weights", weights)
    arguments += ("--precision", "fp32")  # a machine with bf16 would ask, and remember, for both
    own = {"EMBEDX_CLUSTER": "local", "EMBEDX_CACHE": str(tmp_path / "cache")}
    # The torch runtime has torch loaded, so the encoder is asked at once; what is remembered decides the next runs.
    embedx.json(*arguments, "--out", "first", "--runtime", "torch", env=own)
    (answer,) = (tmp_path / "cache" / "resizing").iterdir()
    assert json.loads(answer.read_text())["same"]
    resized = {}
    for name, by_torch in (("fast", True), ("exact", False)):
        answer.write_text(json.dumps({"by_torch": by_torch}))
        report = embedx.json(*arguments, "--out", name, "--runtime", "torch", env=own)
        resized[name] = report.get("resized_by_torch", 0)
    assert 0 < resized["fast"] <= 22 and resized["exact"] == 0
    (ids, vectors), (_, reference) = (open_store(tmp_path / name).vectors() for name in ("fast", "exact"))
    assert len(ids) == 22
    assert passes_gate(measure_fidelity(vectors, reference), "fp32")
