"""An encoder family that misbehaves on marked texts: `poison:minilm` is minilm, but KILL kills and HANG hangs."""

import os
import time
from dataclasses import replace

from embedx.core.specs import EncoderSpec
from embedx.encoders import minilm


class Poison:
    def __init__(self, inner, spec):
        self._inner = inner
        self.card = replace(inner.card, ref=spec.ref, family="poison", spec=spec.to_dict())

    def prepare(self, items):
        for item in items:
            if isinstance(item, str) and "KILL" in item:
                os._exit(9)
            if isinstance(item, str) and "HANG" in item:
                time.sleep(3600)
        return self._inner.prepare(items)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def open_encoder(spec):
    return Poison(minilm.open_encoder(EncoderSpec("minilm")), spec)


def list_encoders():
    return []
