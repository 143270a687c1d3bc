"""sentence-transformers models: the whole module pipeline, with its prompts; opened without importing torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders.cards import KnownCard
from embedx.encoders.model_folder import config_identity, find_folder, read_json, weights_files
from embedx.encoders.text import TextEncoder, open_text_encoder, text_card
from embedx.encoders.tokenization import TextTokenizer, library_tokenizer, read_tokenizer
from embedx.encoders.weights import WeightsFacts, safetensors_facts

RECIPE = 2
"""Raise when the code below changes vectors; it is part of the fingerprint."""

PACKAGES = ("sentence-transformers", "transformers", "tokenizers")

MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "StaticEmbedding", "Dropout", "LayerNorm")
"""The library's modules that embedx runs."""

_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How older versions of the library saved `pooling_mode`, in the order in which it concatenates several."""

_TRANSFORMER_SETTINGS = (
    *("max_seq_length", "do_lower_case", "unpad_inputs", "modality_config", "module_output_name"),
    *("model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs"),
)
"""Keys of sentence_bert_config.json that are read here, or checked by `_check_settings`."""


@dataclass(frozen=True)
class Module:
    """One module of a pipeline, read from its folder.

    Attributes:
        kind: its class in the library.
        folder: where its configuration and weights lie.
        config: what it says of itself; of a Transformer, what sentence-transformers says of it.
    """

    kind: str
    folder: Path
    config: dict[str, Any]

    def identity(self) -> list[Any]:
        """Return what of its configuration changes vectors, the same for every version that saved it."""
        if self.kind == "Pooling":
            return [self.kind, {"modes": self.pooling_modes, "include_prompt": self.includes_prompt}]
        if self.kind in ("Dense", "LayerNorm"):
            return [self.kind, {key: value for key, value in self.config.items() if value is not None}]
        return [self.kind]

    @property
    def pooling_modes(self) -> list[str]:
        """The ways in which a Pooling reduces tokens, in the order of their parts in the vector."""
        modes = self.config.get("pooling_mode") or [n for flag, n in _POOLING_FLAGS.items() if self.config.get(flag)]
        return [modes] if isinstance(modes, str) else list(modes) or ["mean"]

    @property
    def includes_prompt(self) -> bool:
        """Whether a Pooling takes the tokens of the prompt in."""
        return bool(self.config.get("include_prompt", True))

    def facts(self) -> WeightsFacts | None:
        """Return what is known of its weights; None where it has none."""
        has_weights = self.kind in ("Transformer", "StaticEmbedding", "Dense", "LayerNorm")
        return safetensors_facts(weights_files(self.folder)) if has_weights else None

    def dim(self, dim: int) -> int:
        """Return the length of what it yields of vectors of length `dim`."""
        if self.kind == "Pooling":
            return dim * len(self.pooling_modes)
        return int(self.config["out_features"]) if self.kind == "Dense" else dim


@dataclass(frozen=True)
class Prompts:
    """What a model's configuration says of prompts.

    Attributes:
        named: name -> words.
        default: the name of the one that `SentenceTransformer.encode` takes.
    """

    named: dict[str, str]
    default: str | None = None

    @property
    def knows_roles(self) -> bool:
        """Whether the model was trained with a prompt for queries or for documents."""
        return bool(self.named.get("query") or self.named.get("document"))

    def words(self, prompt: str | None) -> str:
        """Return the words before a text.

        Args:
            prompt: a name, or the words themselves; None is what `SentenceTransformer.encode_document` takes: the
                prompt `document`, even where the model has only a `passage`, because the library adds an empty
                `document` to every model; and where the model knows no roles, the default of `encode`.

        Raises:
            UsageError: it looks like a name that the model does not know.
        """
        if prompt is None:
            return self._of_role("document")
        known = {"query": "", "document": "", **self.named}
        if prompt not in known and self.named and prompt.isidentifier():
            raise UsageError(
                f"prompt {prompt!r} is not one of the model's: {', '.join(known)}",
                "Pass a name, or the words with what stands between them and the text, such as 'query: '",
            )
        return known.get(prompt, prompt)

    def query_words(self) -> str:
        """Return the words before a query: what `SentenceTransformer.encode_query` takes, or `encode`'s default."""
        return self._of_role("query")

    def _of_role(self, role: str) -> str:
        name = role if self.knows_roles else self.default
        return self.named.get(name or "", "")


def open_encoder(spec: EncoderSpec) -> TextEncoder:
    """Open a model by the path of its folder, or by its name on the Hugging Face hub.

    Raises:
        EncoderError: it is not found, cannot be fetched, or has a module that embedx does not run.
        UsageError: a layer, pooling, model_args or preprocess, which the folder itself decides.
    """
    return open_folder(find_folder(spec, "sentence-transformers"), spec)


def open_folder(folder: Path, spec: EncoderSpec, licence: str = "") -> TextEncoder:
    """Open a model folder."""
    if spec.layer or spec.pooling or spec.model_args or spec.preprocess != EncoderSpec("").preprocess:
        raise UsageError(
            f"{spec.ref} takes no layer, pooling, model_args or preprocess: its folder says them",
            "Leave the option out",
        )
    return open_text_encoder(spec, folder, PACKAGES, lambda given: _describe(given, folder, licence), _load)


def list_encoders() -> list[dict[str, Any]]:
    """Return a few well-known models; any other name or folder works as well."""
    known = [("all-MiniLM-L6-v2", 384), ("all-mpnet-base-v2", 768), ("multi-qa-MiniLM-L6-cos-v1", 384)]
    return [
        {"ref": f"sentence_transformers:{name}", "family": "sentence_transformers", "modality": "text", "dim": dim}
        for name, dim in known
    ]


def _describe(spec: EncoderSpec, folder: Path, licence: str) -> KnownCard:
    modules = _read_modules(folder)
    texts = read_json(folder / "config_sentence_transformers.json", {})
    if texts.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise EncoderError(f"{folder} is a {texts['model_type']}", "Use a model that gives one vector per text")
    first = modules[0]
    is_static = first.kind == "StaticEmbedding"
    config = {} if is_static else read_json(first.folder / "config.json")
    tokenizer = read_tokenizer(first.folder / "tokenizer.json") if is_static else _tokenizer(first)
    facts = [module.facts() for module in modules]
    weights = [fact for fact in facts if fact]
    full = _dim(modules, weights[0])
    dim = _truncated(spec, full, texts.get("truncate_dim"))
    prompts = Prompts(texts.get("prompts") or {}, texts.get("default_prompt_name"))
    prompt = prompts.words(spec.prompt)
    identity = {
        "recipe": ["sentence_transformers", RECIPE],
        "tensors": [fact.digest for fact in weights],
        "modules": [module.identity() for module in modules],
        "config": config_identity(config),
        "tokenizer": tokenizer.digest,
        "max_tokens": tokenizer.max_tokens,
        "truncate_dim": dim if dim < full else None,
    }
    needs_other = prompts.knows_roles and prompts.query_words() != prompt
    card = text_card(
        spec,
        identity,
        prompt,
        dim=dim,
        normalized=modules[-1].kind == "Normalize" and dim == full,
        flops=2.0 * full if is_static else sum(fact.flops_per_token() for fact in weights),
        parameters=sum(fact.parameters for fact in weights),
        input={"max_tokens": tokenizer.max_tokens},
        weights_from=str(folder),
        licence=licence,
        queries={"text": replace(spec, prompt=prompts.query_words()).to_dict()} if needs_other else {},
    )
    recipe = {
        "tokenizer": asdict(tokenizer),
        "transformer": None if is_static else str(first.folder),
        "prompt_tokens": _excluded_tokens(modules, tokenizer, prompt),
    }
    return KnownCard(card, weights_files(first.folder)[0], recipe)


def _read_modules(folder: Path) -> list[Module]:
    if not (folder / "modules.json").is_file():
        raise EncoderError(
            f"{folder} is no sentence-transformers model (no modules.json)",
            "Check the path, or open a plain model as transformers:PATH",
        )
    if (folder / "adapter_config.json").is_file():
        raise EncoderError(f"{folder} is an adapter of another model", "Merge it into the model and save that")
    modules = []
    for entry in read_json(folder / "modules.json"):
        package, _, kind = str(entry["type"]).rpartition(".")
        if kind not in MODULES or package.partition(".")[0] != "sentence_transformers":
            raise EncoderError(
                f"{folder} uses the module {entry['type']}, which embedx does not run", "Use another one"
            )
        own = folder / str(entry.get("path") or "")
        modules.append(Module(kind, own, {} if kind == "StaticEmbedding" else _module_config(kind, own)))
    if modules[0].kind not in ("Transformer", "StaticEmbedding"):
        raise EncoderError(f"{folder} begins with {modules[0].kind}, which reads no texts", "Use another model")
    return modules


def _module_config(kind: str, folder: Path) -> dict[str, Any]:
    if kind != "Transformer":
        config: dict[str, Any] = read_json(folder / "config.json", {})
        activation = str(config.get("activation_function", "torch."))
        if not activation.startswith("torch."):
            # The library puts Tanh in its place, and logs a warning.
            raise EncoderError(f"{folder} needs the function {activation}, and foreign code is never run", "Replace it")
        return config
    settings: dict[str, Any] = next((read_json(path) for path in sorted(folder.glob("sentence_*_config.json"))), {})
    _check_settings(settings, folder)
    return settings


def _check_settings(settings: dict[str, Any], folder: Path) -> None:
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    allowed = {
        "transformer_task": ("feature-extraction",),
        "modality_config": ({"text": text},),
        "module_output_name": ("token_embeddings",),
    }
    for key, value in settings.items():
        known = key in _TRANSFORMER_SETTINGS and not key.endswith(("_args", "_kwargs"))
        if value and (value not in allowed[key] if key in allowed else not known):
            raise EncoderError(
                f"{folder} sets {key} = {value!r} for its transformer, which embedx does not run", "Use another model"
            )


def _tokenizer(module: Module) -> TextTokenizer:
    from embedx.encoders.transformers_modules import load_config, position_limit

    config = load_config(module.folder)
    tokenizer = library_tokenizer(module.folder, bool(module.config.get("do_lower_case")))
    # A length of its own is the library's last word, but no model reads beyond its positions.
    own = module.config.get("max_seq_length") or tokenizer.max_tokens
    limits = [limit for limit in (own, position_limit(config)) if limit]
    pad_id = tokenizer.pad_id if config.pad_token_id is None else config.pad_token_id
    return replace(tokenizer, max_tokens=min(limits, default=None), pad_id=pad_id)


def _dim(modules: list[Module], first: WeightsFacts) -> int:
    if modules[0].kind == "StaticEmbedding":
        dim = next(shape[1] for shape in first.shapes.values() if len(shape) == 2)
    else:
        from embedx.encoders.transformers_modules import load_config

        dim = load_config(modules[0].folder).hidden_size
    for module in modules[1:]:
        dim = module.dim(dim)
    return dim


def _truncated(spec: EncoderSpec, full: int, own: int | None) -> int:
    """Return the length of the vectors: as asked for, else as the model's configuration says."""
    asked = spec.truncate_dim
    if asked is not None and not 1 <= asked <= full:
        raise UsageError(f"truncate_dim {asked} of {spec.ref} is not possible", f"Pass a number from 1 to {full}")
    return asked or min(own or full, full)


def _excluded_tokens(modules: list[Module], tokenizer: TextTokenizer, prompt: str) -> int:
    """Return how many tokens at the beginning a Pooling leaves out, counted as the library does."""
    if not prompt or all(module.includes_prompt for module in modules if module.kind == "Pooling"):
        return 0
    (ids,), _ = tokenizer([prompt])
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.special_ids)


def _load(known: KnownCard) -> Any:
    from embedx.encoders.text_modules import build_pipeline

    transformer = known.recipe["transformer"]
    return build_pipeline(
        Path(known.card.weights_from),
        Path(transformer) if transformer else None,
        known.card.identity["max_tokens"],
        known.recipe["prompt_tokens"],
        known.card.dim,
    )
