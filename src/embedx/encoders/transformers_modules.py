"""The torch side of transformers models: loaded from safetensors without foreign code, pooled to vectors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from embedx.core.errors import EncoderError
from embedx.encoders.model_folder import read_json

OFFSET_POSITIONS = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "xmod"),
    *("mpnet", "longformer", "data2vec-text", "esm"),
)
"""Model types that number positions from the padding token's id plus one, so that the first ones are never read."""


def load_config(folder: Path) -> Any:
    """Return the library's configuration of a model folder.

    Raises:
        EncoderError: the model needs code of its own, or transformers does not know its type.
    """
    raw = read_json(folder / "config.json")
    try:
        return transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # ValueError, KeyError or ImportError, as it happens
        if raw.get("auto_map"):
            raise EncoderError(
                f"{folder} needs Python code of its own ({', '.join(map(str, raw['auto_map'].values()))}), "
                "and foreign code is never run",
                "Choose a model whose architecture is part of transformers",
            ) from error
        raise EncoderError(
            f"transformers {transformers.__version__} does not know the model type {raw.get('model_type')!r} "
            f"of {folder}",
            "Install a newer transformers, or choose another model",
        ) from error


def position_limit(config: Any) -> int | None:
    """Return the longest text in tokens that a configuration's positions admit; None where they end nowhere."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    return positions - config.pad_token_id - 1 if config.model_type in OFFSET_POSITIONS else positions


def is_decoder(config: Any) -> bool:
    """Whether a model reads from left to right only: a language model whose last token has seen all others."""
    from transformers.models.auto import modeling_auto

    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return config.model_type in causal and config.model_type not in masked


def has_lone_encoder(config: Any) -> bool:
    """Whether a model is an encoder-decoder, such as T5, of which transformers can load the encoder alone."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as ENCODERS

    return str(ENCODERS.get(config.model_type)).endswith("EncoderModel")


def load_text_model(folder: Path, max_tokens: int | None) -> nn.Module:
    """Load a text model without its head, of an encoder-decoder only the encoder; float32, in eval mode.

    Args:
        folder: the model.
        max_tokens: the longest text that it will read; None is any.

    Raises:
        EncoderError: there is no encoder to load, or weights are missing.
    """
    config = load_config(folder)
    loader = transformers.AutoModelForTextEncoding if has_lone_encoder(config) else transformers.AutoModel
    if config.is_encoder_decoder and not has_lone_encoder(config):
        raise EncoderError(
            f"{folder} is an encoder-decoder ({config.model_type}) whose encoder transformers does not load alone",
            "Choose an encoder, a decoder, or a T5",
        )
    how: dict[str, Any] = {}
    window = getattr(config, "sliding_window", None)
    if window and (max_tokens is None or window < max_tokens):
        # Padding farther than a window from every token has nothing to attend to; openvino's fused attention makes
        # that NaN, which spreads. The plain implementation masks by a large number instead.
        how["attn_implementation"] = "eager"
    return load_model(loader, folder, config, **how)[0]


def load_model(loader: Any, folder: Path, config: Any, **how: Any) -> tuple[nn.Module, bool]:
    """Load a model's weights into one of the library's classes.

    Args:
        loader: the class.
        folder: the model.
        config: its configuration.
        how: further arguments of `from_pretrained`.

    Returns:
        The model in float32 and eval mode, and whether the weights of its pooler, if it has one, were there: the
        library fills with random numbers what a checkpoint lacks.

    Raises:
        EncoderError: tensors other than the pooler's are missing, or it does not load.
    """
    # Its bars and remarks would stand between our own lines of progress.
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    config.use_cache = False
    try:
        model, report = loader.from_pretrained(
            str(folder),
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **how,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(f"{folder} does not load: {reason}", "Fetch the model again") from error
    missing = sorted(report["missing_keys"])
    needed = [name for name in missing if "pooler." not in name]
    if needed:
        raise EncoderError(
            f"the weights of {folder} lack {len(needed)} tensors ({', '.join(needed[:3])}, ...)",
            "Fetch the model again, or correct its config.json",
        )
    return model.eval(), not missing


def pool_tokens(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Reduce token vectors to one vector a text, in float32; padding takes no part.

    Args:
        hidden: (n, tokens, dim).
        mask: (n, tokens) int64, 1 for real tokens, which stand on the left.
        pooling: cls (the first token), mean, max or last (the last real token).

    Returns:
        (n, dim) float32.
    """
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        last = (mask.sum(1) - 1).view(-1, 1, 1).expand(-1, 1, hidden.shape[2])
        return hidden.gather(1, last).squeeze(1)
    real = mask.unsqueeze(2)
    if pooling == "max":
        return hidden.masked_fill(real == 0, float("-inf")).amax(1)
    return (hidden * real).sum(1) / real.sum(1)


class TextVectors(nn.Module):
    """A transformers text model, pooled: (input_ids, attention_mask) (n, tokens) int64 -> (n, dim) float32.

    Args:
        model: the library's, without a head.
        layers: which hidden states are averaged, counted from the end: -1 is the last one.
        pooling: cls, mean, max or last.
    """

    def __init__(self, model: nn.Module, layers: Iterable[int], pooling: str) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.pooling = pooling
        self.eval().requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """What may compute in a lower precision: pooling may not."""
        return self.model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (n, dim) float32."""
        hidden = mean_of_hidden(self.model, self.layers, input_ids=input_ids, attention_mask=attention_mask)
        return pool_tokens(hidden, attention_mask, self.pooling)


class SeveralTextVectors(nn.Module):
    """A text model's vectors of several layers and poolings side by side, as `TextVectors` makes each of them.

    Args:
        model: the library's, without a head.
        wanted: (layers, pooling) of each vector.
    """

    def __init__(self, model: nn.Module, wanted: Iterable[tuple[Iterable[int], str]]) -> None:
        super().__init__()
        self.model = model
        self.wanted = [(tuple(layers), pooling) for layers, pooling in wanted]
        self.eval().requires_grad_(False)

    @property
    def backbone(self) -> nn.Module:
        """What may compute in a lower precision: pooling may not."""
        return self.model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (n, sum of the dims) float32."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        hidden = [hidden_of(output, layers) for layers, _ in self.wanted]
        parts = [pool_tokens(one, attention_mask, pooling) for one, (_, pooling) in zip(hidden, self.wanted)]
        return torch.cat(parts, dim=1)


def mean_of_hidden(model: nn.Module, layers: tuple[int, ...], **inputs: torch.Tensor) -> torch.Tensor:
    """Return the mean of some hidden states; of none, the last one, which has passed the final normalisation."""
    return hidden_of(model(**inputs, output_hidden_states=True) if layers else model(**inputs), layers)


def hidden_of(output: Any, layers: tuple[int, ...]) -> torch.Tensor:
    """Return the mean of some hidden states of a model's output; of none, the last one."""
    if not layers:
        return output.last_hidden_state
    states = output.hidden_states
    return torch.stack([states[layer] for layer in layers]).mean(0) if len(layers) > 1 else states[layers[0]]
