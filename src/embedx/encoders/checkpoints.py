"""Weights files: read without running code, found or fetched, and fitted to a model without silent gaps."""

from __future__ import annotations

import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedx.core.errors import EncoderError

# Training scripts wrap the state dict; the averaged weights are the ones people evaluate, as in timm.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors or a torch file; no code in it is ever run.

    A dict wrapped as `{"state_dict": ...}` or `{"model": ...}` is unwrapped, and a prefix that all keys share
    (`module.` of DataParallel, `_orig_mod.` of torch.compile, `model.`) is dropped.

    Raises:
        EncoderError: the file is no state dict, or is a pickle that needs more than tensors.
    """
    with path.open("rb") as file:
        # By content: files in the Hugging Face cache have no suffix. Eight bytes of length, then JSON.
        is_safetensors = file.read(9)[8:] == b"{"
    content: Any = _read_safetensors(path) if is_safetensors else _read_torch(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if isinstance(content, dict):
        content = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not content or not isinstance(content, dict):
        raise EncoderError(f"{path} holds no state dict", "Save one with torch.save(model.state_dict(), FILE)")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise EncoderError(f"{path} is no readable safetensors file: {error}", "Fetch or save it again") from error


def _read_torch(path: Path) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about TorchScript, which is refused below
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises nearly everything on files that are no checkpoints
            raise _unreadable(path, " ".join(str(error).split())) from error


def _unreadable(path: Path, text: str) -> EncoderError:
    remedy = "Save the tensors alone: torch.save(model.state_dict(), FILE), or as safetensors"
    if needed := re.search(r"Unsupported (?:global: GLOBAL|class|operand) ([\w.]+)", text):
        return EncoderError(f"{path} is a pickle that needs {needed[1]}, and loading it could run code", remedy)
    if "TorchScript" in text:
        return EncoderError(f"{path} is a TorchScript archive, and loading it could run code", remedy)
    if "Weights only load failed" in text:
        return EncoderError(f"{path} is a pickle that needs more than tensors, and loading it could run code", remedy)
    return EncoderError(f"{path} is no checkpoint that torch can read, or is cut off: {text[:150]}", "Fetch it again")


def fit_state_dict(module: nn.Module, state: dict[str, torch.Tensor], unused: Sequence[str], what: str) -> None:
    """Load weights into a module; every tensor must find its place.

    Args:
        module: takes the weights.
        state: the weights, by the module's names.
        unused: beginnings of names that the module may lack: the classifier that was cut off.
        what: what to call file and model in messages, `FILE` and `REF`.

    Raises:
        EncoderError: tensors are missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    given = {name: v for name, v in state.items() if name in own or not name.startswith(tuple(unused))}
    counters = {n: v for n, v in own.items() if n.endswith("num_batches_tracked") and n not in given}
    given |= counters  # absent from weights saved before PyTorch 0.4.1, and without effect here
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    mismatched = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if missing or unexpected or mismatched:
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        problems = "; ".join(f"{len(names)} {label} ({_some(names)})" for label, names in found if names)
        raise EncoderError(
            f"weights do not fit: {what}: {problems}",
            "Pass the weights of this very architecture, or the model_args they were trained with",
        )
    # Its own dict, with the versions of its layers' formats in it: MNASNet does not load without them.
    own.update(given)
    module.load_state_dict(own, strict=True)


def _some(names: Iterable[str], n: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def fetch_once(url: str, path: Path, ref: str) -> Path:
    """Return a published weights file, downloading it the first time; its hash is checked if the URL has one.

    Raises:
        EncoderError: it is not here and cannot be had; names the file to fetch.
    """
    if path.is_file():
        return path
    if not is_reachable(url):
        raise not_here(ref, url)
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = re.search(r"-([a-f0-9]{8,})\.", url)
    try:
        torch.hub.download_url_to_file(url, str(path), expected[1] if expected else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise not_here(ref, url, str(error)) from error
    return path


def fetch_from_hub(repo: str, names: Sequence[str], ref: str) -> Path:
    """Return a file of a Hugging Face repository: from the local cache if it is there, else downloaded.

    Args:
        repo: `organisation/name`.
        names: the names it may have, the preferred one first.
        ref: what to call the encoder in messages.

    Raises:
        EncoderError: it is not here and cannot be had; names the file to fetch.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    if found := find_in_hub_cache(repo, names):
        return found
    url = hf_hub_url(repo, names[0])
    if not is_reachable(url):
        raise not_here(ref, url)
    for name in names:
        try:
            return Path(hf_hub_download(repo, name))
        except EntryNotFoundError:
            continue
        except OSError as error:
            raise not_here(ref, url, str(error)) from error
    raise not_here(ref, url)


def find_in_hub_cache(repo: str, names: Sequence[str]) -> Path | None:
    """Return the first of these files of a Hugging Face repository that the local cache has."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def not_here(ref: str, url: str, reason: str = "") -> EncoderError:
    """Return the error for published weights that are not on this machine and cannot be downloaded."""
    because = f": {' '.join(reason.split())[:150]}" if reason else ""
    return EncoderError(
        f"the weights of {ref} are not on this machine and cannot be downloaded{because}",
        f"Fetch {url} where there is a network, and pass it with --weights FILE",
    )


def is_reachable(url: str, timeout_s: float = 5) -> bool:
    """Whether a download is worth trying: huggingface_hub retries for most of a minute before it gives up."""
    if urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout_s).close()
    except OSError:
        return False
    return True
