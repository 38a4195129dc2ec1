"""The result in words: headline, key figures, comparison table. Every number is the one in ``summary.json``."""

from __future__ import annotations

import math

from mim4d.viz import page
from mim4d.viz.run import RunFolder, scores

LEDE = (
    "mim4d pre-trains the eyes of a driving system without human labels. It hides parts of the camera images, builds a "
    "3-D volume of the surroundings from what is left, and learns by drawing that volume back: its colours must match "
    "the cameras, its distances must match the LiDAR."
)
_STILL = 0.005  # relative change below which a number is called unchanged
# entry of the results, title, decimals, unit, meaning
_ERRORS = (
    ("depth_l1_m", "Depth error", 2, "m", "Mean gap between rendered distance and LiDAR, in metres."),
    ("rgb_l1", "Colour error", 3, "", "Mean gap between rendered and camera colour: 0 is equal, 1 is black on white."),
)


def held_out(run: RunFolder) -> str:
    """What the errors are measured on, in words."""
    return "LiDAR rays kept out of training" if run.rays_held_out else "scenes kept out of training"


def moment(run: RunFolder) -> str:
    """What the pictures show, in words; said honestly when training has seen the images."""
    return "a moment whose images were trained on" if run.rays_held_out else "a held-out moment"


def _direction(before: float, after: float) -> str:
    if not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return "unknown"
    relative = (after - before) / before
    return "same" if abs(relative) < _STILL else ("fell" if relative < 0 else "rose")


def headline(run: RunFolder) -> str:
    """One sentence with the result, as HTML."""
    before, after = scores(run.summary, "val", "before"), scores(run.summary, "val", "after")
    if before is None or after is None:
        return "Unfinished run: this is the model before training has done its work"
    first, last = before["depth_l1_m"], after["depth_l1_m"]
    way = _direction(first, last)
    span = f"from {page.number(first, 2, 'm')} to {page.number(last, 2, 'm')}"
    if way == "unknown":
        return f"The depth error cannot be compared: {span}"
    if way == "same":
        return f"Depth error on {held_out(run)} did not change: {span}"
    percent = page.change(first, last).lstrip(page.MINUS + "+")
    return f"Depth error on {held_out(run)} {way} by {percent}, {span}"


def chips(run: RunFolder) -> str:
    """Short facts under the headline, as HTML."""
    settings, found = run.settings, []
    steps, seconds = run.summary.get("steps"), run.summary.get("seconds")
    logged = run.metrics.get("step")
    if run.finished and isinstance(steps, int):
        found.append(f"{steps} training steps")
    elif logged is not None:
        found.append(f"{logged[-1]:.0f} training steps so far")
    if run.finished and isinstance(seconds, (int, float)):
        found.append(page.duration(float(seconds)))
    frames, cameras = len(settings.get("data.offsets", "0").split(",")), len(run.before.cameras)
    found.append(f"{cameras} camera{'s' * (cameras != 1)}, {frames} moment{'s' * (frames != 1)} per clip")
    found.append(f"{run.before.image.shape[2]} \u00d7 {run.before.image.shape[1]} pixels")
    found += [settings["model.backbone"]] if settings.get("model.backbone") else []
    lift = {"push": "pixels push into voxels", "pull": "voxels pull from images"}
    found += [lift[way]] if (way := settings.get("model.view_transform", "")) in lift else []
    found += [f"preset {settings['preset']}"] if settings.get("preset") else []
    marked = '<li class="warn">Synthetic data</li>' if run.synthetic else ""
    return f'<ul class="chips">{marked}{"".join(f"<li>{page.text(chip)}</li>" for chip in found)}</ul>'


def notices(run: RunFolder) -> str:
    """What a reader must know before believing the numbers, as HTML."""
    found = []
    if not run.finished:
        missing = "measured its result or drawn it" if run.after is None else "measured its result"
        found.append(
            f"<strong>This run is not finished.</strong> It has not {missing}. The commands at the end continue it."
        )
    if run.synthetic:
        found.append(
            "<strong>Synthetic data.</strong> Images and LiDAR come from a computer-made driving world, not from a "
            "real car. The numbers show that the method works end to end; they say nothing about real streets."
        )
    return "".join(f'<p class="notice">{notice}</p>' for notice in found)


def stats(run: RunFolder) -> str:
    """Three key figures as HTML: depth error, colour error, distance from the trivial guess."""
    before, after, trivial = (scores(run.summary, "val", when) for when in ("before", "after", "trivial"))
    cells = []
    for name, title, digits, unit, meaning in _ERRORS:
        if before is None:
            break
        first = page.number(before[name], digits, unit)
        if after is None:
            cells.append((f"{title} before training", first, meaning))
            continue
        kind = {"fell": "good", "rose": "bad"}.get(_direction(before[name], after[name]), "from")
        by = f'<span class="by {kind}">{page.change(before[name], after[name])}</span>'
        shown = f'<span class="from">{first} &rarr;</span> {page.number(after[name], digits, unit)}{by}'
        cells.append((f"{title}, before and after", shown, meaning))
    if trivial is not None:
        shown = page.number(trivial["depth_l1_m"], 2, "m")
        gap = page.change(trivial["depth_l1_m"], after["depth_l1_m"]) if after is not None else ""
        if after is not None and gap:
            kind = "good" if after["depth_l1_m"] < trivial["depth_l1_m"] else "bad"
            shown += f'<span class="by {kind}">model: {gap}</span>'
        meaning = "A constant for each camera and image row: the mean distance of the training rays."
        cells.append(("Depth error of a trivial guess", shown, meaning))
    tiles = "".join(
        f'<div class="stat"><h3>{title}</h3><p class="big">{shown}</p><p>{meaning}</p></div>'
        for title, shown, meaning in cells
    )
    return f'<div class="stats">{tiles}</div>' if tiles else ""


def verdict(run: RunFolder) -> str:
    """Two or three sentences that say what the figures mean, as HTML."""
    before, after, trivial = (scores(run.summary, "val", when) for when in ("before", "after", "trivial"))
    if before is None or after is None:
        return (
            "Only the untrained model has been looked at so far. Its pictures are the starting point that training has "
            "to improve on."
        )
    data = run.summary.get("data")
    clips = data.get("val_clips_measured") if isinstance(data, dict) else None
    counted = f" ({clips} clip{'s' * (clips != 1)})" if isinstance(clips, int) else ""
    reach = ""
    if run.settings.get("data.lidar_bounds"):
        reach = "; LiDAR returns outside data.lidar_bounds are left out of the depth error"
    sentences = [f"Measured on {held_out(run)}{counted}, with full images{reach}."]
    if trivial is not None:
        depth, colour = after["depth_l1_m"] < trivial["depth_l1_m"], after["rgb_l1"] < trivial["rgb_l1"]
        sentences.append(
            {
                (True, True): "The model is better than a trivial guess in distance and in colour.",
                (True, False): "The model is better than a trivial guess in distance, but not yet in colour.",
                (False, True): "The model is better than a trivial guess in colour, but not yet in distance.",
                (False, False): "The model does not beat a trivial guess yet: it needs more training.",
            }[depth, colour]
        )
    if run.rays_held_out:
        sentences.append("The images themselves were trained on: this shows how well one place is fitted, no more.")
    rebuilt = scores(run.summary, "val_reconstructed", "after")
    if rebuilt is not None:
        sentences.append(
            "Rebuilding the same moments from their neighbours alone, without their own images, it is off by "
            f"{page.number(rebuilt['depth_l1_m'], 2, 'm')} in distance and {page.number(rebuilt['rgb_l1'], 3)} in "
            "colour."
        )
    return " ".join(sentences)


def score_table(run: RunFolder) -> str:
    """All measured errors with bars, as HTML; empty when nothing was measured."""
    direct = ", direct" if run.rebuilds else ""
    rows = [
        (f"Before training{direct}", "before the first step", "", "val", "before"),
        (f"After training{direct}", "from the moment's own images", "direct", "val", "after"),
        ("Before training, reconstructed", "before the first step", "", "val_reconstructed", "before"),
        ("After training, reconstructed", "from the other moments", "reconstructed", "val_reconstructed", "after"),
        ("Trivial guess", "one constant for each camera and image row", "trivial", "val", "trivial"),
    ]
    found = [(title, note, kind, scores(run.summary, group, when)) for title, note, kind, group, when in rows]
    measured = [(title, note, kind, row) for title, note, kind, row in found if row is not None]
    if not measured:
        return ""
    longest = {
        name: max([row[name] for *_, row in measured if math.isfinite(row[name])], default=1.0) or 1.0
        for name, *_ in _ERRORS
    }
    body = ""
    for title, note, kind, row in measured:
        cells = ""
        for name, _, digits, unit, _ in _ERRORS:
            width = 100 * row[name] / longest[name] if math.isfinite(row[name]) else 0.0
            bar = f'<span class="bar" aria-hidden="true"><i class="{kind}" style="width:{width:.1f}%"></i></span>'
            cells += f"<td>{bar}{page.number(row[name], digits, unit)}</td>"
        body += f'<tr><th scope="row">{title}<small>{note}</small></th>{cells}</tr>'
    return (
        '<table class="scores"><thead><tr><th scope="col">Errors on held-out data, shorter is better</th>'
        f'<th scope="col">Depth</th><th scope="col">Colour</th></tr></thead><tbody>{body}</tbody></table>'
    )


def words(run: RunFolder) -> str:
    """The few terms a newcomer needs, as a definition list."""
    kept = "whole scenes, never used in training: good numbers there are not memory."
    if run.rays_held_out:
        kept = "single LiDAR rays, never used in training. They test the space between trained rays, not new places."
    terms = {
        "Volume": "a grid of cells around the car; each holds a short list of learned numbers instead of a picture.",
        "Rendering": "following a ray per pixel through the volume until it meets a surface: colour and distance.",
        "Direct": "the volume is built from the images of the very moment that is drawn.",
        "Reconstructed": "that volume is thrown away and rebuilt from the other moments of the clip.",
        "Held-out": kept,
        "Trivial guess": "what one gets without any image. A model that does not beat it has learned little.",
    }
    if not run.rebuilds:
        del terms["Direct"], terms["Reconstructed"]
    entries = "".join(f"<div><dt>{term}</dt><dd>{meaning}</dd></div>" for term, meaning in terms.items())
    return f'<dl class="words">{entries}</dl>'
