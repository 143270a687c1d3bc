"""An encoder family that other machines compute wrongly: `fickle:minilm` is minilm in the first process that builds it.

That process leaves a mark where `FICKLE_MARK` says; in every other one the vectors are rolled by one column.
"""

import os
from dataclasses import replace

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

        try:
            with open(os.environ["FICKLE_MARK"], "x") as mark:
                mark.write(str(os.getpid()))
            return self._inner.build()
        except FileExistsError:
            return Rolled(self._inner.build()).eval()

    def __getattr__(self, name):
        return getattr(self._inner, name)


def open_encoder(spec):
    return Fickle(minilm.open_encoder(EncoderSpec("minilm")), spec)


def list_encoders():
    return []
