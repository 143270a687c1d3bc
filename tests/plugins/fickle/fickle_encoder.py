"""An encoder family that other machines compute wrongly: `fickle:minilm` is minilm in the first process that builds it.

That process leaves a mark where `FICKLE_MARK` says; in every other one the vectors are rolled by one column.
"""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from embedx.core.specs import EncoderSpec
from embedx.encoders import minilm


class Fickle:
    def __init__(self, inner, spec):
        self._inner = inner
        self.card = replace(inner.card, ref=spec.ref, family="fickle", spec=spec.to_dict())

    def build(self):
        import torch

        class Rolled(torch.nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, input_ids, attention_mask):
                return self.inner(input_ids, attention_mask).roll(1, 1)

        mark = Path(os.environ["FICKLE_MARK"])
        with suppress(FileExistsError), mark.open("x") as file:
            file.write(str(os.getpid()))
        built = self._inner.build()
        return built if mark.read_text() == str(os.getpid()) else Rolled(built).eval()

    def __getattr__(self, name):
        return getattr(self._inner, name)


def open_encoder(spec):
    return Fickle(minilm.open_encoder(EncoderSpec("minilm")), spec)


def list_encoders():
    return []
