"""The choice of a runtime: what this machine has, what the encoder converts to, what the user asked for."""

from __future__ import annotations

from dataclasses import dataclass

from embedx.core.contracts import Encoder, Runtime
from embedx.core.errors import EncoderError
from embedx.core.machine import gpu_names


@dataclass(frozen=True)
class Execution:
    """How to execute an encoder in this process.

    Attributes:
        precision: fp32 or bf16.
        runtime: auto, openvino or torch.
        device: auto, cpu, cuda or mps.
        threads: cores to use.
    """

    precision: str
    runtime: str = "auto"
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Opened:
    """A runtime, and why it is this one if it is not the usual."""

    runtime: Runtime
    note: str = ""


def open_runtime(encoder: Encoder, execution: Execution) -> Opened:
    """Open the runtime that suits: torch on CUDA and MPS; on a CPU openvino, or torch where it does not convert.

    An encoder that is no module computes by itself, whatever the device.

    Raises:
        EncoderError: what was asked for cannot be had.
    """
    if encoder.card.direct:
        from embedx.inference.direct import open_direct

        return Opened(open_direct(encoder, execution.runtime))
    device = _device(execution.device)
    if device != "cpu" and execution.runtime == "openvino":
        raise EncoderError("the openvino runtime runs on the CPU only", "Use --runtime torch, or --device cpu")
    if device != "cpu" or execution.runtime == "torch":
        return _open_torch(encoder, execution, device)
    try:
        from embedx.inference.openvino import open_openvino, torch_is_faster

        runtime = open_openvino(encoder, execution.precision, execution.threads)
        why = torch_is_faster(encoder, execution.precision) if execution.runtime == "auto" else ""
    except (EncoderError, ImportError) as error:
        if execution.runtime == "openvino":
            raise
        why = str(error.args[0])
    else:
        if not why:
            return Opened(runtime)
    return Opened(_open_torch(encoder, execution, device).runtime, f"torch instead of openvino: {why}")


def _open_torch(encoder: Encoder, execution: Execution, device: str) -> Opened:
    from embedx.inference.torch import open_torch

    return Opened(open_torch(encoder, execution.precision, execution.threads, device))


def _device(asked: str) -> str:
    # Asking torch would import it (seconds); where the driver knows of no device there is nothing to ask. MPS has to be
    # asked for: nobody has yet compared it with openvino on the same machine.
    if asked == "auto" and not gpu_names():
        return "cpu"
    if asked == "auto":
        from embedx.inference.torch import device_is_there

        return "cuda" if device_is_there("cuda") else "cpu"
    return asked


def machine_has_bf16(device: str) -> bool:
    """Whether bf16 is computed in hardware here."""
    if (where := _device(device)) == "cpu":
        from embedx.inference.openvino import cpu_has_bf16

        return cpu_has_bf16()
    import torch

    from embedx.inference.torch import device_is_there

    if where == "mps":
        return device_is_there(where) and bool(torch.backends.mps.is_macos_or_newer(14, 0))
    # Older cards only emulate it, and are slower with it.
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
