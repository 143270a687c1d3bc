"""The torch side of timm's layers: features before the head, numbered blocks, and how its tokens begin."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from embedx.encoders.image_layers import TokenLayout


class BeforeHead(nn.Module):
    """A timm model's unpooled features.

    Args:
        model: takes images.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Return `{"node": maps or tokens}`."""
        return {"node": self.model.forward_features(images)}


class Intermediates(nn.Module):
    """A timm model's outputs of some blocks or stages.

    Args:
        model: has `forward_intermediates`.
        numbers: of the blocks or stages, from 0.
    """

    def __init__(self, model: nn.Module, numbers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.numbers = sorted(set(numbers))
        takes = inspect.signature(model.forward_intermediates).parameters
        self.options = {"return_prefix_tokens": True} if "return_prefix_tokens" in takes else {}

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Return number -> maps, channels first; of models with class or register tokens the tokens, in order."""
        outputs = self.model.forward_intermediates(
            images, indices=self.numbers, intermediates_only=True, stop_early=True, **self.options
        )
        return {str(number): _tokens(output) for number, output in zip(self.numbers, outputs, strict=True)}


def _tokens(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    maps, prefix = output
    return torch.cat((prefix, maps.flatten(2).transpose(1, 2)), dim=1)


class Intermediate(Intermediates):
    """A timm model's output of one block or stage.

    Args:
        model: has `forward_intermediates`.
        number: of the block or stage, from 0.
    """

    def __init__(self, model: nn.Module, number: int) -> None:
        super().__init__(model, [number])

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Return `{"node": the output}`."""
        (output,) = super().forward(images).values()
        return {"node": output}


def token_layout(model: nn.Module) -> TokenLayout:
    """Return how a timm model's sequences of tokens begin."""
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", 0) or 0
    return TokenLayout(
        patches=patches,
        prefix=getattr(model, "num_prefix_tokens", 0),
        has_class=getattr(model, "cls_token", None) is not None,
        default="cls" if getattr(model, "global_pool", "") == "token" else "avg",
    )
