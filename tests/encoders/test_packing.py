"""Packed texts: the vectors of padded ones, from every architecture that lets its attention be replaced."""

import pytest
import torch
import transformers
from torch.nn import functional

from embedx.encoders import packing
from embedx.encoders.packing import PACKED, pack_module
from embedx.encoders.registry import open_encoder, parse_ref
from embedx.encoders.transformers_modules import SeveralTextVectors, TextVectors

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 500,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
OFFSET = {**SMALL, "max_position_embeddings": 514}
PACKABLE = {
    "bert": lambda: transformers.BertConfig(**SMALL),
    "roberta": lambda: transformers.RobertaConfig(**OFFSET),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**OFFSET),
    "electra": lambda: transformers.ElectraConfig(**SMALL, embedding_size=64),
    "modernbert": lambda: transformers.ModernBertConfig(**{**SMALL, "num_hidden_layers": 4}, local_attention=64),
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=32),
}


def model_of(config):
    config.use_cache = False
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config).eval()


def batch(lengths=(160, 40, 9, 1)):
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 500, mask.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(mask == 1, ids, 1), mask


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", PACKABLE)
def test_packed_is_padded(name, pooling, monkeypatch):
    module = TextVectors(model_of(PACKABLE[name]()), (-1, -2), pooling)
    widths = []
    plain = packing._attention
    monkeypatch.setattr(packing, "_attention", lambda *a, **k: widths.append(a[1].shape[2]) or plain(*a, **k))
    with torch.inference_mode():
        reference = module(*batch())
        undo = pack_module(module)
        packed = module(*batch())
        assert set(widths) == {160 + 40 + 9 + 1}, "padding was computed"
        assert torch.allclose(packed, reference, atol=1e-5)
        undo()
        assert torch.equal(module(*batch()), reference)


def test_several_layers_of_one_pass():
    module = SeveralTextVectors(model_of(PACKABLE["bert"]()), [((-1,), "mean"), ((-2,), "cls"), ((), "max")])
    with torch.inference_mode():
        reference = module(*batch())
        pack_module(module)
        assert torch.allclose(module(*batch()), reference, atol=1e-5)


def test_a_sentence_transformer():
    encoder = open_encoder(parse_ref("minilm"))
    module = encoder.build()
    inputs = encoder.collate(encoder.prepare(encoder.canaries()).items)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.inference_mode():
        reference = module(**tensors)
        assert encoder.pack(module) is not None
        assert functional.cosine_similarity(module(**tensors), reference).min() > 0.99999


def test_what_has_attention_of_its_own_stays_padded():
    model = model_of(transformers.MPNetConfig(**OFFSET))
    before = model.config._attn_implementation
    assert pack_module(TextVectors(model, (), "mean")) is None
    assert model.config._attn_implementation == before
    assert pack_module(torch.nn.Linear(2, 2)) is None


def test_what_packed_attention_cannot_do_is_said():
    module = TextVectors(model_of(transformers.Gemma2Config(**GROUPED, head_dim=16)), (), "mean")
    undo = pack_module(module)
    assert module.model.config._attn_implementation == PACKED
    with torch.inference_mode(), pytest.raises(NotImplementedError, match="softcap"):
        module(*batch())
    undo()


def test_windows_that_a_model_says_by_its_masks_alone(monkeypatch):
    plain = packing._attention
    monkeypatch.setattr(packing, "_attention", lambda *a, sliding_window=None, **k: plain(*a, **k))
    module = TextVectors(model_of(PACKABLE["mistral"]()), (), "mean")
    pack_module(module)
    with torch.inference_mode(), pytest.raises(NotImplementedError, match="by its masks alone"):
        module(*batch())
