"""Vectors equal those of each library's own recipe, raw and centred; planted preprocessing errors do not."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from embedx.core.contracts import Broken
from embedx.core.specs import EncoderSpec, PreprocessSpec
from embedx.corpora.decode import decode_image
from embedx.encoders import timm as timm_family
from embedx.encoders import torchvision as torchvision_family
from embedx.encoders.vision import ImageEncoder

SHARED = Path(os.environ.get("EMBEDX_TEST_DATA", Path(__file__).parents[2].parent / "shared"))

REAL = ["timm:mobilenetv2_100", "torchvision:squeezenet1_0"]
RANDOM = [
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:inception_v3",
    "timm:vit_tiny_patch16_224",
    "timm:test_convnext.r160_in1k",
]


@dataclass(frozen=True)
class Case:
    """An encoder, its built module, and the library's own way from a PIL image to a vector."""

    encoder: ImageEncoder
    module: Any
    reference: Callable[[Image.Image], np.ndarray]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Callable[[str], Case]:
    import torch

    folder = tmp_path_factory.mktemp("vision")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads that wait for each other are slow beside other work

    @functools.cache
    def make(ref: str) -> Case:
        family, _, name = ref.partition(":")
        return {"torchvision": torchvision_case, "timm": timm_case}[family](name, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBEDX_CACHE", str(folder / "cache"))
        yield make
    torch.set_num_threads(threads)


def weights_of(name: str, model: Any, folder: Path) -> Path:
    """Real weights where we have them, else the random ones of a seeded model."""
    import torch

    real = {"mobilenetv2_100": "mobilenetv2_100_same.pth", "squeezenet1_0": "squeezenet1_0.pth"}.get(name)
    if real:
        if not (SHARED / "weights" / real).is_file():
            pytest.skip(f"{SHARED / 'weights' / real} is not on this machine (set EMBEDX_TEST_DATA)")
        return SHARED / "weights" / real
    path = folder / f"{name}.pth"
    torch.save(model.state_dict(), path)
    return path


def torchvision_case(name: str, folder: Path) -> Case:
    import torch
    from torchvision import models

    torch.manual_seed(0)
    # As torchvision builds it around its own weights, training head included.
    extra = {"transform_input": True, "aux_logits": True, "init_weights": False} if name == "inception_v3" else {}
    model = models.get_model(name, weights=None, **extra).eval()
    path = weights_of(name, model, folder)
    model.load_state_dict(torch.load(path, weights_only=True))
    encoder = torchvision_family.open_encoder(EncoderSpec("torchvision", name, weights=str(path)))
    preprocess = models.get_model_weights(name).DEFAULT.transforms()
    seen = {}
    if name.startswith("squeezenet"):
        model.features.register_forward_hook(lambda _, __, output: seen.update(vector=output.mean(dim=(2, 3))))
    else:
        last = {"mobilenet_v3_small": "classifier.3"}.get(name, "fc")
        model.get_submodule(last).register_forward_pre_hook(lambda _, inputs: seen.update(vector=inputs[0]))

    def reference(image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            model(preprocess(image)[None])
        return seen["vector"][0].numpy()

    return Case(encoder, encoder.build(), reference)


def timm_case(name: str, folder: Path) -> Case:
    import timm
    import torch

    torch.manual_seed(0)
    is_mobilenet = name == "mobilenetv2_100"
    model_args = {"pad_type": "same"} if is_mobilenet else {}
    model = timm.create_model(name, **model_args).eval()
    path = weights_of(name, model, folder)
    model.load_state_dict(torch.load(path, weights_only=True))
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)} if is_mobilenet else {}
    spec = EncoderSpec("timm", name, weights=str(path), model_args=model_args, preprocess=PreprocessSpec(**half))
    config = timm.data.resolve_model_data_config(model) | half
    preprocess = timm.data.create_transform(**config, is_training=False)

    def reference(image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            return model.forward_head(model.forward_features(preprocess(image)[None]), pre_logits=True)[0].numpy()

    encoder = timm_family.open_encoder(spec)
    return Case(encoder, encoder.build(), reference)


@functools.cache
def photos() -> tuple[bytes, ...]:
    folder = SHARED / "data" / "clothing" / "test"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine (set EMBEDX_TEST_DATA)")
    return tuple(path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[::23][:16])


@functools.cache
def generated() -> tuple[bytes, ...]:
    """Awkward files: odd sizes, grey, CMYK, palette, alpha, 16 bits, rotated by EXIF, tiny."""
    from embedx.encoders.vision import canary_images

    canaries = canary_images()
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        (canaries[0].resize((301, 97)), "PNG", {}),
        (Image.fromarray(np.asarray(canaries[3].convert("L")).astype(np.uint16) * 257), "PNG", {}),
        (canaries[1].resize((63, 640)), "WEBP", {"lossless": True}),
        (canaries[2].convert("L"), "PNG", {}),
        (canaries[3].convert("CMYK"), "TIFF", {}),
        (canaries[4].convert("P"), "GIF", {}),
        (canaries[5].convert("RGBA"), "PNG", {}),
        (canaries[0], "JPEG", {"exif": exif.tobytes()}),
        (canaries[1].resize((2, 2)), "PNG", {}),
        (canaries[4].resize((1, 1)), "PNG", {}),
        (canaries[5].resize((13, 169)), "BMP", {}),
    ]
    return tuple(encoded(*file) for file in files)


def encoded(image: Image.Image, format: str, how: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()


def as_users_open(data: bytes) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):  # .convert clips it in some versions of Pillow
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    return image.convert("RGB")


def vectors(case: Case, files: tuple[bytes, ...], transform=None, spoil=None) -> np.ndarray:
    import torch

    images = [decode_image(data, f"file {number}") for number, data in enumerate(files)]
    assert not any(isinstance(image, Broken) for image in images)
    encoder = case.encoder
    if transform is not None:
        encoder = ImageEncoder(replace(encoder.card, identity={"preprocessing": transform.to_dict()}), lambda: None)
    pixels = encoder.collate(encoder.prepare(images).items)["pixels"]
    with torch.no_grad():
        return case.module(torch.from_numpy(pixels if spoil is None else spoil(pixels))).numpy()


@functools.cache
def _reference(case: Case, files: tuple[bytes, ...]) -> np.ndarray:
    return np.stack([case.reference(as_users_open(data)) for data in files])


def cosines(ours: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the least raw and the least centred cosine over the items."""
    assert ours.dtype == np.float32 and ours.shape == reference.shape

    def least(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())

    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    mean = reference.mean(axis=0)
    return least(ours, reference), least(ours - mean, reference - mean)


def passes(ours: np.ndarray, reference: np.ndarray) -> bool:
    raw, centred = cosines(ours, reference)
    return raw >= 0.99999 and centred >= 0.9999


@pytest.mark.parametrize(
    ("ref", "files"), [(ref, photos) for ref in REAL] + [(ref, generated) for ref in REAL + RANDOM]
)
def test_equals_the_librarys_own_recipe(ref, files, case):
    its = case(ref)
    ours, reference = vectors(its, files()), _reference(its, files())
    assert ours.shape == (len(files()), its.encoder.card.dim)
    assert passes(ours, reference), cosines(ours, reference)


@pytest.mark.parametrize("ref", REAL)
@pytest.mark.parametrize("error", ["bgr", "no normalisation", "no margin", "crop off by two", "interpolation"])
def test_planted_errors_fail_the_gate(ref, error, case):
    its, files = case(ref), photos()
    own = its.encoder.transform
    other = "bicubic" if own.interpolation == "bilinear" else "bilinear"
    planted: dict[str, dict[str, Any]] = {
        "bgr": {"spoil": lambda pixels: pixels[:, ::-1].copy()},
        "no margin": {"transform": replace(own, resize=own.crop)},
        "crop off by two": {"spoil": lambda pixels: np.roll(pixels, 2, axis=3)},
        "interpolation": {"transform": replace(own, interpolation=other)},
    }
    if error == "no normalisation":
        from embedx.encoders.image_module import PixelsToVectors

        wrong = PixelsToVectors(its.module.features, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        ours = vectors(replace(its, module=wrong), files)
    else:
        ours = vectors(its, files, **planted[error])
    assert not passes(ours, _reference(its, files)), cosines(ours, _reference(its, files))


@pytest.mark.parametrize("ref", REAL)
def test_neighbours_in_the_batch_do_not_matter(ref, case):
    its, files = case(ref), photos()[:6]
    whole = vectors(its, files)
    alone = np.concatenate([vectors(its, (data,)) for data in files])
    assert passes(alone, whole), cosines(alone, whole)
    assert passes(vectors(its, files[::-1])[::-1], whole)


@pytest.mark.parametrize("ref", ["torchvision:squeezenet1_0", "timm:vit_tiny_patch16_224"])
def test_converts_to_openvino_within_the_gate(ref, case):
    import openvino
    import torch

    its = case(ref)
    files = generated()
    pixels = its.encoder.collate(its.encoder.prepare([decode_image(data, "") for data in files]).items)["pixels"]
    example = torch.from_numpy(pixels[:2])
    with torch.no_grad():
        traced = torch.jit.trace(its.module, example, check_trace=False)
        model = openvino.convert_model(traced, example_input=example)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    request = compiled.create_infer_request()
    request.infer([pixels])
    assert passes(np.array(request.get_output_tensor(0).data), _reference(its, files))


def test_modules_are_frozen(case):
    for ref in REAL:
        module = case(ref).module
        assert not module.training and not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
