"""``RUN/report.html``: one file that tells a stranger what a run did, how well, and what its model sees.

:func:`write_report` reads the run folder alone. The sections stand here in the order of the page; the words of the
result come from :mod:`mim4d.viz.story`, pictures from :mod:`mim4d.viz.figures`, HTML from :mod:`mim4d.viz.page`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mim4d.viz import figures, page, story
from mim4d.viz.images import DEPTH_RANGE, DEPTH_TICKS, depth_bar, depth_fraction, fit_width, plain_name, reading_order
from mim4d.viz.run import Renders, RunFolder, load_run, scores
from mim4d.viz.style import raster_uri, svg
from mim4d.viz.timing import step_times

PHOTO_WIDTH = 560  # pixels of a photograph on the page; it is never shown larger on a laptop
FINE_WIDTH = 320  # rays across a rendered picture above which single rays cannot be told apart on the page


def write_report(run: Path) -> Path:
    """Write ``run/report.html`` from ``config.yaml``, ``metrics.jsonl``, ``summary.json`` and ``renders/*.npz``.

    The page needs no network, no script and no other file. Without ``renders/after.npz`` or results in
    ``summary.json`` it says that the run is unfinished and shows what there is.

    Args:
        run: a run folder.

    Returns:
        the page's path.

    Raises:
        UserError: a file is missing or broken; the message names it.
    """
    content = load_run(Path(run))
    target = content.path / "report.html"
    temporary = target.with_name(".report.html.tmp")
    temporary.write_text(html_page(content), encoding="utf-8")
    temporary.replace(target)
    return target


def html_page(run: RunFolder) -> str:
    """The page as text."""
    parts = [
        ("result", "Result", "Result", _result(run)),
        ("input", "Input", "What the model was given", _input(run)),
        ("colour", "Colours", "Colours it draws", _colours(run)),
        ("depth", "Distances", "Distances it draws", _depths(run)),
        ("volume", "From above", "The world from above", _volume(run)),
        ("motion", "Motion", "What moves", _motion(run)),
        ("training", "Training", "Training", _training(run)),
        ("machine", "Machine", "Machine and backends", _machine(run)),
        ("reproduce", "Settings", "Settings, and how to run it again", _reproduce(run)),
    ]
    shown = [part for part in parts if part[3]]
    links = "".join(f'<a href="#{anchor}">{page.text(short)}</a>' for anchor, short, _, _ in shown)
    sections = "".join(page.section(anchor, title, body) for anchor, _, title, body in shown)
    name = run.path.resolve().name
    header = (
        f'<header><p class="kicker">mim4d pre-training report &middot; {page.text(name)}</p>'
        f'<h1>{story.headline(run)}</h1><p class="lede">{story.LEDE}</p>{story.chips(run)}{_strip(run)}'
        f'<nav aria-label="Contents">{links}</nav></header>'
    )
    footer = (
        "<footer>Written by mim4d from this run's own files (config.yaml, summary.json, metrics.jsonl, renders). "
        "Everything on the page is in this one file.</footer>"
    )
    return page.document(f"mim4d report: {name}", f"{header}<main>{sections}</main>{footer}")


def _result(run: RunFolder) -> str:
    return "".join(
        [story.notices(run), story.stats(run), f"<p>{story.verdict(run)}</p>", story.score_table(run), story.words(run)]
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


def _photo(image: np.ndarray, alt: str) -> str:
    """A camera picture: large ones are reduced, small ones stay as they are."""
    small = image if image.shape[1] <= PHOTO_WIDTH else fit_width(image, PHOTO_WIDTH)
    return page.image(raster_uri(small, photo=True), alt)


def _drawn(image: np.ndarray, alt: str) -> str:
    """A rendered picture, one pixel per ray: kept sharp, nothing invented in between. Very fine ones are photos."""
    if image.shape[1] > FINE_WIDTH:
        return _photo(image, alt)
    return page.image(raster_uri(image, photo=False), alt, pixels=True)


def _lidar(shot: Renders, camera: int, alt: str) -> str:
    overlay = figures.lidar_overlay(shot.image[camera], shot.lidar_of(camera), width=PHOTO_WIDTH)
    return page.image(raster_uri(overlay, photo=True), alt)


def _strip(run: RunFolder) -> str:
    """The whole story in one row: the camera in driving direction, from image to distances."""
    shot, drawn = run.before, run.after or run.before
    names = [plain_name(camera) for camera in shot.cameras]
    index = names.index("front") if "front" in names else 0
    depth = figures.rendered_depth(drawn.depth_direct[index], drawn.opacity_direct[index])
    which = "trained" if run.after is not None else "untrained"
    tiles = [
        (_photo(shot.image[index], "A camera image"), "Camera image"),
        (_photo(shot.masked_image[index], "The same image with blocks hidden"), "What training shows of it"),
        (_drawn(drawn.rgb_direct[index], f"The view as rendered by the {which} model"), "Colours, rendered"),
        (_drawn(depth, f"Distances as rendered by the {which} model"), "Distances, rendered"),
        (_lidar(shot, index, "The LiDAR's distances over the image"), "Distances, by LiDAR"),
    ]
    note = (
        f"{names[index].capitalize()} camera at {story.moment(run)}. The {which} model rendered the third and fourth "
        "picture from its 3-D volume. Distances: red is near, violet is far."
    )
    pictures = "".join(f"<figure>{tile}<figcaption>{page.text(words)}</figcaption></figure>" for tile, words in tiles)
    return f'<div class="strip">{pictures}</div><p class="note">{page.text(note)}</p>'


def _rig(images: np.ndarray, cameras: Sequence[str], what: str) -> str:
    tiles = "".join(
        f"<figure>{_photo(images[index], f'{what}, camera {plain_name(cameras[index])}')}"
        f'<p class="note">{page.text(plain_name(cameras[index]))}</p></figure>'
        for index in reading_order(cameras)
    )
    return f'<div class="rig">{tiles}</div>'


def _input(run: RunFolder) -> str:
    shot = run.before
    hidden = float((shot.image != shot.masked_image).any(axis=-1).mean())
    full, masked = (
        _rig(images, shot.cameras, what)
        for images, what in ((shot.image, "Full image"), (shot.masked_image, "Masked input"))
    )
    hiding = (
        "In training, blocks of every image are hidden, drawn anew each time, so that the model has to fill in what it "
        "cannot see."
    )
    return (
        f"<p>The pictures on this page show {story.moment(run)}, seen by {len(shot.cameras)} cameras. "
        f"{hiding if hidden else 'Masking is off in this run: training shows every pixel.'}</p>"
        f'<div class="two"><div><h3>The cameras\' images</h3>{full}</div>'
        f"<div><h3>The same images as training shows them</h3>{masked}</div></div>"
        + page.how_to_read(
            f"Left: everything. Right: what reaches the model in a training step; {100 * hidden:.0f}&nbsp;% of these "
            "pixels are hidden. All pictures further down are drawn from the full images, as in use."
        )
    )


_Column = tuple[str, str, Renders, str]  # title, explanation, where its arrays are, suffix of their names


def _columns(run: RunFolder) -> list[_Column]:
    columns = [("Before training", "before the first step", run.before, "direct")]
    if run.after is not None:
        title = "After, direct" if run.rebuilds else "After training"
        columns.append((title, "from this moment's images", run.after, "direct"))
        if run.after.rgb_reconstructed is not None and run.after.depth_reconstructed is not None:
            columns.append(("After, reconstructed", "from the other moments alone", run.after, "reconstructed"))
    return columns


def _pictures(first: tuple[str, str], columns: list[_Column], rows: list[tuple[str, list[str]]]) -> str:
    """A table of pictures: a row per camera, the measured picture first, then every rendered one."""
    heads = [first, *((title, note) for title, note, _, _ in columns)]
    head = "".join(f'<th scope="col">{page.text(title)}<small>{page.text(note)}</small></th>' for title, note in heads)
    body = "".join(
        f'<tr><th scope="row">{page.text(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="scroll"><table class="pics" style="max-width:{90 + 340 * len(heads)}px">'
        f'<colgroup><col class="name"><col span="{len(heads)}"></colgroup>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _colours(run: RunFolder) -> str:
    shot, columns = run.before, _columns(run)
    rows = []
    for index in reading_order(shot.cameras):
        name = plain_name(shot.cameras[index])
        cells = [_photo(shot.image[index], f"Camera image, {name}")]
        for title, _, renders, suffix in columns:
            cells.append(_drawn(getattr(renders, f"rgb_{suffix}")[index], f"{title}: rendered colours, {name}"))
        rows.append((name, cells))
    height, width = shot.rgb_direct.shape[1:3]
    hard = " The last column is the harder task: the model was not given this moment's images at all."
    return (
        "<p>The model holds no picture, only a volume. For every pixel a ray is followed through it, and the "
        "colours met on the way are added up.</p>"
        + _pictures(("Camera", "the measured image"), columns, rows)
        + page.how_to_read(
            f"Each rendered picture has one ray per {shot.stride} pixels ({width} &times; {height} rays), shown as "
            "sharp squares. Look for the ground, the horizon and large objects in the right places; fine detail needs "
            f"longer training and larger images.{hard if columns[-1][3] == 'reconstructed' else ''}"
        )
    )


def _scale() -> str:
    ticks = "".join(
        f'<span style="left:{100 * float(depth_fraction(np.array(tick))):.1f}%">{tick}&nbsp;m</span>'
        for tick in DEPTH_TICKS
    )
    alt = f"Colour scale of distance, {DEPTH_TICKS[0]} to {DEPTH_TICKS[-1]} metres"
    bar = page.image(raster_uri(depth_bar(), photo=False), alt)
    return f'<div class="scale">{bar}<span class="ticks" aria-hidden="true">{ticks}</span></div>'


def _depths(run: RunFolder) -> str:
    shot, columns = run.before, _columns(run)
    rows = []
    for index in reading_order(shot.cameras):
        name = plain_name(shot.cameras[index])
        hits = f"{len(shot.lidar_of(index))} LiDAR hits"
        cells = [f'{_lidar(shot, index, f"LiDAR distances over the camera image, {name}")}<p class="note">{hits}</p>']
        for title, _, renders, suffix in columns:
            depth = getattr(renders, f"depth_{suffix}")[index]
            opacity = getattr(renders, f"opacity_{suffix}")
            drawn = figures.rendered_depth(depth, None if opacity is None else opacity[index])
            truth, rendered = renders.at_lidar(index, depth)  # its own stride: it may be drawn finer
            error = np.abs(rendered - truth)
            off = "no LiDAR hit to compare with" if not len(truth) else "no number"
            if np.isfinite(error).any():
                off = f"{np.nanmean(error):.1f} m off on average"
            picture = _drawn(drawn, f"{title}: rendered distances, {name}, {off}")
            cells.append(f'{picture}<p class="note">{off}</p>')
        rows.append((name, cells))
    kept = " Only the LiDAR returns that were kept out of training are drawn and compared." if run.rays_held_out else ""
    chart = svg(figures.depth_error_figure(run.before, run.after), "distance")
    curve = page.figure(
        page.vector(chart, "Mean depth error over distance"),
        "Error over distance, this moment",
        "Rendered distance at the nearest ray against LiDAR, averaged in bins of distance. Lower is better." + kept,
    )
    reading = page.how_to_read(
        f"One colour scale for all pictures, {DEPTH_RANGE[0]:g} to {DEPTH_RANGE[1]:g}&nbsp;m, finer near the car: red "
        "is near, violet is far. LiDAR measures single points, drawn over the faded photograph; the model draws every "
        "ray. Where it has learned, its colours continue the LiDAR's: the ground runs from red to blue towards the "
        "horizon, cars and walls stand out from it. Grey: the ray met nothing. The sky returns no LiDAR, so nothing "
        "teaches a distance there. In the chart, a model that always answers with one distance is right at that "
        "distance only."
    )
    pictures = _pictures(("LiDAR", "measured, over the camera"), columns, rows)
    return (
        "<p>The same rays, now asked how far they go before they meet a surface. LiDAR gives the true answer, "
        "so this is where learned geometry shows.</p>"
        f'{_scale()}{pictures}<div class="two">{curve}{reading}</div>'
    )


def _volume(run: RunFolder) -> str:
    shot = run.before
    sets = [("Before training", run.before, run.before.bev_direct)]
    if run.after is not None:
        sets.append(("After, direct" if run.rebuilds else "After training", run.after, run.after.bev_direct))
        if run.after.bev_reconstructed is not None:
            sets.append(("After, reconstructed", run.after, run.after.bev_reconstructed))
    limit = figures.shared_limit(*(field for _, _, field in sets))
    features = []
    for place, (title, renders, field) in enumerate(sets):
        drawn = figures.bev_figure(field, renders.bounds, limit=limit, cameras=shot.cameras, boxes=shot.boxes)
        features.append(page.figure(page.vector(svg(drawn, f"bev{place}"), f"{title}: features from above"), title))
    reach = figures.shared_limit(*(renders.sdf_slice for _, renders, _ in sets[:2]), percentile=98)
    surfaces = []
    for place, (title, renders, _) in enumerate(sets[:2]):
        drawn = figures.sdf_figure(
            renders.sdf_slice, renders.bounds, limit=reach, cameras=shot.cameras, boxes=shot.boxes
        )
        alt = f"{title}: signed distance to surfaces, half a metre above the ground"
        surfaces.append(page.figure(page.vector(svg(drawn, f"sdf{place}"), alt), title))
    has_boxes = shot.boxes is not None and len(shot.boxes) > 0
    outlined = " Outlines are annotated objects; training never used them." if has_boxes else ""
    reading = page.how_to_read(
        "How strongly each cell of ground is described, at its strongest height. Structure that follows the road, "
        "walls and objects means that the volume has found where things are; spokes fanning out from the cameras mean "
        f"that it knows directions but not yet distances.{outlined}"
    )
    surface_reading = page.how_to_read(
        "The distance field that stops the rays. Blue is free space, red is inside something, the black line between "
        "them is the surface. Only what cameras and LiDAR reach is taught; the rest is the model's guess."
    )
    side_by_side = f'<div class="three">{"".join(features)}{reading if len(features) < 3 else ""}</div>'
    side_by_side += reading if len(features) == 3 else ""
    return (
        "<p>The volume itself, looked at from above. The car stands in the middle and drives upwards; "
        "the names mark roughly where each camera looks.</p>"
        f"<h3>Features</h3>{side_by_side}"
        "<h3>Surfaces, half a metre above the ground</h3>"
        f'<div class="three">{"".join(surfaces)}{surface_reading}</div>'
    )


def _motion(run: RunFolder) -> str:
    drawn = run.after or run.before
    if drawn.motion is None:
        return ""
    limit = figures.speed_limit(drawn)
    title = f"The model's motion field, {'after' if run.after is not None else 'before'} training"
    field = figures.motion_figure(drawn.motion, drawn.bounds, limit=limit, cameras=drawn.cameras)
    panels = page.figure(page.vector(svg(field, "flow"), title), title)
    if drawn.boxes is not None and len(drawn.boxes):
        title = "Annotated objects and their velocities"
        boxes = figures.velocity_figure(drawn.boxes, drawn.bounds, limit=limit, cameras=drawn.cameras)
        panels += page.figure(page.vector(svg(boxes, "boxes"), title), title)
    reading = page.how_to_read(
        "An arrow is the way covered in one second, the colour is the speed; maps side by side share one scale. The "
        "car's own motion is taken out, so a perfect field is still everywhere except where something moves. The field "
        "is a by-product without a loss of its own: after a short training expect a weak and noisy one."
    )
    return (
        "<p>To rebuild one moment from others, the model looks up where each place's content was at the neighbouring "
        "moments. Those look-ups, over time, are a motion field that nobody labelled.</p>"
        f'<div class="three">{panels}{reading}</div>'
    )


# --- training, machine, settings --------------------------------------------------------------------------------------


def _training(run: RunFolder) -> str:
    steps = run.metrics.get("step", np.empty(0))
    before, after, trivial = (scores(run.summary, "val", when) for when in ("before", "after", "trivial"))
    wide: list[str] = []
    small: list[str] = []
    for panel in figures.panels(run.metrics):
        marks = []
        if panel.score and before:
            marks.append(figures.Mark(0, before[panel.score], "held-out, before"))
        if panel.score and after and len(steps):
            marks.append(figures.Mark(float(steps[-1]), after[panel.score], "held-out, after"))
        level = trivial[panel.score] if panel.score and trivial else None
        large = panel.key in ("colour", "depth")
        drawn = figures.curve_figure(steps, panel, marks, level=level, size=(5.6, 2.7) if large else (3.7, 2.3))
        picture = page.vector(svg(drawn, panel.key), f"{panel.title} over training steps")
        (wide if large else small).append(page.figure(picture, panel.title, panel.note))
    if not wide and not small:
        return ""
    rows = [f'<div class="{kind}">{"".join(group)}</div>' for kind, group in (("two", wide), ("three", small)) if group]
    return "".join(rows) + page.how_to_read(
        "Faint: every logged step. Bold: their mean over about a twentieth of the run. Steps differ in difficulty "
        "(another moment, other rays, another mask), so single steps jump. Circles and the dotted line: the model's "
        "and the trivial guess's errors on held-out data, without masks, so they may lie below the curve."
    )


def _machine(run: RunFolder) -> str:
    environment = run.summary.get("environment")
    if not isinstance(environment, dict) or not environment:
        return "<p>Not known yet: the machine is written down in summary.json, which an unfinished run lacks.</p>"
    ready = {"libraries": "loaded", "backends": "ready", "ops": "ready"}  # there, nothing stands against it
    return (
        "<p>What the run was computed on. Every op names the backends that are written for it: ready ones are built "
        "and loaded, and serve tensors of their own device; the others say what they lack.</p>"
        + step_times(run)
        + page.facts(environment, "Versions and device", lambda key: ready.get(key, page.NOTHING))
    )


def _reproduce(run: RunFolder) -> str:
    settings = run.settings
    folder = run.path.resolve().name if run.path.is_absolute() else run.path.as_posix()
    root = settings.get("data.root") or "DATA"
    groups: list[tuple[str, list[str]]] = []
    if run.world is not None:
        made = [f"--{name}={run.world[name]}" for name in ("seed", "scenes", "seconds")]
        knobs = run.world.get("knobs")
        turned = {"version": run.world.get("version"), **(knobs if isinstance(knobs, dict) else {})}
        made += [f"--{str(name).replace('_', '-')}={value}" for name, value in turned.items() if value is not None]
        world = ["mim4d", "world", root, *made, "--image-size={}x{}".format(*run.world["image_size"])]
        groups.append(("make the synthetic world, where there is none yet", world))
    if settings.get("preset"):
        command = ["mim4d", "pretrain", "--preset", settings["preset"], "--data.root", root]
        command += ["--data.version", settings["data.version"]] if settings.get("data.version") else []
        groups.append(("train with the same preset", [*command, "--out", "runs/again"]))
    again = ["mim4d", "pretrain", "--preset", f"{folder}/config.yaml", "--out", "runs/again"]
    groups.append(("train with exactly the settings of this run", again))
    if not run.finished:
        groups.append(("go on with this run", ["mim4d", "pretrain", "--out", folder]))
    words = "draw the pictures and this page anew" if run.finished else "draw what its newest checkpoint sees"
    groups.append((words, ["mim4d", "render", folder]))
    named = ""
    if run.synthetic and run.world is None:
        named = (
            f"<p>The run learned from the synthetic world in <code>{page.text(root)}</code>; how that one was made is "
            "not written down in this run's folder.</p>"
        )
    commands = "\n\n".join(f"# {words}\n{shlex.join(command)}" for words, command in groups)
    return (
        f"{named}<pre><code>{page.text(commands)}</code></pre>"
        "<details><summary>All settings of this run (config.yaml)</summary>"
        f"<pre>{page.text(run.config_text)}</pre></details>"
    )
