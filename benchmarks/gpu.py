"""Encoders on one GPU: forward passes alone, files to Parquet, and sentence-transformers beside it. JSON out.

    PYTHONPATH=src python benchmarks/gpu.py [--seconds 10] [--device cuda] [--out gpu.json]

Self-contained: it needs torch, torchvision, timm, transformers, sentence-transformers, tokenizers, pyarrow, Pillow,
numpy and xxhash, and neither Dask nor deltalake nor faiss. Models have their true architecture and random weights made
here. What is measured, each for some seconds after a warm-up:

forward     encoder-only rates in bf16 of CLIP ViT-B/32 and ViT-L/14 (image towers, by timm), ResNet-50, BERT-base at 128
            tokens; also compiled and, texts, packed: and what the runtime itself would choose
images      generated JPEGs in memory -> decoded, embedded, a Parquet shard in memory, with all host cores and two shards
            at a time, as a worker has them
texts       texts of mixed length through MiniLM's architecture to vectors, beside SentenceTransformer.encode (default)
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from embedx.corpora.decode import decode_image
from embedx.encoders.image_module import PixelsToVectors
from embedx.encoders.packing import pack_module
from embedx.encoders.registry import open_encoder, parse_ref
from embedx.inference.pipeline import Embedder
from embedx.inference.torch import TorchRuntime, on_device, open_torch
from embedx.store.schema import store_schema, vector_array
from embedx.store.shards import Receipt, encode_shard

IMAGE_MODELS = {
    "CLIP ViT-B/32": ("vit_base_patch32_clip_224", 224),
    "CLIP ViT-L/14": ("vit_large_patch14_clip_224", 224),
    "ResNet-50": ("resnet50", 224),
}


SHARDS = 2
"""Shards that a worker computes at a time."""


def main() -> None:
    """Measure everything; a part that fails is said by name and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", help="forward images texts")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device: run it where there is one, or pass --device cpu to try the script")
    result: dict[str, Any] = {"machine": machine(arguments.device)}
    parts = {"forward": forward_rates, "images": image_rates, "texts": text_rates}
    for name, measure in parts.items():
        if arguments.only and name not in arguments.only:
            continue
        try:
            result[name] = measure(arguments)
        except Exception as error:  # one missing library must not cost the other figures
            result[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, json.dumps(result[name]), file=sys.stderr, flush=True)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    if failed := [name for name in parts if "error" in result.get(name, {})]:
        sys.exit(f"failed: {', '.join(failed)}")


def machine(device: str) -> dict[str, Any]:
    """Return what ran it."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none"
    return {"gpu": gpu, "torch": torch.__version__, "cores": len(os.sched_getaffinity(0)), "date": time.strftime("%F")}


# -- the forward pass alone -------------------------------------------------------------------------------


def image_module(name: str) -> torch.nn.Module:
    """Return a timm model without its classifier, pixels in, random weights."""
    import timm

    torch.manual_seed(0)
    features = timm.create_model(name, num_classes=0)
    return PixelsToVectors(features, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


class Pooled(torch.nn.Module):
    """BERT-base with mean pooling, random weights."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        self.backbone = BertModel(BertConfig(), add_pooling_layer=False)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (n, 768) float32."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        return (hidden * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)


def forward_rates(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return items/s (tokens/s for texts) of each module, from host memory to host memory, as embedx runs it."""
    rates: dict[str, Any] = {}
    random = np.random.default_rng(0)
    for name, (model, size) in IMAGE_MODELS.items():
        runtime = on_device(image_module(model), "bf16", arguments.device)
        batch = runtime.batch_budget("image")
        pixels = {"pixels": random.integers(0, 256, (batch, 3, size, size), dtype=np.uint8)}
        rates[name] = {"images_per_s": rate(runtime, pixels, batch, arguments.seconds), "batch": batch}
        rates[name] |= compiled_rate(runtime, name, pixels, batch, arguments)
        del runtime
    module = Pooled()
    runtime = on_device(module, "bf16", arguments.device)
    rows = max(1, runtime.batch_budget("text") // 128)
    ids = random.integers(1000, 30000, (rows, 128))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    tokens = rows * 128
    found: dict[str, Any] = {"tokens_per_s": rate(runtime, inputs, tokens, arguments.seconds), "batch": rows}
    undo = pack_module(module)
    assert undo is not None
    try:
        found["packed_tokens_per_s"] = rate(runtime, inputs, tokens, arguments.seconds)
    except Exception as error:
        found["packed_tokens_per_s"] = f"{type(error).__name__}: {str(error)[:200]}"
    undo()
    rates["BERT-base, 128 tokens"] = found | compiled_rate(runtime, "bert", inputs, tokens, arguments)
    return rates


def rate(runtime: TorchRuntime, inputs: dict[str, np.ndarray], amount: int, seconds: float) -> float:
    """Return amount/s of one batch again and again, as many at a time as the runtime takes."""
    with ThreadPoolExecutor(runtime.parallel_requests) as pool:
        for future in [pool.submit(runtime.forward, inputs) for _ in range(2 * runtime.parallel_requests)]:
            future.result()
        done = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            for future in [pool.submit(runtime.forward, inputs) for _ in range(4 * runtime.parallel_requests)]:
                future.result()
                done += amount
        return round(done / (time.perf_counter() - started), 1)


def compiled_rate(
    runtime: TorchRuntime,
    name: str,
    inputs: dict[str, np.ndarray],
    amount: int,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Return the same as the runtime does it in a long run: compiled, if it finds that this pays. Changes it."""
    if arguments.device == "cpu":
        return {"after_a_minute": "not tried on a CPU"}
    # A key of this moment: what an earlier call found is not believed.
    runtime.compile_when_it_pays([name, time.time()], "pixels" not in inputs, after_s=0)
    started = time.perf_counter()
    runtime.forward(inputs)
    tried = round(time.perf_counter() - started, 1)
    return {
        "after_a_minute": rate(runtime, inputs, amount, arguments.seconds),
        "way": runtime.way,
        "compile_s": tried,
    }


# -- files to Parquet ---------------------------------------------------------------------------------------


class Tower:
    """An image encoder as the pipeline takes it, around a timm model."""

    def __init__(self, name: str, size: int) -> None:
        from embedx.core.contracts import EncoderCard
        from embedx.encoders.vision import ImageEncoder, ImageTransform

        mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
        transform = ImageTransform((size, size), (size, size), "bicubic", mean, std)
        module = image_module(name)
        with torch.no_grad():
            dim = module(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
        identity = {"preprocessing": transform.to_dict()}
        card = EncoderCard(name, "gpu", "image", dim, "", identity, {}, False, 1.0, 0)
        self.encoder = ImageEncoder(card, lambda: module.features)


def image_rates(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return images/s from JPEG bytes to the bytes of a Parquet shard, in bf16."""
    files = jpegs(arguments.images)
    rates: dict[str, Any] = {"kB each": round(sum(map(len, files)) / len(files) / 1000, 1)}
    for name in ("CLIP ViT-B/32", "CLIP ViT-L/14"):
        encoder = Tower(*IMAGE_MODELS[name]).encoder
        embedder = Embedder(encoder, on_device(encoder.build(), "bf16", arguments.device), len(os.sched_getaffinity(0)))

        def embed(count: int, embedder: Embedder = embedder) -> int:
            fetched = lambda start, stop: [decode_image(data, "x") for data in files[start:stop]]  # noqa: E731
            embedded = embedder.embed(count, fetched)
            return len(shard_bytes(embedded.vectors))

        embed(min(512, len(files)))
        started = time.perf_counter()
        with ThreadPoolExecutor(SHARDS) as tasks:
            size = sum(tasks.map(embed, [len(files) // SHARDS] * SHARDS))
        rates[name] = {"images_per_s": round(len(files) / (time.perf_counter() - started), 1), "shard_bytes": size}
        embedder.close()
    return rates


def jpegs(count: int, kinds: int = 64) -> list[bytes]:
    """Return JPEGs of 500 x 375 pixels: smooth colours with noise, some tens of kilobytes each."""
    from PIL import Image

    random = np.random.default_rng(0)
    made = []
    for _ in range(kinds):
        smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(smooth, dtype=np.int16) + random.integers(-12, 13, (375, 500, 1), dtype=np.int16)
        data = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(data, "JPEG", quality=88)
        made.append(data.getvalue())
    return [made[number % kinds] for number in range(count)]


def shard_bytes(vectors: np.ndarray) -> pa.Buffer:
    """Return a shard file of some vectors."""
    count = len(vectors)
    columns = {
        "item_id": pa.array([str(number) for number in range(count)]),
        "vector": vector_array(vectors),
        "source": pa.array(["s"] * count),
        "digest": pa.array([""] * count),
        "parent_id": pa.nulls(count, pa.string()),
    }
    schema = store_schema(())
    table = pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
    return encode_shard(table, Receipt("bench", 0, "", "bf16", count, 0))


# -- texts --------------------------------------------------------------------------------------------------


def text_rates(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return texts/s of MiniLM's architecture through the pipeline, and by SentenceTransformer.encode, twice."""
    from sentence_transformers import SentenceTransformer

    texts = mixed_texts(arguments.texts)
    with tempfile.TemporaryDirectory() as folder:
        make_minilm(Path(folder))
        encoder = open_encoder(parse_ref(f"sentence_transformers:{folder}"))
        threads = len(os.sched_getaffinity(0))
        runtime = open_torch(encoder, "bf16", threads, arguments.device)
        embedder = Embedder(encoder, runtime, threads)
        ours = best_of(lambda: embedder.embed(len(texts), lambda start, stop: texts[start:stop]))
        model = SentenceTransformer(folder, device=arguments.device)
        theirs = best_of(lambda: model.encode(texts))
        # The same library as fast as its options make it: our own precision, large batches.
        model.bfloat16()
        tuned = best_of(lambda: model.encode(texts, batch_size=512))
        tokens = int(encoder.cost(encoder.prepare(texts)).sum())
    return {
        "texts_per_s": round(len(texts) / ours, 1),
        "sentence_transformers_texts_per_s": round(len(texts) / theirs, 1),
        "ratio": round(theirs / ours, 2),
        "sentence_transformers_bf16_batch_512_texts_per_s": round(len(texts) / tuned, 1),
        "ratio_to_that": round(tuned / ours, 2),
        "tokens_each": round(tokens / len(texts), 1),
        "way": runtime.way,
    }


def best_of(call: Callable[[], Any], turns: int = 3) -> float:
    """Return the seconds of the fastest turn, after one that warms up."""
    call()
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def mixed_texts(count: int) -> list[str]:
    """Return texts of some 5 to 200 words from a small vocabulary."""
    random = np.random.default_rng(0)
    words = np.array(["".join(chr(97 + letter) for letter in random.integers(0, 26, 5)) for _ in range(2_000)])
    lengths = np.clip(random.lognormal(3.3, 0.8, count).astype(int), 5, 200)
    return [" ".join(words[random.integers(0, len(words), length)]) for length in lengths]


def make_minilm(folder: Path) -> None:
    """Write a sentence-transformers folder of MiniLM-L6's architecture, random weights, a word-piece tokenizer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        mixed_texts(2_000), trainers.WordPieceTrainer(vocab_size=8_000, special_tokens=special)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1_536}
    torch.manual_seed(0)
    parts = folder / "bert"
    BertModel(BertConfig(vocab_size=tokenizer.get_vocab_size(), **shape)).save_pretrained(parts)
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names).save_pretrained(parts)
    transformer = Transformer(str(parts), max_seq_length=256)
    SentenceTransformer(modules=[transformer, Pooling(384), Normalize()]).save(str(folder))


if __name__ == "__main__":
    main()
