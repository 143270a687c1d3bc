"""Large images resized by torch: only where an encoder has said that its vectors stay, and never by default."""

import types

import numpy as np
import pytest
from PIL import Image
from tests.photos import write_folder

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


def asked(answer):
    """A resizing whose judge gives one answer, and what the judge was given."""
    seen = []

    def judge(plain, fast):
        seen.append((plain, fast))
        return answer

    one = Resizing(transform(), "fingerprint")
    one.ask(judge, "fp32")
    return one, seen


def test_after_a_sample_that_stays_the_same(cache):
    one, seen = asked(True)
    image = photograph()
    assert [one.apply(image)[1] for _ in range(PAIRS + 2)] == [False] * PAIRS + [True] * 2
    ((plain, fast),) = seen
    assert len(plain) == len(fast) == PAIRS
    assert np.array_equal(plain[0], transform().apply(image))
    assert np.array_equal(fast[0], transform().apply(image, torch_resize))
    assert np.array_equal(one.apply(image)[0], fast[0])
    other, seen = asked(False)
    assert [other.apply(image)[1] for _ in range(2)] == [False, True], "another process knows the answer"
    assert not seen


def test_after_a_sample_that_does_not(cache):
    one, seen = asked(False)
    assert not any(one.apply(photograph())[1] for _ in range(PAIRS + 5))
    assert len(seen) == 1
    other, seen = asked(True)
    assert not any(other.apply(photograph())[1] for _ in range(PAIRS + 5))
    assert not seen


def test_small_images_and_other_filters_are_pillow_s(cache):
    one, _ = asked(True)
    one.by_torch = True
    assert one.apply(photograph())[1]
    assert not one.apply(photograph(0, (1600, 1200)))[1]
    lanczos = Resizing(transform("lanczos"), "fingerprint")
    lanczos.ask(lambda *_: True, "fp32")
    lanczos.by_torch = True
    assert not lanczos.apply(photograph())[1]


def test_an_image_in_several_blocks_is_pillow_s(cache):
    one, seen = asked(True)
    image = photograph(0, (2600, 1900))  # 20 MB; Pillow's blocks have 16 where nobody asked for larger ones
    assert not any(one.apply(image)[1] for _ in range(PAIRS + 2))
    assert not seen
    one.by_torch = True
    array, by_torch = one.apply(image)
    assert not by_torch
    assert np.array_equal(array, transform().apply(image))


def test_torch_is_not_loaded_for_a_few_images(cache, monkeypatch):
    monkeypatch.setattr(resizing, "sys", types.SimpleNamespace(modules={}))
    one, seen = asked(True)
    monkeypatch.setattr(resizing, "IMPORT_S", 1e9)
    assert not any(one.apply(photograph())[1] for _ in range(PAIRS + 2))
    assert not seen
    monkeypatch.setattr(resizing, "IMPORT_S", 0.0)
    assert any(one.apply(photograph())[1] for _ in range(PAIRS + 2))


class Means:
    """An encoder and its runtime: the mean of each channel."""

    name, precision, parallel_requests = "means", "fp32", 1
    card = types.SimpleNamespace(modality="image", dim=3, normalized=False, ref="means")

    def __init__(self, wrong=0.0):
        self.wrong, self.batches = wrong, 0
        self.resizing = Resizing(transform(), f"means {wrong}")

    def prepare(self, items):
        from embedx.core.contracts import Prepared

        arrays, by_torch = zip(*(self.resizing.apply(item) for item in items))
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


@pytest.mark.parametrize("wrong", [0.0, 5.0])
def test_the_vectors_decide(cache, wrong):
    encoder = Means(wrong)
    ((embedded,),) = embed([encoder])
    assert encoder.resizing.by_torch == (wrong == 0)
    assert embedded.counts["resized_by_torch"] == (60 - PAIRS if wrong == 0 else 0)
    assert len(embedded.vectors) == 60


def test_what_several_encoders_share_is_pillow_s(cache):
    several = [Means(), Means()]
    results = embed(several)
    assert all(result[0].counts["resized_by_torch"] == 0 for result in results)
    assert [encoder.resizing.by_torch for encoder in several] == [False, False]


def test_a_run_of_large_photographs(embedx, tmp_path, shared):
    from embedx.api import open_store
    from embedx.inference.gates import measure_fidelity, passes_gate

    real = sorted((shared / "data" / "clothing" / "test").rglob("*.jpg"))[::15]
    for number, path in enumerate(real[:22]):
        write_folder(tmp_path / "photos", {f"{number:02}.bmp": b""})
        Image.open(path).convert("RGB").resize((1800, 1200), Image.Resampling.BICUBIC).save(
            tmp_path / "photos" / f"{number:02}.bmp"
        )
    weights = shared / "weights" / "squeezenet1_0.pth"
    arguments = ("extract", "photos", "--encoder", "torchvision:squeezenet1_0", "--weights", weights)
    exact = embedx.json(*arguments, "--out", "exact")
    assert "resized_by_torch" not in exact, "of 22 images torch need not be loaded"
    fast = embedx.json(*arguments, "--out", "fast", "--runtime", "torch", env={"EMBEDX_CLUSTER": "local"})
    assert fast["resized_by_torch"] >= 1
    (ids, vectors), (_, reference) = (open_store(tmp_path / name).vectors() for name in ("fast", "exact"))
    assert len(ids) == 22
    assert passes_gate(measure_fidelity(vectors, reference), "fp32")
