"""The torch side of image encoders: normalisation in front of features, and measuring them for the card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from embedx.core.digests import tensors_digest
from embedx.core.errors import EncoderError


class PixelsToVectors(nn.Module):
    """`pixels` (n, 3, height, width) uint8 -> vectors (n, dim) float32, frozen and in eval mode.

    Normalisation and output are float32 whatever the precision of `features`: a runtime that wants another
    one casts `features`, not the whole module.

    Args:
        features: normalised images -> (n, dim).
        mean: per channel, on the 0..1 scale.
        std: per channel, on the 0..1 scale.
    """

    def __init__(self, features: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """What may compute in a lower precision."""
        return self.features

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise as torchvision does, in its order of operations, and return the features."""
        images = (pixels.to(torch.float32) / 255 - self.mean) / self.std
        dtype = next(self.features.parameters(), images).dtype
        return self.features(images.to(dtype)).to(torch.float32)


@dataclass(frozen=True)
class Measured:
    """What one forward pass of zeros and a walk over the weights tell.

    Attributes:
        dim: length of a vector.
        flops: floating-point operations per image (a multiply-add counts two).
        parameters: number of weights.
        digest: sha256 over the tensors that can change a vector.
    """

    dim: int
    flops: float
    parameters: int
    digest: str


def run_once(module: nn.Module, size: tuple[int, int], ref: str) -> Any:
    """Return what a module makes of one black image of (height, width) pixels.

    Raises:
        EncoderError: it does not take images of this size.
    """
    height, width = size
    try:
        return module(torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"{ref} does not run on images of {height} x {width}: {reason}",
            "Set preprocess.crop, or the image size in model_args, to what the weights were trained on",
        ) from error


def measure(module: nn.Module, size: tuple[int, int], ref: str) -> Measured:
    """Measure a frozen features module.

    Args:
        module: (n, 3, height, width) float32 -> (n, dim).
        size: (height, width) of its images in pixels.
        ref: what to call the encoder in messages.

    Raises:
        EncoderError: it does not take images of this size, or does not yield one vector for each.
    """
    module.requires_grad_(False)  # the counter fails on attention pooling whose queries are trainable
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        output = run_once(module, size, ref)
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or output.shape[0] != 1:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise EncoderError(f"{ref} yields {shape} for one image and not one vector", "Choose another layer or pooling")
    return measured(module, output, float(counter.get_total_flops()))


def measured(module: nn.Module, output: torch.Tensor, flops: float) -> Measured:
    """Return the facts of a module that yields (1, dim) vectors for one item.

    Args:
        module: a frozen module.
        output: what it made of one item.
        flops: operations of one unit of cost: an image, or a token.
    """
    # BatchNorm's counter of training steps takes no part in the forward pass.
    tensors = {name: t for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    return Measured(
        dim=output.shape[1],
        flops=flops,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        digest=tensors_digest((name, tensor.detach().cpu().numpy()) for name, tensor in tensors.items()),
    )
