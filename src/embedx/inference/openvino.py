"""The openvino runtime: the encoder converted once, kept on disk by fingerprint, run without importing torch."""

from __future__ import annotations

import functools
import json
import math
import os
import queue
import shutil
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from embedx.core.contracts import Encoder
from embedx.core.errors import EncoderError
from embedx.core.machine import cpu_name
from embedx.core.paths import cache_dir, write_json
from embedx.inference.clock import race
from embedx.inference.gates import measure_fidelity, passes_gate

TOKEN_BUDGET = 1_536
"""Padded tokens of a batch: 1-2k keep a layer's activations in the caches; 8k is 10 % slower (openvino-facts)."""

IMAGE_BATCH = 8
"""Images of a batch, at least: of CNNs and of transformers with 200 tokens it is the fastest. One of few tokens gets
more, see `_image_batch`."""

RACE_ITEMS = 4
"""Items of the batch on which openvino and torch are compared."""

TOLERATED = 1.25, 0.001
"""By how many times, and by how many seconds a batch, torch must be faster to be preferred: a start without torch is
seconds shorter, and a race of a few turns on a busy machine is no exact measurement."""

FORMAT = 3
"""Of a converted model's folder."""

IN_BF16 = "model-bf16.xml"
"""A text encoder whose backbone is bf16 throughout. Of the other model, the hint makes bf16 of matrix products only:
sums and norms between them stay fp32, and everything is converted to and fro, which costs BERT-like encoders 3 to 9 %
of their time. Vision transformers gain nothing by it."""

BF16_LEAST = 0.9995
"""Cosine to fp32 of the canaries, raw and centred, that `IN_BF16` must keep: half of what the gate lets a store lose,
so that it is not what makes a corpus miss the gate."""


class OpenVinoRuntime:
    """A compiled model with its own requests; open it with `open_openvino`.

    Explicit requests with copied inputs: calling the compiled model directly shares the caller's array with an
    internal request, and later calls overwrite it.
    """

    name = "openvino"

    def __init__(self, compiled: Any, precision: str, requests: int, image_batch: int = IMAGE_BATCH) -> None:
        self.precision = precision
        self._image_batch = image_batch
        self.parallel_requests = requests
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(requests):
            self._free.put(compiled.create_infer_request())

    @property
    def way(self) -> str:
        """How it computes, for people."""
        return f"{self.name} {self.precision}"

    @property
    def hardware(self) -> str:
        """The CPU."""
        return cpu_name()

    def forward(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Run one batch; returns (n, dim) float32. Thread-safe: calls beyond the requests wait."""
        request = self._free.get()
        try:
            request.infer(inputs, share_inputs=False)
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)
        finally:
            self._free.put(request)

    def batch_budget(self, modality: str) -> int:
        """Return the fastest batch: padded tokens for texts, images for images."""
        return TOKEN_BUDGET if modality == "text" else self._image_batch


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512_BF16 or AMX), as the runtime itself sees it."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_openvino(encoder: Encoder, precision: str, threads: int) -> OpenVinoRuntime:
    """Compile an encoder for this machine, converting it first if no earlier process has.

    Args:
        encoder: what to run.
        precision: fp32 or bf16.
        threads: cores to use.

    Raises:
        EncoderError: the encoder does not convert, or loses fidelity when it does.
    """
    import openvino

    home = _converted(encoder, threads)
    core = openvino.Core()
    lower = home / IN_BF16
    model = core.read_model(str(lower if precision == "bf16" and lower.exists() else home / "model.xml"))
    requests = 2 if threads >= 2 else 1
    if precision == "bf16" and _has_gated_layers(model):
        # With AMX, openvino fuses them to a kernel that divides by zero where a stream has one thread, and SIGFPE ends
        # the process (openvino 2026.4; github.com/openvinotoolkit/openvino/issues/33300).
        if threads < 2:
            raise EncoderError(
                f"{encoder.card.ref} in bf16 needs two threads on openvino (gated layers)", "Use --runtime torch"
            )
        requests = min(requests, threads // 2)
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "NUM_STREAMS": requests,
            # Explicit, because Dask's nanny sets OMP_NUM_THREADS=1.
            "INFERENCE_NUM_THREADS": threads,
        },
    )
    runtime = OpenVinoRuntime(compiled, precision, requests, _image_batch(model))
    with _first_call:
        runtime.forward(encoder.collate(encoder.prepare(encoder.canaries()).items[:1]))
    return runtime


def _image_batch(model: Any) -> int:
    """Return how many images a batch has: a power of two, of a transformer about `TOKEN_BUDGET` tokens.

    A matrix product reads its weights once a batch: 8 images of CLIP ViT-B/32 are 400 tokens, too few to hide that.
    """
    kinds = Counter(op.get_type_name() for op in model.get_ops())
    products = [op.output(0).partial_shape for op in model.get_ops() if op.get_type_name() == "MatMul"]
    # (images, tokens, features), or with the first two exchanged.
    axes = [axis for shape in products if len(shape) == 3 for axis in (shape[0], shape[1])]
    tokens = [axis.get_length() for axis in axes if axis.is_static]
    if not tokens or kinds["Convolution"] > len(products):
        return IMAGE_BATCH
    return max(IMAGE_BATCH, 2 ** round(math.log2(TOKEN_BUDGET / max(tokens))))


def _has_gated_layers(model: Any) -> bool:
    """Whether a model has layers of the form down(act(gate(x)) * up(x)), as Llama and SwiGLU vision transformers do."""
    activations = (op for op in model.get_ops() if op.get_type_name() in ("Swish", "Gelu"))
    gates = (user for op in activations for user in _users(op) if user.get_type_name() == "Multiply")
    return any(user.get_type_name() == "MatMul" for gate in gates for user in _users(gate))


def _users(op: Any) -> list[Any]:
    return [target.get_node() for target in op.output(0).get_target_inputs()]


_first_call = threading.Lock()
"""Two threads whose first calls into the bindings coincide deadlock: one holds the interpreter lock and waits for a
C++ static's guard, the other owns the guard and waits for the lock (openvino 2026.4; half of cold starts with two
requests). So the first call of a process is made by one thread alone; it also pays for the first shapes."""


def torch_is_faster(encoder: Encoder, precision: str) -> str:
    """Return by how much torch was faster when the encoder was converted; empty if it was not."""
    try:
        # By machine, because several may share the folder.
        seconds = json.loads((_home(encoder) / "seconds.json").read_text())[cpu_name()][precision]
    except (OSError, KeyError):
        return ""
    ratio, difference = seconds["openvino"] / seconds["torch"], seconds["openvino"] - seconds["torch"]
    if ratio <= TOLERATED[0] or difference <= TOLERATED[1]:
        return ""
    return f"it is {ratio:.1f} times as fast as openvino on this machine"


def _home(encoder: Encoder) -> Path:
    return cache_dir() / "openvino" / f"{encoder.card.fingerprint[:40]}-{version('openvino')}-{FORMAT}"


def _converted(encoder: Encoder, threads: int) -> Path:
    """Return the converted model's folder, converting under a lock if it is not there yet."""
    home = _home(encoder)
    model, refusal = home / "model.xml", home / "refused.json"
    if not model.exists() and not refusal.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{home}.lock"):
            if not model.exists() and not refusal.exists():
                _convert_into(encoder, home, threads)
    if refusal.exists():
        reason = json.loads(refusal.read_text())["reason"]
        raise EncoderError(f"{encoder.card.ref} does not run on openvino: {reason}", "Use --runtime torch")
    return home


def _convert_into(encoder: Encoder, home: Path, threads: int) -> None:
    import openvino

    temporary = Path(tempfile.mkdtemp(dir=home.parent, prefix=".converting-"))
    try:
        try:
            model, module, entries = _convert(encoder)
            openvino.save_model(model, temporary / "model.xml", compress_to_fp16=False)
            # From here on, because both cast the module.
            raced = {cpu_name(): _race(encoder, module, model, entries, threads)}
            write_json(temporary / "seconds.json", raced)
            lower = _convert_bf16(encoder, module, model, entries)
            if lower is not None:
                openvino.save_model(lower, temporary / IN_BF16, compress_to_fp16=False)
        except Exception as error:
            # Converters raise anything; whatever it is, this encoder has to run on torch, and the report says so.
            write_json(temporary / "refused.json", {"reason": f"conversion failed ({_first_line(error)})"})
        if home.exists():
            shutil.rmtree(home)
        os.replace(temporary, home)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(encoder: Encoder) -> tuple[Any, Any, Any]:
    """Return the converted model, the module it came from, and the canaries it was checked on."""
    module = encoder.build()
    entries = encoder.prepare(encoder.canaries()).items
    model = _trace(encoder, module, entries)
    _check_fidelity(encoder, module, model, entries)
    return model, module, entries


def _trace(encoder: Encoder, module: Any, entries: Any) -> Any:
    import openvino
    import torch

    inputs = encoder.collate(entries)
    # In the order of `forward`, which is that of `collate`: tracing by keyword loses the names.
    example = tuple(torch.from_numpy(array) for array in inputs.values())
    # no_grad, not inference_mode: tracing refuses inference tensors. The trace check would refuse models whose
    # graph differs harmlessly between calls; the fidelity gate is the check that counts.
    with torch.no_grad(), _quiet():
        traced = torch.jit.trace(module, example, check_trace=False, strict=False)
        model = openvino.convert_model(traced, example_input=example)
    shapes = {}
    for port, (name, array) in zip(model.inputs, inputs.items(), strict=True):
        port.get_tensor().set_names({name})
        shapes[name] = [
            -1,
            *([-1] * (array.ndim - 1) if encoder.card.modality == "text" else array.shape[1:]),
        ]
    model.reshape(shapes)
    return model


def _convert_bf16(encoder: Encoder, module: Any, model: Any, entries: Any) -> Any:
    """Return the model with its backbone in bf16, see `IN_BF16`; None where that is of no use. Casts the module."""
    from embedx.inference.torch import cast_to_bf16

    is_text = encoder.card.modality == "text" and hasattr(module, "backbone")
    if not is_text or not cpu_has_bf16() or _has_gated_layers(model):
        return None
    inputs = encoder.collate(entries)
    try:
        cast_to_bf16(module.backbone)
        lower = _trace(encoder, module, entries)
        fidelity = measure_fidelity(_run(lower, "bf16", inputs), _run(model, "f32", inputs))
    except Exception:
        return None  # Converters raise anything; the other model is there.
    found = min(fidelity.raw_min, fidelity.centred_min)
    return lower if found >= BF16_LEAST and passes_gate(fidelity, "bf16") else None


def _run(model: Any, hint: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import openvino

    request = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint}).create_infer_request()
    request.infer(inputs, share_inputs=False)
    return np.array(request.get_output_tensor(0).data)


def _race(encoder: Encoder, module: Any, model: Any, entries: Any, threads: int) -> dict[str, dict[str, float]]:
    """Time a batch on openvino and on torch, both with all threads on it; the best of a few turns counts.

    Returns:
        precision -> runtime -> seconds.
    """
    import openvino
    import torch

    from embedx.inference.torch import on_device

    repeated = [entries[position % len(entries)] for position in range(RACE_ITEMS)]
    inputs = encoder.collate(repeated)
    result = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for precision in ("fp32", "bf16") if cpu_has_bf16() else ("fp32",):
            hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
            if precision == "bf16" and _has_gated_layers(model) and threads < 2:
                continue
            settings = {**hint, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
            request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
            ours = functools.partial(request.infer, inputs, share_inputs=False)
            try:
                theirs = functools.partial(on_device(module, precision, "cpu").forward, inputs)
                result[precision] = dict(zip(("openvino", "torch"), race(ours, theirs)))
            except (RuntimeError, EncoderError):
                continue  # what torch cannot do in this precision (an operation without bf16) it does not win
    finally:
        torch.set_num_threads(before)
    return result


def _check_fidelity(encoder: Encoder, module: Any, model: Any, entries: Any) -> None:
    """Compare fp32 openvino with torch on the canaries, also in shapes that were not traced.

    Raises:
        ValueError: the converted model is not the same function.
    """
    import openvino
    import torch

    request = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    ours, reference = [], []
    for part in (entries, entries[1:2], entries[:1], entries[:3]):
        inputs = encoder.collate(part)
        request.infer(inputs, share_inputs=False)
        ours.append(np.array(request.get_output_tensor(0).data))
        with torch.no_grad():
            reference.append(module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy())
    vectors = np.concatenate(ours)
    if not np.isfinite(vectors).all():
        raise ValueError("vectors are not finite")
    fidelity = measure_fidelity(vectors, np.concatenate(reference))
    if not passes_gate(fidelity, "fp32"):
        raise ValueError(f"it misses the fp32 gate, {fidelity.describe()}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer's remarks on Python values that it freezes: the fidelity check judges the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
