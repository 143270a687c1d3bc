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
    done = subprocess.run([sys.executable, "-c", COLD_START], capture_output=True, text=True, timeout=120)
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
