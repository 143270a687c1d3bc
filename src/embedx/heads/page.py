"""`report.html`: the report of a head for people, one file without scripts or anything from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from embedx.heads.card import HeadCard

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #eee }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.note { color: #666 }
svg text { font: 11px system-ui, sans-serif; fill: #666 }
"""

WIDTH, HEIGHT, MARGIN = 640, 220, 44


def render_page(card: HeadCard) -> str:
    """Return the page of a head."""
    training, evaluation, metrics = card.training, card.evaluation, card.metrics
    worst = sorted(evaluation["per_class"], key=lambda score: (score["f1"], score["label"]))
    facts = [
        ("encoder", f"{card.encoder['ref']} ({card.encoder['precision']}, {card.dim} values)"),
        ("store", f"{training['store']}, version {training['version']}"),
        ("label", f"{training['label']}: {len(card.classes):,} classes, {training['n']:,} rows"),
        ("rows without a label", f"{training['n_unlabelled']:,}"),
        ("chosen C", f"{card.C:g}"),
        ("created", card.created),
    ]
    scores = [("accuracy", metrics["accuracy"]), ("macro F1", metrics["macro_f1"]), ("log loss", metrics["log_loss"])]
    scores.append(("accuracy of always guessing the most frequent class", metrics["majority"]))
    parts = [
        f"<h1>Head: {escape(training['label'])}</h1>",
        _table(("", ""), facts),
        f"<h2>On {metrics['n']:,} rows it had not seen</h2>",
        f'<p class="note">{escape(evaluation["how"])}.</p>',
        _table(("", ""), [(name, _number(value)) for name, value in scores]),
        "<h2>Choosing C</h2>",
        '<p class="note">Cross-validated log loss (lower is better) with standard errors, by C on a log scale.</p>',
        _curve(card),
        "<h2>Classes, the hardest first</h2>",
        _table(
            ("class", "rows", "predicted", "precision", "recall", "F1"),
            [
                (
                    s["label"],
                    f"{s['n']:,}",
                    f"{s['predicted']:,}",
                    *(_number(s[k]) for k in ("precision", "recall", "f1")),
                )
                for s in worst
            ],
        ),
    ]
    if evaluation["confusions"]:
        rows = [(c["label"], c["predicted"], f"{c['n']:,}") for c in evaluation["confusions"]]
        parts += ["<h2>Most frequent confusions</h2>", _table(("is", "was taken for", "rows"), rows)]
    title = f"embedx head: {escape(training['label'])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    numeric = [len(header) > 2 and all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(tag: str, cells: tuple[str, ...]) -> str:
        marks = [' class="number"' if number else "" for number in numeric]
        return "<tr>" + "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marks, cells)) + "</tr>"

    top = line("th", header) if any(header) else ""
    return f"<table>{top}{''.join(line('td', row) for row in rows)}</table>"


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "", 1).isdigit()


def _curve(card: HeadCard) -> str:
    """Draw log loss over log10 C; a plain SVG."""
    points = [(math.log10(p["C"]), p["log_loss"], p["standard_error"] or 0.0) for p in card.C_curve]
    left, right = points[0][0], points[-1][0]
    low, high = min(y - e for _, y, e in points), max(y + e for _, y, e in points)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + (x - left) / max(right - left, 1e-9) * (WIDTH - 2 * MARGIN),
            HEIGHT - MARGIN - (y - low) / max(high - low, 1e-9) * (HEIGHT - 2 * MARGIN),
        )

    marks: list[str] = []
    for x, y, error in points:
        (px, py), (_, top), (_, bottom) = at(x, y), at(x, y + error), at(x, y - error)
        chosen = abs(10**x - card.C) < 1e-6 * card.C
        marks.append(f'<line x1="{px:.1f}" y1="{top:.1f}" x2="{px:.1f}" y2="{bottom:.1f}" stroke="#9bb"/>')
        marks.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{5 if chosen else 3}" fill="{"#c33" if chosen else "#277"}"/>'
        )
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(x, y) for x, y, _ in points))
    ticks = range(math.ceil(left), math.floor(right) + 1)
    labels = [f'<text x="{at(t, low)[0]:.1f}" y="{HEIGHT - 20}" text-anchor="middle">1e{t}</text>' for t in ticks]
    labels += [f'<text x="4" y="{at(left, value)[1]:.1f}">{value:.3g}</text>' for value in (low, high)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="log loss by C">'
        f'<polyline points="{path}" fill="none" stroke="#277"/>{"".join(marks)}{"".join(labels)}</svg>'
    )
