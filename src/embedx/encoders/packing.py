"""Texts one behind the other instead of side by side: a transformers model then computes nothing for padding."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from embedx.encoders.transformers_modules import OFFSET_POSITIONS

PACKED = "embedx_packed"
"""The name of `_attention` among the library's. It has no maker of masks there, so models make none."""

_HARMLESS = {"position_ids", "position_embeddings", "deterministic"}
_HARMLESS |= {"use_cache", "output_attentions", "output_hidden_states"}
"""Arguments that models hand to attention, and that change nothing about it."""

_UNSAID = -1
"""In place of a window where a model says nothing of one, not even that there is none."""

_WINDOWS = ("sliding_window", "attention_chunk_size")
"""What configurations call a window that a token's attention ends at."""


@dataclass(frozen=True)
class _Texts:
    """Where the texts of a packed batch begin.

    Attributes:
        starts: (n + 1,) int32, on the device: of the texts, and where the last one ends.
        longest: tokens of the longest text, or up to 7 more.
        places: (tokens,) int64: where each token stands in the padded batch, row by row.
        rows: texts.
    """

    starts: torch.Tensor
    longest: int
    places: torch.Tensor
    rows: int


_now = threading.local()
"""The texts of the batch that a thread computes; not every model hands unknown arguments on to its attention."""


def pack_module(module: nn.Module) -> Callable[[], None] | None:
    """Let the transformers model within a module compute texts packed; what goes in and comes out stays padded.

    The source of the method: padding-free batches of flash attention (ByteTransformer, arXiv 2210.03052). On CUDA it
    needs bf16 and torch 2.11; elsewhere the texts' attention is computed one by one, which is for tests.
    Whether the vectors are the same is for the caller to check: a model may do with padding what cannot be seen here.

    Args:
        module: (input_ids, attention_mask) -> vectors, with real tokens on the left.

    Returns:
        What undoes it, or None if the module has no such model.
    """
    model = next((part for part in module.modules() if isinstance(part, transformers.PreTrainedModel)), None)
    if model is None or model.config.is_encoder_decoder:
        return None
    before = model.config._attn_implementation
    offset = model.config.model_type in OFFSET_POSITIONS
    first = model.config.pad_token_id + 1 if offset else 0
    AttentionInterface.register(PACKED, _attention)
    model.set_attn_implementation(PACKED)
    if model.config._attn_implementation != PACKED:  # it has attention of its own
        model.set_attn_implementation(before)  # of parts of it that have not
        return None
    plain = model.forward

    # Not hooks: sentence-transformers calls `forward` itself. It also asks for its signature.
    @functools.wraps(plain)
    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **named: Any) -> Any:
        width = input_ids.shape[1]
        places = attention_mask.flatten().nonzero().squeeze(1)
        starts = functional.pad(attention_mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        _now.texts = texts = _Texts(starts, width, places, len(input_ids))
        positions = (places % width + first)[None]
        ids = input_ids.flatten()[places][None]
        output = plain(input_ids=ids, attention_mask=None, position_ids=positions, **named)
        output["last_hidden_state"] = _padded(output["last_hidden_state"], texts)
        if output.get("hidden_states"):
            output["hidden_states"] = tuple(_padded(state, texts) for state in output["hidden_states"])
        return output

    model.forward = forward  # type: ignore[method-assign]

    def undo() -> None:
        del model.forward
        model.set_attn_implementation(before)

    return undo


def _padded(hidden: torch.Tensor, texts: _Texts) -> torch.Tensor:
    """Return (1, tokens, dim) as (n, longest, dim), with zeros for padding."""
    padded = hidden.new_zeros(texts.rows * texts.longest, hidden.shape[2])
    padded[texts.places] = hidden[0]
    return padded.view(texts.rows, texts.longest, -1)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = _UNSAID,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text: (1, heads, tokens, dim) -> (1, tokens, heads, dim), and no weights.

    Args:
        module: the model's attention; says whether tokens see only those before them, if `is_causal` does not.
        query: (1, heads, tokens, dim).
        key: like it, or of fewer heads.
        value: like the key.
        attention_mask: None.
        scaling: of the products; None is one by the root of dim.
        dropout: none in eval mode.
        is_causal: whether tokens see only those before them.
        sliding_window: tokens see only those that are less than so many away.
        named: what else the model says.

    Raises:
        NotImplementedError: the model wants something else of attention, such as a bias for distances.
    """
    texts: _Texts = _now.texts
    unknown = sorted(name for name, given in named.items() if given is not None and name not in _HARMLESS)
    if attention_mask is not None or unknown:
        raise NotImplementedError(f"packed attention does not know {', '.join(unknown) or 'masks'}")
    if sliding_window == _UNSAID:
        config = getattr(module, "config", None)
        if any(getattr(config, name, None) for name in _WINDOWS):
            raise NotImplementedError("the model has windows of attention and says them by its masks alone")
        sliding_window = None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    before = sliding_window - 1 if sliding_window else -1
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if query.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        heads = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
        ends = (texts.starts, texts.starts, texts.longest, texts.longest)
        window = (before, 0 if causal else before)
        return varlen_attn(*heads, *ends, scale=scaling, window_size=window)[None], None
    found = []
    for start, stop in itertools.pairwise(texts.starts.tolist()):
        one, two, three = (part[:, :, start:stop] for part in (query, key, value))
        seen = _seen(stop - start, before, causal, query.device)
        found.append(functional.scaled_dot_product_attention(one, two, three, seen, scale=scaling))
    return torch.cat(found, 2).transpose(1, 2), None


def _seen(count: int, before: int, causal: bool, device: torch.device) -> torch.Tensor:
    """Return (count, count) bool: which tokens (columns) each token (row) sees; `before` of -1 is all of them."""
    place = torch.arange(count, device=device)
    distance = place[:, None] - place[None]
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return seen & (distance.abs() <= before) if before >= 0 else seen
