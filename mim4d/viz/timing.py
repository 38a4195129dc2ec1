"""What ran where and how long a step took: the run's own backends beside the references, as in ``summary.json``."""

from __future__ import annotations

import math
from typing import Any

from mim4d.viz import page
from mim4d.viz.run import RunFolder

# key in summary["step_times"], title, explanation, class of the bar
_WAYS = (
    ("own", "This run's backends", "what trained this model", "direct"),
    ("reference", "The references", "the same step with MIM4D_BACKEND=reference: plain torch, no kernel", ""),
)


def step_times(run: RunFolder) -> str:
    """Seconds per step both ways, and the backends that every op ran on, as HTML; empty when not measured."""
    found = run.summary.get("step_times")
    if not isinstance(found, dict):
        return ""
    ways = {name: entry for name, *_ in _WAYS if isinstance(entry := found.get(name), dict)}
    seconds = {name: _numbers(entry.get("seconds")) for name, entry in ways.items()}
    if not any(seconds.values()):
        return ""
    return f"<h3>Step time</h3>{_sentence(seconds)}{_times(ways, seconds)}{_backends(ways)}{_reading(found)}"


def _numbers(value: object) -> list[float]:
    entries = value if isinstance(value, list) else []
    return [float(v) for v in entries if isinstance(v, (int, float)) and math.isfinite(v) and v > 0]


def _sentence(seconds: dict[str, list[float]]) -> str:
    own, reference = seconds.get("own"), seconds.get("reference")
    if not own or not reference:
        return "<p>Forward and backward of one training step. There is nothing to compare it with in this run.</p>"
    ratio = min(reference) / min(own)
    said = (
        f"{ratio:.2f} times as fast with this run's backends as with the references"
        if ratio >= 1
        else f"{1 / ratio:.2f} times slower with this run's backends than with the references"
    )
    return f"<p>Forward and backward of one training step, image encoder and all, ran {said}.</p>"


def _times(ways: dict[str, Any], seconds: dict[str, list[float]]) -> str:
    longest = max(max(times) for times in seconds.values() if times)
    body = ""
    for name, title, note, kind in _WAYS:
        if name not in ways:
            continue
        times = seconds[name]
        cell = page.text(ways[name].get("failed", page.NOTHING))
        if times:
            width = 100 * min(times) / longest
            bar = f'<span class="bar" aria-hidden="true"><i class="{kind}" style="width:{width:.1f}%"></i></span>'
            cell = (
                f"{bar}{page.number(min(times), 2, 's')}<small>{len(times)} steps, slowest {max(times):.2f} s</small>"
            )
        body += f'<tr><th scope="row">{title}<small>{note}</small></th><td>{cell}</td></tr>'
    head = '<th scope="col">Shorter is better</th><th scope="col">Fastest step</th>'
    return f'<table class="scores"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _backends(ways: dict[str, Any]) -> str:
    ran = {name: entry["backends"] for name, entry in ways.items() if isinstance(entry.get("backends"), dict)}
    ops = list(dict.fromkeys(op for known in ran.values() for op in known))
    if not ops:
        return ""
    head = "".join(f'<th scope="col">{title}</th>' for name, title, *_ in _WAYS if name in ran)
    body = ""
    for op in ops:
        cells = "".join(f"<td>{_joined(ran[name].get(op))}</td>" for name, *_ in _WAYS if name in ran)
        body += f'<tr><th scope="row"><code>{page.text(op)}</code></th>{cells}</tr>'
    head = f'<thead><tr><th scope="col">The op ran on</th>{head}</tr></thead>'
    return f'<table class="scores ran">{head}<tbody>{body}</tbody></table>'


def _joined(names: object) -> str:
    return page.text(", ".join(str(name) for name in names)) if isinstance(names, list) and names else page.NOTHING


def _reading(found: dict[str, Any]) -> str:
    size = ""
    if isinstance(found.get("rays"), int) and isinstance(found.get("samples"), int):
        size = f" {found['rays']} rays of {found['samples']} samples through each volume."
    return page.how_to_read(
        "Measured at the end of the run, one batch, the same masks and rays, the two in turns; the fastest of each is "
        f"compared, since other work on the machine can only slow a step down.{size} Loading and the optimiser are not "
        "in it. What is none of these ops, the image encoder above all, is torch's own on both sides."
    )
