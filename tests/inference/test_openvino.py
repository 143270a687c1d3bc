"""The openvino runtime: cold starts with several threads, batch independence, conversion refusals."""

import subprocess
import sys

import numpy as np
import pytest

COLD_START = """
import sys, threading, os
import numpy as np
from embedx.encoders.registry import open_encoder, parse_ref
from embedx.inference.openvino import open_openvino

sys.setswitchinterval(1e-6)
encoder = open_encoder(parse_ref("minilm"))
runtime = open_openvino(encoder, "fp32", 2)
inputs = encoder.collate(encoder.prepare(["one", "two words"]).items)
barrier = threading.Barrier(4)
done = []

def call():
    barrier.wait()
    done.append(runtime.forward(inputs))

threads = [threading.Thread(target=call, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
print(len(done), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("attempt", range(3))
def test_first_calls_of_several_threads_do_not_deadlock(attempt):
    done = subprocess.run([sys.executable, "-c", COLD_START], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "4", done.stdout + done.stderr


@pytest.fixture(scope="module")
def session():
    import embedx

    return embedx.load_encoder("minilm", precision="fp32")


def test_vectors_do_not_depend_on_neighbours_or_order(session):
    texts = [f"text number {n} " + "word " * (n * 7 % 60) for n in range(50)]
    together, failures = session.embed_texts(texts)
    backwards, _ = session.embed_texts(texts[::-1])
    alone = np.concatenate([session.embed_texts([text])[0] for text in texts[:8]])
    assert failures == {}
    assert np.abs(together - backwards[::-1]).max() < 1e-5
    assert np.abs(together[:8] - alone).max() < 1e-5


def test_forward_results_are_copies(session):
    encoder, runtime = session.embedder.encoder, session.embedder.runtime
    first_inputs = encoder.collate(encoder.prepare(["a cat"]).items)
    first = runtime.forward(first_inputs)
    kept, kept_inputs = first.copy(), {name: array.copy() for name, array in first_inputs.items()}
    for text in ("entirely different", "words of another length altogether"):
        runtime.forward(encoder.collate(encoder.prepare([text]).items))
    assert np.array_equal(first, kept)
    assert all(np.array_equal(first_inputs[name], kept_inputs[name]) for name in kept_inputs)


def test_a_text_query_on_an_image_encoder_is_refused(session):
    from embedx.core.errors import EncoderError

    with pytest.raises(EncoderError, match="embeds texts, not images"):
        session.embed_image_files([])


@pytest.fixture
def minilm(tmp_path, monkeypatch):
    from embedx.encoders.registry import open_encoder, parse_ref
    from embedx.inference.openvino import cpu_has_bf16

    if not cpu_has_bf16():
        pytest.skip("this machine has no bf16")
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path))
    return open_encoder(parse_ref("minilm"))


def in_bf16_and_fp32(encoder):
    from embedx.inference.openvino import open_openvino

    texts = [f"text number {n} " + "of some length " * (n % 9) for n in range(16)]
    inputs = encoder.collate(encoder.prepare(texts).items)
    return [open_openvino(encoder, precision, 2).forward(inputs) for precision in ("bf16", "fp32")]


def test_a_text_encoder_is_bf16_throughout_and_faithful(minilm, tmp_path):
    from embedx.inference.gates import measure_fidelity, passes_gate

    fast, exact = in_bf16_and_fp32(minilm)
    fidelity = measure_fidelity(fast, exact)
    assert passes_gate(fidelity, "bf16") and fidelity.raw_min < 1
    (model,) = tmp_path.glob("openvino/*/model-bf16.xml")
    weights = [path.with_suffix(".bin").stat().st_size for path in (model, model.with_name("model.xml"))]
    assert weights[0] < 0.6 * weights[1], "the weights themselves are bf16"
    # It is what runs: another one in its place shows.
    for path in (model, model.with_suffix(".bin")):
        path.write_bytes(path.with_name(path.name.replace("-bf16", "")).read_bytes())
    assert measure_fidelity(in_bf16_and_fp32(minilm)[0], exact).raw_mean > fidelity.raw_mean


def test_where_bf16_throughout_loses_too_much_only_products_are(minilm, tmp_path, monkeypatch):
    from embedx.inference import openvino

    monkeypatch.setattr(openvino, "BF16_LEAST", 1.1)
    fast, exact = in_bf16_and_fp32(minilm)
    assert not list(tmp_path.glob("openvino/*/model-bf16.xml"))
    assert 0 < np.abs(fast - exact).max() < 0.1


def test_an_encoder_that_does_not_convert_runs_on_torch_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path))
    from embedx.encoders.registry import open_encoder, parse_ref
    from embedx.inference import openvino
    from embedx.inference.runtimes import Execution, open_runtime

    def refuse(encoder):
        raise ValueError("it misses the fp32 gate")

    monkeypatch.setattr(openvino, "_convert", refuse)
    encoder = open_encoder(parse_ref("minilm"))
    opened = open_runtime(encoder, Execution("fp32", threads=1))
    assert opened.runtime.name == "torch" and "misses the fp32 gate" in opened.note
    monkeypatch.undo()


def image_batch(family, name, folder, monkeypatch, arguments=None):
    import timm
    import torch
    import torchvision

    from embedx.core.specs import EncoderSpec
    from embedx.encoders.registry import open_encoder
    from embedx.inference.openvino import open_openvino

    monkeypatch.setenv("EMBEDX_CACHE", str(folder / "cache"))
    arguments = arguments or {}
    model = timm.create_model(name, **arguments) if family == "timm" else getattr(torchvision.models, name)()
    torch.save(model.state_dict(), folder / "w.pt")
    spec = EncoderSpec(family=family, name=name, weights=str(folder / "w.pt"), model_args=arguments)
    return open_openvino(open_encoder(spec), "fp32", 2).batch_budget("image")


@pytest.mark.parametrize(
    ("family", "name", "images"),
    [
        ("timm", "vit_tiny_patch16_224", 8),  # 197 tokens
        ("timm", "test_convnext", 8),  # its matrix products have thousands of rows each
        ("torchvision", "squeezenet1_1", 8),
    ],
)
def test_batches_of_image_encoders(family, name, images, tmp_path, monkeypatch):
    assert image_batch(family, name, tmp_path, monkeypatch) == images


def test_batches_of_few_tokens_are_larger(tmp_path, monkeypatch):
    """CLIP's ViT-B/32 has 50 tokens an image; so has this one."""
    arguments = {"patch_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 3}
    assert image_batch("timm", "vit_tiny_patch16_224", tmp_path, monkeypatch, arguments) == 32
