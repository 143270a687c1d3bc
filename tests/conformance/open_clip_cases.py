"""Encoders of open_clip against open_clip: both towers, its own transforms and tokenizers, seeded random weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.specs import EncoderSpec
from tests.conformance.support import TEXTS, Case, Made, as_users_open, save_state_dict


@functools.lru_cache(maxsize=1)
def random_model(name: str) -> tuple[Any, Any]:
    """Return a seeded random model in eval mode, and open_clip's default preprocessing for it."""
    import open_clip
    import torch

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess


def encode_images(model: Any, preprocess: Callable[[Any], Any]) -> Callable[[list[Any]], np.ndarray]:
    import torch

    def recipe(files: list[Any]) -> np.ndarray:
        with torch.no_grad():
            images = torch.stack([preprocess(as_users_open(data)) for data in files])
            return model.encode_image(images, normalize=True).numpy()

    return recipe


def encode_texts(model: Any, tokenize: Callable[[list[str]], Any]) -> Callable[[list[Any]], np.ndarray]:
    import torch

    def recipe(texts: list[Any]) -> np.ndarray:
        with torch.no_grad():
            return model.encode_text(tokenize(texts), normalize=True).numpy()

    return recipe


def image(name: str, folder: Path) -> Made:
    """The image tower of an architecture, with the default preprocessing."""
    model, preprocess = random_model(name)
    path = save_state_dict(model, folder)
    return Made(EncoderSpec("open_clip", name, weights=str(path)), encode_images(model, preprocess))


def text(name: str, folder: Path) -> Made:
    """The text tower of an architecture whose tokenizer is open_clip's own."""
    import open_clip

    model, _ = random_model(name)
    path = save_state_dict(model, folder)
    return Made(
        EncoderSpec("open_clip", f"{name}#text", weights=str(path)), encode_texts(model, open_clip.get_tokenizer(name))
    )


def tagged(name: str, tag: str, folder: Path) -> Made:
    """The image tower with the preprocessing that the tag's published weights were trained with."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    model, _ = random_model(name)
    path = save_state_dict(model, folder)
    config = merge_preprocess_dict(PreprocessCfg(size=model.visual.image_size), open_clip.get_pretrained_cfg(name, tag))
    preprocess = image_transform_v2(PreprocessCfg(**config), is_train=False)
    return Made(EncoderSpec("open_clip", f"{name}/{tag}", weights=str(path)), encode_images(model, preprocess))


def siglip_text(folder: Path) -> Made:
    """SigLIP's text tower as a folder, with a tokenizer of its kind: unigrams, an end token, cleaned texts."""
    import open_clip

    name = "ViT-B-16-SigLIP"
    model, _ = random_model(name)
    save_state_dict(model, folder).rename(folder / "open_clip_pytorch_model.bin")
    save_unigram_tokenizer(folder)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip.get_model_config(name)}))
    return Made(
        EncoderSpec("open_clip", f"local-dir:{folder}#text"),
        encode_texts(model, open_clip.get_tokenizer(f"local-dir:{folder}")),
    )


def save_unigram_tokenizer(folder: Path) -> None:
    """Train a small tokenizer as T5 has it, and save it as transformers does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
    )
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="</s>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    tokenizer.save_pretrained(folder)


def _case(name: str, make: Callable[..., Made], *arguments: str, modality: str = "image") -> Case:
    return Case(f"open_clip:{name}", functools.partial(make, *arguments), modality=modality)


# One after the other what shares a model: it is built once.
CASES = [
    _case("ViT-B-32", image, "ViT-B-32"),
    _case("ViT-B-32#text", text, "ViT-B-32", modality="text"),
    _case("ViT-B-32-quickgelu", image, "ViT-B-32-quickgelu"),
    _case("RN50", image, "RN50"),
    _case("coca_ViT-B-32", image, "coca_ViT-B-32"),
    _case("coca_ViT-B-32#text", text, "coca_ViT-B-32", modality="text"),
    _case("MobileCLIP2-S0/dfndr2b", tagged, "MobileCLIP2-S0", "dfndr2b"),
    _case("MobileCLIP2-S0#text", text, "MobileCLIP2-S0", modality="text"),
    _case("ViT-B-16-SigLIP/webli", tagged, "ViT-B-16-SigLIP", "webli"),
    _case("ViT-B-16-SigLIP#text", siglip_text, modality="text"),
    _case("PE-Core-T-16-384/meta", tagged, "PE-Core-T-16-384", "meta"),
]
