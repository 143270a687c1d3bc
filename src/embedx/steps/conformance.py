"""The step `conformance`: does an encoder keep the contract? For authors of plug-ins, and for our own families."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from embedx.core.errors import EmbedxError
from embedx.core.reports import Progress, ProgressHook, Report, no_progress
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
from embedx.steps.conformance_checks import CHECKS, NoVectorsError, SkippedError
from embedx.steps.conformance_subject import Subject


def check_conformance(spec: EncoderSpec, threads: int | None = None, progress: ProgressHook = no_progress) -> Report:
    """Open an encoder and run every check on it; a failed one does not keep the others from running.

    Args:
        spec: which encoder.
        threads: cores to use; None is the real quota.
        progress: called with the present state.

    Returns:
        A report: encoder, fingerprint, ok, seconds, checks (list of {name, status, detail}); a status is passed,
        failed or skipped.

    Raises:
        EmbedxError: the encoder cannot be opened, and says why itself.
    """
    started = time.monotonic()
    report: Report = {"encoder": spec.ref, "fingerprint": None, "ok": False, "seconds": 0.0, "checks": []}
    try:
        subject = Subject(open_encoder(spec), threads)
        report["fingerprint"] = subject.encoder.card.fingerprint
    except EmbedxError:
        raise
    except Exception as error:
        report["checks"] = [{"name": "opens", "status": "failed", "detail": _describe(error)}]
        return report
    state = Progress("conformance", len(CHECKS))
    with subject:
        for result in _iterate_results(subject, state, progress):
            report["checks"].append(result)
    report["ok"] = all(result["status"] != "failed" for result in report["checks"])
    report["seconds"] = round(time.monotonic() - started, 3)
    return report


def _iterate_results(subject: Subject, state: Progress, progress: ProgressHook) -> Iterator[dict[str, Any]]:
    for name, check in CHECKS.items():
        state.note = name
        progress(state)
        try:
            status, detail = "passed", check(subject)
        except SkippedError as skipped:
            status, detail = "skipped", str(skipped)
        except NoVectorsError as error:
            status, detail = "failed" if name == "vectors" else "skipped", str(error)
        except Exception as error:
            # Encoders of plug-ins raise anything; each check says what it found.
            status, detail = "failed", _describe(error)
        state.done += 1
        state.failed += status == "failed"
        yield {"name": name, "status": status, "detail": detail}
    progress(state)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    return text if text and isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"
