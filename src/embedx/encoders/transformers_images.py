"""The torch side of transformers' image models: their vector, and their image processor as an `ImageTransform`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from embedx.core.errors import EncoderError, UsageError
from embedx.encoders.image_layers import SideBySide, TokenLayout, Wanted, pool_layer
from embedx.encoders.transformers_modules import hidden_of, load_config, load_model, mean_of_hidden
from embedx.encoders.vision import ImageTransform

TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "metaclip_2": "MetaClip2VisionModelWithProjection",
    "siglip": "SiglipVisionModel",
}
"""Two-tower models -> the class of their image tower, whose vector is what `get_image_features` returns."""

CLASS_TOKEN = ("vit", "vit_msn", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""Model types whose image feature is the class token after the last normalisation."""

PLAIN_PROCESSORS = (
    *("ViTImageProcessor", "DeiTImageProcessor", "BeitImageProcessor", "BitImageProcessor"),
    *("CLIPImageProcessor", "SiglipImageProcessor", "ConvNextImageProcessor"),
)
"""Image processors that resize, crop, rescale and normalise, and do nothing else."""


class ImageNode(nn.Module):
    """An image model up to the tensor that is pooled.

    Args:
        model: the library's.
        layers: which hidden states are averaged, counted from the end; none is the last, normalised one.
        output: `pooled` for the model's own vector, `hidden` for tokens or maps.
    """

    def __init__(self, model: nn.Module, layers: tuple[int, ...], output: str) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.output = output

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `{"node": (n, dim), (n, tokens, dim) or (n, dim, height, width)}` of normalised images."""
        if self.output == "pooled":
            return {"node": _pooled(self.model(pixel_values=images)).flatten(1)}
        return {"node": mean_of_hidden(self.model, self.layers, pixel_values=images)}


@dataclass(frozen=True)
class VectorOf:
    """A vector of an image model.

    Attributes:
        layers: which hidden states are averaged; none is the last one.
        pooling: one of `vision.POOLINGS`; None is the model's own way.
    """

    layers: tuple[int, ...]
    pooling: str | None


class ImageNodes(nn.Module):
    """An image model up to the tensors that are pooled to several vectors.

    Args:
        model: the library's.
        nodes: name -> layers and output, as for `ImageNode`.
    """

    def __init__(self, model: nn.Module, nodes: dict[str, tuple[tuple[int, ...], str]]) -> None:
        super().__init__()
        self.model = model
        self.nodes = nodes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return name -> tensor of normalised images."""
        output = self.model(pixel_values=images, output_hidden_states=True)
        return {
            name: _pooled(output).flatten(1) if kind == "pooled" else hidden_of(output, layers)
            for name, (layers, kind) in self.nodes.items()
        }


def load_image_modules(folder: Path, wanted: Sequence[VectorOf], size: tuple[int, int], ref: str) -> nn.Module:
    """Load an image model once for several vectors; normalised images -> the vectors side by side."""
    model, has_pooler = _load_tower(folder)
    with torch.no_grad():
        output = model(pixel_values=torch.zeros(1, 3, *size), output_hidden_states=True)
    has_own = model.config.model_type not in CLASS_TOKEN and has_pooler and _pooled(output) is not None
    owns = [has_own and not one.layers and one.pooling is None for one in wanted]
    if not any(owns) and getattr(model, "pooler", None) is not None:
        model.pooler = None
    nodes = {
        f"{number}": (one.layers, "pooled" if own else "hidden") for number, (one, own) in enumerate(zip(wanted, owns))
    }
    vectors = [Wanted(name, one.pooling, f"layer of {ref}") for name, one in zip(nodes, wanted)]
    layout = _token_layout(model, output.last_hidden_state)
    return SideBySide(ImageNodes(model, nodes), size, vectors, layout).eval()


def _pooled(output: Any) -> Any:
    embeds = getattr(output, "image_embeds", None)
    return getattr(output, "pooler_output", None) if embeds is None else embeds


def load_image_module(
    folder: Path, layers: tuple[int, ...], pooling: str | None, size: tuple[int, int], ref: str
) -> tuple[nn.Module, str]:
    """Load an image model and pool it to vectors.

    Args:
        folder: the model.
        layers: which hidden states are averaged; none is the last one.
        pooling: one of `vision.POOLINGS`; None is the model's own way.
        size: (height, width) of its images in pixels.
        ref: the encoder in messages.

    Returns:
        The module, normalised images -> (n, dim), and the pooling that it does.

    Raises:
        EncoderError: the model is of a kind that embedx does not run, or weights are missing.
        UsageError: it has no such layer or pooling.
    """
    model, has_pooler = _load_tower(folder)
    with torch.no_grad():
        try:
            output = model(pixel_values=torch.zeros(1, 3, *size), output_hidden_states=True)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise EncoderError(
                f"{ref} does not run on {size[0]} x {size[1]} pixels: {reason}", "Check its size"
            ) from error
    n_layers = len(output.hidden_states) - 1
    if layers and -min(layers) > n_layers:
        raise UsageError(f"--layer {min(layers)}: {ref} has {n_layers} layers", f"Pass -1 to -{n_layers}")
    own = not layers and pooling is None and model.config.model_type not in CLASS_TOKEN
    if own and has_pooler and _pooled(output) is not None:
        return pool_layer(ImageNode(model, (), "pooled"), size, None, TokenLayout(), ref)[0], "its own"
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # perhaps with random weights, which would be part of the fingerprint
    node = ImageNode(model, layers, "hidden")
    return pool_layer(node, size, pooling, _token_layout(model, output.last_hidden_state), f"layer of {ref}")


def _load_tower(folder: Path) -> tuple[nn.Module, bool]:
    config = load_config(folder)
    if config.model_type == "vit_mae":
        raise EncoderError(f"{folder} hides patches at random (vit_mae)", "Use a ViT with the same weights")
    if config.model_type in TOWERS:
        tower = config.vision_config
        if hasattr(config, "projection_dim"):
            tower.projection_dim = config.projection_dim  # the whole model's holds, where its towers say another
        return load_model(getattr(transformers, TOWERS[config.model_type]), folder, tower)
    if config.sub_configs:
        raise EncoderError(
            f"{folder} is a model of several modalities ({config.model_type}), which embedx does not run",
            f"Known: {', '.join(TOWERS)}; or use its vision model alone",
        )
    named = (config.architectures or [""])[0]
    # The projection is a class of its own and not what AutoModel makes of a vision tower's configuration.
    loader = getattr(transformers, named) if named.endswith("VisionModelWithProjection") else transformers.AutoModel
    return load_model(loader, folder, config)


def _token_layout(model: nn.Module, last: torch.Tensor) -> TokenLayout:
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    has_class = bool(names & {"cls_token", "class_embedding"})
    prefix = has_class + ("distillation_token" in names) + getattr(model.config, "num_register_tokens", 0)
    patches = last.shape[1] - prefix if last.ndim == 3 else 0
    return TokenLayout(patches, prefix, has_class, default="cls" if has_class else "avg")


def load_transform(folder: Path) -> ImageTransform:
    """Translate a model's image processor.

    The result is that of transformers' Pillow backend, in which the models were published; its torchvision backend
    differs by a grey level here and there.

    Raises:
        EncoderError: it does something else than resize, crop, rescale and normalise.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises anything, from KeyError to ImportError
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(f"the image processor of {folder} does not load: {reason}", "Use another model") from error
    name = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    problem = _untranslatable(processor, name)
    if problem:
        raise EncoderError(
            f"the image processor of {folder} cannot be translated: {problem}",
            "Use another model, or the same one from timm",
        )
    resize, crop, squash = _sizes(processor, name)
    return ImageTransform(
        resize=resize,
        crop=crop,
        interpolation=_interpolation(processor.resample),
        mean=tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        squash=squash,
        floor_crop=True,
    )


def _untranslatable(processor: Any, name: str) -> str:
    size = processor.size
    crops = processor.do_center_crop or name == "ConvNextImageProcessor"
    checks = {
        f"{name} is not one of {', '.join(PLAIN_PROCESSORS)}": name not in PLAIN_PROCESSORS,
        "it does not resize": not processor.do_resize,
        "it does not scale to 0..1": not (
            processor.do_rescale and math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-6)
        ),
        "it pads": bool(getattr(processor, "do_pad", False)),
        f"its size is {size}": bool(_edge(size, "longest_edge") or _edge(size, "max_height")),
        "it keeps the aspect ratio and does not crop": bool(_edge(size, "shortest_edge")) and not crops,
    }
    return next((problem for problem, found in checks.items() if found), "")


def _edge(size: Any, name: str) -> int | None:
    """Read one entry of a processor's size, a dict or an object with its interface."""
    value = size.get(name)
    return None if value is None else int(value)


def _sizes(processor: Any, name: str) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Return (height, width) of resize and crop, and whether the aspect ratio is given up."""
    shortest = _edge(processor.size, "shortest_edge")
    if name == "ConvNextImageProcessor" and shortest:
        if shortest >= 384:  # warped, not cropped, as its authors evaluated it
            return (shortest, shortest), (shortest, shortest), True
        resized = int(shortest / processor.crop_pct)
        return (resized, resized), (shortest, shortest), False
    height, width = _edge(processor.size, "height"), _edge(processor.size, "width")
    resize = (shortest, shortest) if shortest else (int(height or 0), int(width or 0))
    crop = processor.crop_size if processor.do_center_crop else None
    if crop is None:
        return resize, resize, True
    return resize, (int(_edge(crop, "height") or 0), int(_edge(crop, "width") or 0)), not shortest


def _interpolation(resample: Any) -> str:
    from PIL.Image import Resampling

    return Resampling(int(resample)).name.lower()
