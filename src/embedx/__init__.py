"""embedx: frozen encoders over large corpora, vectors in Delta, FAISS indexes, scikit-learn heads.

The public names load on first use, so that `import embedx` costs nothing and building an index never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedx.api import extract, fit_head, index, load_encoder, open_head, open_index, open_store
    from embedx.core.errors import EmbedxError

__all__ = [
    "EmbedxError",
    "extract",
    "fit_head",
    "index",
    "load_encoder",
    "open_head",
    "open_index",
    "open_store",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'embedx' has no attribute {name!r}")
    module = "embedx.core.errors" if name == "EmbedxError" else "embedx.api"
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
