"""Layers of image models: a forward pass that stops there, its maps or tokens pooled to vectors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from embedx.core.errors import UsageError
from embedx.encoders.image_module import run_once

GEM_POWER = 3.0
"""Exponent of generalised-mean pooling; Radenovic, Tolias and Chum (2018), arXiv:1711.02512, begin training with it."""

GEM_EPSILON = 1e-6
"""Least activation that GeM counts, as in the authors' published code."""


@dataclass(frozen=True)
class TokenLayout:
    """How a model's sequences of tokens begin.

    Attributes:
        patches: tokens that are patches of the image; a sequence of just so many has no prefix.
        prefix: tokens before them: class, distillation and register tokens.
        has_class: whether the first of those is a class token.
        default: cls or avg, the model's own pooling.
    """

    patches: int = 0
    prefix: int = 0
    has_class: bool = False
    default: str = "avg"


class PooledNode(nn.Module):
    """What a model computes at one layer, as vectors. Make it with `pool_layer`.

    Args:
        extractor: images -> `{"node": tensor}`, as torchvision's `create_feature_extractor` makes it.
        pool: the tensor -> (n, dim).
    """

    def __init__(self, extractor: nn.Module, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.extractor = extractor
        self.pool = pool

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, dim) float32."""
        return self.pool(self.extractor(images)["node"].float())


class UpToModule(nn.Module):
    """A model that runs until one of its modules has its output, which is the result.

    The rest is not computed: a hook leaves the forward pass by an exception, so that nothing is kept between
    calls and several threads may run it.

    Args:
        model: takes images.
        layer: name of the module, as in `named_modules`.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        model.get_submodule(layer).register_forward_hook(_leave)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Return `{"node": output of the layer}`."""
        try:
            self.model(images)
        except _ReachedError as reached:
            return {"node": reached.output}
        raise UsageError(f"layer {self.layer} takes no part in the forward pass", "Choose another layer")


class UpToModules(nn.Module):
    """A model that runs until several of its modules have their output; the rest is not computed.

    Args:
        model: takes images.
        layers: names of the modules, as in `named_modules`.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.layers = list(dict.fromkeys(layers))
        self._call = threading.local()  # several threads may run it
        for layer in self.layers:
            model.get_submodule(layer).register_forward_hook(partial(self._note, layer))

    def _note(self, layer: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._call.nodes.setdefault(layer, output)
        if len(self._call.nodes) == len(self.layers):
            raise _ReachedError(self._call.nodes)

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        """Return layer -> its output."""
        self._call.nodes = {}
        try:
            self.model(images)
        except _ReachedError as reached:
            return reached.output
        finally:
            del self._call.nodes
        raise UsageError(f"layers {', '.join(self.layers)} take no part in the forward pass", "Choose others")


class _ReachedError(Exception):
    """Carries a layer's output out of the forward pass."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
    raise _ReachedError(output)


def pool_layer(
    extractor: nn.Module, size: tuple[int, int], pooling: str | None, tokens: TokenLayout, what: str
) -> tuple[PooledNode, str]:
    """Pool a layer's output to one vector per image, as its shape asks for.

    Maps may have their channels first or last: the two axes in the image's proportions are the spatial ones.

    Args:
        extractor: images -> `{"node": tensor}`.
        size: (height, width) of the images in pixels.
        pooling: one of `vision.POOLINGS`; None is avg of maps, and of tokens the model's own.
        tokens: how the model's token sequences begin.
        what: the layer and encoder in messages.

    Returns:
        The module, and the pooling that it does; `none` where the layer's output is a vector already.

    Raises:
        UsageError: the layer's output cannot be pooled, or not so.
    """
    with torch.no_grad():
        node = run_once(extractor, size, what)["node"]
    if not isinstance(node, torch.Tensor) or node.shape[0] != 1 or node.ndim not in (2, 3, 4):
        shape = tuple(node.shape) if isinstance(node, torch.Tensor) else type(node).__name__
        raise UsageError(f"{what} gives {shape} for one image: neither maps, tokens nor a vector", "Choose another one")
    if node.ndim == 2:
        if pooling not in (None, "flatten"):
            raise UsageError(f"{what} is a vector already: --pooling {pooling} has nothing to pool", "Leave it out")
        return PooledNode(extractor, _Pool("flatten", ())), "none"
    if node.ndim == 3:
        return _pool_tokens(extractor, node.shape[1], pooling, tokens, what)
    if pooling == "cls":
        raise UsageError(f"{what} gives maps, which have no class token", "Pass avg, max, avgmax, gem or flatten")
    return PooledNode(extractor, _Pool(pooling or "avg", _spatial_axes(node.shape, size, what))), pooling or "avg"


def _pool_tokens(
    extractor: nn.Module, n_tokens: int, pooling: str | None, tokens: TokenLayout, what: str
) -> tuple[PooledNode, str]:
    # Some models put their class token in front only after some blocks.
    prefix = 0 if n_tokens == tokens.patches else tokens.prefix
    has_class = tokens.has_class and prefix > 0
    if pooling == "cls" and not has_class:
        raise UsageError(f"{what} has no class token", "Pass avg, max, avgmax, gem or flatten")
    chosen = pooling or (tokens.default if has_class else "avg")
    return PooledNode(extractor, _Pool(chosen, (1,), skip=prefix)), chosen


def _spatial_axes(shape: torch.Size, size: tuple[int, int], what: str) -> tuple[int, int]:
    height, width = size
    for axes in ((2, 3), (1, 2)):
        rows, columns = (shape[axis] for axis in axes)
        if abs(rows * width - columns * height) <= max(height, width):  # up to one cell of rounding
            return axes
    raise UsageError(
        f"{what} gives {tuple(shape)}, in which no axes are the image's height and width", "Choose another"
    )


@dataclass(frozen=True)
class Wanted:
    """A vector that is wanted of a forward pass.

    Attributes:
        node: the name of what it is made of, among the extractor's.
        pooling: one of `vision.POOLINGS`; None as for `pool_layer`.
        what: the layer and encoder in messages.
    """

    node: str
    pooling: str | None
    what: str


class SideBySide(nn.Module):
    """Several vectors of one forward pass, side by side.

    Args:
        extractor: images -> name -> tensor.
        size: (height, width) of the images in pixels.
        wanted: the vectors.
        tokens: how the model's token sequences begin.
    """

    def __init__(
        self, extractor: nn.Module, size: tuple[int, int], wanted: Sequence[Wanted], tokens: TokenLayout
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.wanted = list(wanted)
        self.pools = [
            pool_layer(_One(extractor, one.node), size, one.pooling, tokens, one.what)[0].pool for one in wanted
        ]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, sum of the dims) float32."""
        nodes = self.extractor(images)
        return torch.cat([pool(nodes[one.node].float()) for one, pool in zip(self.wanted, self.pools)], dim=1)


class _One(nn.Module):
    """One node of an extractor of several."""

    def __init__(self, extractor: nn.Module, node: str) -> None:
        super().__init__()
        self.extractor = extractor
        self.node = node

    def forward(self, images: torch.Tensor) -> dict[str, Any]:
        return {"node": self.extractor(images)[self.node]}


@dataclass(frozen=True)
class _Pool:
    """Reduces the given axes; a plain callable, so that it leaves no trace in a state dict.

    Attributes:
        pooling: one of `vision.POOLINGS`.
        axes: which ones are pooled.
        skip: tokens at the beginning that are no patches and are left out, except by cls and flatten.
    """

    pooling: str
    axes: tuple[int, ...]
    skip: int = 0

    def __call__(self, node: torch.Tensor) -> torch.Tensor:
        if self.pooling == "flatten":
            return node.flatten(1)
        if self.pooling == "cls":
            return node[:, 0]
        node = node[:, self.skip :]
        if self.pooling == "avg":
            return node.mean(self.axes)
        if self.pooling == "max":
            return node.amax(self.axes)
        if self.pooling == "avgmax":  # as timm defines it
            return 0.5 * (node.mean(self.axes) + node.amax(self.axes))
        return node.clamp(min=GEM_EPSILON).pow(GEM_POWER).mean(self.axes).pow(1 / GEM_POWER)


def drop_unreached(module: nn.Module, size: tuple[int, int], ref: str) -> None:
    """Set the tensors to None that take no part in a module's output, such as the layers after the one asked for.

    They would fill memory, and change the fingerprint of vectors that they do not change. The autograd graph tells
    which parameters take part; a module's buffers go with its parameters.
    """
    with torch.enable_grad():
        reached = _parameters_behind(run_once(module, size, ref))
    for part in module.modules():
        own = list(part.named_parameters(recurse=False))
        unreached = [name for name, parameter in own if id(parameter) not in reached]
        if own and len(unreached) == len(own):
            unreached += [name for name, _ in part.named_buffers(recurse=False)]
        for name in unreached:
            setattr(part, name, None)


def _parameters_behind(output: torch.Tensor) -> set[int]:
    found: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting.extend(parent for parent, _ in node.next_functions)
    return found
