"""What image encoders share: preprocessing, and opening from a remembered card. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedx.core.contracts import Broken, EncoderCard, Prepared
from embedx.core.errors import UsageError
from embedx.core.specs import EncoderSpec, PreprocessSpec
from embedx.encoders.cards import KnownCard, open_card
from embedx.encoders.resizing import Resizing

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

POOLINGS = ("avg", "max", "avgmax", "gem", "flatten", "cls")
"""How maps or tokens become a vector. Averages and maxima of tokens leave out class and register tokens."""

_SYNONYMS = {"mean": "avg", "token": "cls"}

_MAX_RESIZED_PIXELS = 2**25

Resize = Callable[["Image", tuple[int, int], str], "Image"]
"""An image, (width, height) and one of `INTERPOLATIONS` -> the image in that size."""


@dataclass(frozen=True)
class ImageTransform:
    """Resize, centre crop and normalisation: torchvision's and timm's evaluation transforms on PIL images.

    Attributes:
        resize: (height, width) in pixels. Equal values are the shorter side, as in torchvision's
            `Resize(int)`; different ones are covered, as in timm's `ResizeKeepRatio`.
        crop: (height, width) of the centre crop; images too small for it get black borders.
        interpolation: one of `INTERPOLATIONS`, with the antialiasing that Pillow always applies.
        mean: per channel, on the 0..1 scale.
        std: per channel, on the 0..1 scale.
        squash: resize to exactly `resize`, without keeping the aspect ratio.
        floor_crop: round the crop's offset down, as transformers does, and not half to even, as torchvision does.
        longest: resize to what fits into `resize`, as open_clip can; black borders fill the crop.
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    squash: bool = False
    floor_crop: bool = False
    longest: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON shape, lists for tuples, that `from_dict` reads back."""
        said = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        # Fields that came later must not change the fingerprints of transforms without them.
        return {name: value for name, value in said.items() if value or name not in ("floor_crop", "longest")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ImageTransform:
        """Build a transform from `to_dict`'s result."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**fields)

    def with_overrides(self, spec: PreprocessSpec) -> ImageTransform:
        """Return the transform with the fields that the spec sets.

        Raises:
            UsageError: a size below 1, an unknown interpolation, or not three channels.
        """
        for name in ("resize", "crop"):
            size = getattr(spec, name)
            if size is not None and not (isinstance(size, int) and size >= 1):
                raise UsageError(f"preprocess.{name} = {size!r} is no size in pixels", "Pass e.g. 224")
        if spec.interpolation is not None and spec.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"preprocess.interpolation {spec.interpolation!r} is unknown",
                f"Pass one of: {', '.join(INTERPOLATIONS)}",
            )
        for name in ("mean", "std"):
            values = getattr(spec, name)
            if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise UsageError(
                    f"preprocess.{name} = {list(values)} is not three channels' {name}",
                    "Pass three numbers on the 0..1 scale, e.g. [0.5, 0.5, 0.5]",
                )
        given: dict[str, Any] = {name: v for name, v in asdict(spec).items() if v is not None}
        for name in ("resize", "crop"):
            if name in given:
                given[name] = (given[name], given[name])
        return replace(self, **given)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after the resize of an image of this size."""
        to_height, to_width = self.resize
        if self.squash:
            return to_width, to_height
        if self.longest or to_height != to_width:
            ratio = (max if self.longest else min)(height / to_height, width / to_width)
            return round(width / ratio), round(height / ratio)
        shorter = to_height
        if width <= height:
            return shorter, int(shorter * height / width)
        return int(shorter * width / height), shorter

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) of the centre crop, beyond the image where that is too small.

        The rounding is torchvision's `center_crop`, half to even inside, or transformers', down; down when padding.
        """
        crop_height, crop_width = self.crop
        inside = math.floor if self.floor_crop else round
        left, top = (
            -((crop - size) // 2) if size < crop else inside((size - crop) / 2)
            for size, crop in ((width, crop_width), (height, crop_height))
        )
        return left, top, left + crop_width, top + crop_height

    def apply(self, image: Image, resize: Resize | None = None) -> np.ndarray:
        """Return (3, height, width) uint8 of an RGB image. Normalisation is left to the built module.

        Args:
            image: upright.
            resize: does it, but for ribbons; None is Pillow.
        """
        from PIL.Image import Resampling

        method = Resampling[self.interpolation.upper()]
        size = self.resized_size(*image.size)
        left, top, right, bottom = self.crop_box(*size)
        if size[0] * size[1] <= _MAX_RESIZED_PIXELS:
            resized = resize(image, size, self.interpolation) if resize else image.resize(size, method)
            cropped = resized.crop((left, top, right, bottom))
        else:
            # A ribbon: 1 x 16,000 pixels would become 256 x 4 million. Compute the crop's window only. Not
            # always, because Pillow takes its place in float32 and may swap its two passes: a grey level or so.
            inside = max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])
            scale_x, scale_y = image.width / size[0], image.height / size[1]
            box = inside[0] * scale_x, inside[1] * scale_y, inside[2] * scale_x, inside[3] * scale_y
            window = image.resize((inside[2] - inside[0], inside[3] - inside[1]), method, box=box)
            left, top = min(left, 0), min(top, 0)
            cropped = window.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return np.stack([np.asarray(channel) for channel in cropped.split()])


def canonical_pooling(pooling: str | None) -> str | None:
    """Return the pooling under its one name: `mean` is avg, timm's `token` is cls.

    Raises:
        UsageError: it is unknown.
    """
    name = _SYNONYMS.get(pooling or "", pooling)
    if name is not None and name not in POOLINGS:
        raise UsageError(f"--pooling {pooling!r} is unknown", f"Pass one of: {', '.join((*POOLINGS, *_SYNONYMS))}")
    return name


@dataclass(frozen=True)
class ImageFeatures:
    """A family's model with its weights, cut off where the vector is.

    Attributes:
        module: normalised (n, 3, height, width) float32 -> (n, dim); a torch module in eval mode.
        transform: its preprocessing.
        architecture: `library:name`, with what else fixes the graph in `model_args`.
        model_args: arguments of the library's constructor that change the vectors.
        layer: where the vector is taken, for people and the fingerprint.
        pooling: how spatial axes went away there.
        weights_file: the file the weights came from.
        licence: of the weights, where it is known.
    """

    module: Any
    transform: ImageTransform
    architecture: str
    model_args: dict[str, Any]
    layer: str
    pooling: str
    weights_file: Path
    licence: str = ""


@dataclass(frozen=True)
class Sharing:
    """How several layers and poolings of one model share a forward pass.

    Attributes:
        key: says which model; equal for those that can.
        load: specs -> the torch module, normalised images -> their vectors side by side.
    """

    key: str
    load: Callable[[Sequence[EncoderSpec]], Any]


class ImageEncoder:
    """An encoder of RGB images; `card` is all it needs until `build`.

    Args:
        card: what the encoder is.
        load: builds the torch module, normalised images -> vectors; called by `build`.
        sharing: how it shares a forward pass with other layers and poolings of its model; None is not at all.
    """

    def __init__(self, card: EncoderCard, load: Callable[[], Any], sharing: Sharing | None = None) -> None:
        self._card = card
        self._load = load
        self._sharing = sharing
        self.transform = ImageTransform.from_dict(card.identity["preprocessing"])
        self.resizing = Resizing(card.fingerprint)

    @property
    def card(self) -> EncoderCard:
        """What the encoder is."""
        return self._card

    @property
    def preparation(self) -> tuple[str, ImageTransform]:
        """What encoders share which prepare images alike."""
        return "image", self.transform

    def prepare(self, items: Sequence[Any]) -> Prepared:
        """Resize and crop upright RGB images to (3, height, width) uint8; thread-safe.

        Args:
            items: PIL images; a `Broken` among them stays one.
        """
        arrays: list[np.ndarray] = []
        positions: list[int] = []
        resized_by_torch = 0
        failures: dict[int, Broken] = {}
        for position, item in enumerate(items):
            if isinstance(item, Broken):
                failures[position] = item
            elif getattr(item, "mode", None) != "RGB":
                what = getattr(item, "mode", type(item).__name__)
                failures[position] = Broken("prepare", "ValueError", f"an RGB image was expected, not {what}")
            else:
                try:
                    array, by_torch = self.resizing.apply(self.transform, item)
                    arrays.append(array)
                    positions.append(position)
                    resized_by_torch += by_torch
                except Exception as error:
                    failures[position] = Broken.from_exception("prepare", error, isinstance(error, MemoryError))
        counts = {"resized_by_torch": resized_by_torch} if resized_by_torch else {}
        return Prepared(arrays, np.array(positions, dtype=np.int64), failures, counts=counts)

    def cost(self, prepared: Prepared) -> np.ndarray:
        """Return (m,) int64 ones: every image costs the same."""
        return np.ones(len(prepared.items), dtype=np.int64)

    def collate(self, entries: Sequence[Any]) -> dict[str, np.ndarray]:
        """Stack prepared images to `{"pixels": (n, 3, height, width) uint8}`."""
        return {"pixels": np.stack(entries)}

    def build(self) -> Any:
        """Return the torch module, `pixels` (n, 3, height, width) uint8 -> (n, dim) float32."""
        from embedx.encoders.image_module import PixelsToVectors

        return PixelsToVectors(self._load(), self.transform.mean, self.transform.std)

    @property
    def forward_key(self) -> tuple[str, ImageTransform] | None:
        """What encoders share which one forward pass can serve."""
        return (self._sharing.key, self.transform) if self._sharing else None

    def build_with(self, others: Sequence[ImageEncoder]) -> Any:
        """Return the torch module of this encoder and others of its model: their vectors side by side."""
        from embedx.encoders.image_module import PixelsToVectors

        assert self._sharing is not None
        specs = [EncoderSpec.from_dict(encoder.card.spec) for encoder in (self, *others)]
        return PixelsToVectors(self._sharing.load(specs), self.transform.mean, self.transform.std)

    def canaries(self) -> list[Any]:
        """Return six generated images of several shapes, the same on every machine."""
        return canary_images()


def canary_images() -> list[Image]:
    """Return six RGB images made of integer arithmetic only: gradients, stripes, discs, noise."""
    from PIL import Image as PIL

    images = []
    shapes = ((240, 320), (320, 240), (224, 224), (97, 301), (500, 333), (64, 64))
    for number, (height, width) in enumerate(shapes):
        y, x = np.mgrid[0:height, 0:width].astype(np.int64)
        noise = ((x * 73856093) ^ (y * 19349663) ^ (number * 83492791)) * 2654435761 >> 16
        disc = ((x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 3) ** 2) * 160
        layers = (
            (x * 255 // width, y * 255 // height, 255 - x * 255 // width),
            ((x // 16 % 2) * 255, (x // 16 % 2) * 200, (y // 24 % 2) * 255),
            (noise, noise >> 8, noise >> 4),
            (disc + 40, disc, 90 + 0 * x),
            (disc + (noise & 63), y * 255 // height, 200 - disc),
            ((x * y) >> 4, (x + y) * 2, 255 - ((x * y) >> 5)),
        )[number]
        images.append(PIL.fromarray(np.stack([c & 255 for c in layers], axis=2).astype(np.uint8)))
    return images


def open_image_encoder(
    spec: EncoderSpec,
    packages: Sequence[str],
    load: Callable[[EncoderSpec], ImageFeatures],
    load_together: Callable[[Sequence[EncoderSpec]], Any] | None = None,
    beside: Any = None,
) -> ImageEncoder:
    """Open an encoder by its remembered card, or build the model once to make the card.

    Args:
        spec: which encoder.
        packages: installed packages whose versions can change the model's graph.
        load: the family's way from a spec to features; imports torch.
        load_together: its way from specs of one model, of several layers and poolings, to a module that yields their
            vectors side by side; None where it has none.
        beside: JSON-able; what else the card depends on, such as the state of a configuration file.

    Raises:
        EncoderError: the weights are missing or do not fit, or the model yields no vectors.
        UsageError: the spec asks for something the family does not know.
    """
    known = open_card(spec, packages, lambda spec: _describe(spec, load(spec)), beside)

    def reload() -> Any:
        known.check_weights()
        return load(EncoderSpec.from_dict(known.card.spec)).module

    def reload_together(specs: Sequence[EncoderSpec]) -> Any:
        known.check_weights()
        assert load_together is not None
        return load_together(specs)

    return ImageEncoder(known.card, reload, Sharing(known.model_key, reload_together) if load_together else None)


def _describe(spec: EncoderSpec, features: ImageFeatures) -> KnownCard:
    from embedx.core.digests import fingerprint
    from embedx.encoders.image_module import measure

    transform = features.transform
    measured = measure(features.module, transform.crop, spec.ref)
    identity = {
        "architecture": features.architecture,
        "model_args": features.model_args,
        "layer": features.layer,
        "pooling": features.pooling,
        "preprocessing": transform.to_dict(),
        "tensors": measured.digest,
    }
    card = EncoderCard(
        ref=spec.ref,
        family=spec.family,
        modality="image",
        dim=measured.dim,
        fingerprint=fingerprint(identity),
        identity=identity,
        spec=spec.to_dict(),
        normalized=False,
        flops=measured.flops,
        parameters=measured.parameters,
        input={"size": [3, *transform.crop]},
        weights_from=str(features.weights_file),
        licence=features.licence,
    )
    return KnownCard(card, features.weights_file)
