"""The other process of `embedx conformance`: opens the encoder whose spec comes on stdin, and says what it is."""

from __future__ import annotations

import json
import sys

from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
from embedx.steps.conformance_checks import canaries_digest


def main() -> None:
    """Write {fingerprint, canaries} as one line of JSON."""
    encoder = open_encoder(EncoderSpec.from_dict(json.load(sys.stdin)))
    told = {"fingerprint": encoder.card.fingerprint, "canaries": canaries_digest(encoder.canaries())}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
