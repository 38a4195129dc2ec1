"""``OUT/gallery.html``: one file that shows a person what a world holds, scene by scene.

:func:`write_gallery` reads the finished world alone (:mod:`mim4d.viz.album`), so it works on a world made earlier.
Pictures come from :mod:`mim4d.viz.driving` and :mod:`mim4d.viz.images`, HTML from :mod:`mim4d.viz.page`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim4d.data.frames import Array, FrameRecord, invert_rigid, transform
from mim4d.data.maps import HdMap
from mim4d.data.rays import View, lidar_hits, load_lidar
from mim4d.data.transforms import load_image
from mim4d.errors import UserError
from mim4d.viz import page
from mim4d.viz.album import HALF_KEY, Shown, Truth, map_around, open_truth, read_manifest, read_world, track_counts
from mim4d.viz.driving import (
    AREA_COLOURS,
    CLASS_COLOURS,
    LINE_COLOURS,
    draw_boxes,
    film_frame,
    from_above,
    legend,
    normals_to_rgb,
)
from mim4d.viz.images import depth_to_rgb, lidar_overlay, plain_name, reading_order
from mim4d.viz.style import film_uri, raster_uri

Picture = NDArray[np.uint8]
Progress = Callable[[int, int], None]

NAME = "gallery.html"
RIG_WIDTH = 352  # pixels of one of six cameras; about what the page shows
TRUTH_WIDTH = 176  # of one of six pictures of depth or normals, which stand two rigs in a row
OVERLAY_WIDTH = 480
ABOVE_SIDE, ABOVE_REACH = 480, 40.0  # pixels; metres from the middle to the edge
FILM_SIDE, FILM_REACH = 176, 30.0
FILM_FRAMES = 30  # at most: seven and a half seconds
QUALITY, STILL_QUALITY = 80, 60  # of JPEG
MOST = 12  # scenes in pictures: with the sizes above they make a page of about 8 MB


def write_gallery(root: str | os.PathLike[str], progress: Progress | None = None) -> Path:
    """Writes ``root/gallery.html``, a page that needs no network, no script and no other file.

    Of a world of more than MOST scenes the page pictures so many, spread evenly; its table names them all.

    Args:
        root: folder of a finished world, as :func:`mim4d.world.generate` leaves it.
        progress: called as progress(done, total) with counts of the scenes in pictures, once at the start and after
            each.

    Returns:
        the page's path.

    Raises:
        UserError: ``root`` holds no world, a file of it is missing or broken, or the page cannot be written; the
            message names it.
    """
    folder = Path(root)
    made = read_manifest(folder)
    scenes = read_world(folder)
    tell = progress or (lambda done, total: None)
    chosen = (
        sorted({round(i) for i in np.linspace(0, len(scenes) - 1, MOST)}) if len(scenes) > MOST else range(len(scenes))
    )
    pictured = [scenes[i] for i in chosen]
    tell(0, len(pictured))
    maps: dict[str, HdMap] = {}
    sections = {}
    for done, scene in enumerate(pictured, start=1):
        if scene.location not in maps:
            maps[scene.location] = HdMap(folder, scene.location)
        sections[scene.name] = _scene(scene, maps[scene.location], open_truth(folder, made, scene.name))
        tell(done, len(pictured))
    target = folder / NAME
    temporary = target.with_name(f".{NAME}.tmp")
    try:
        temporary.write_text(_page(made, scenes, sections), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    return target


# --- the page ---------------------------------------------------------------------------------------------------------


def _page(made: dict[str, Any], scenes: list[Shown], sections: dict[str, str]) -> str:
    links = "".join(_link(name) for name in sections)
    frames = sum(len(scene.clips) for scene in scenes)
    held = sum(scene.validation for scene in scenes)
    boxes = sum(len(track.times) for scene in scenes for track in scene.tracks)
    counts = f"{len(scenes) - held} for training, {held} for validation"
    chips = [f"{len(scenes)} scenes: {counts}", f"{frames} key frames", f"{boxes} boxes"]
    header = (
        '<header><p class="kicker">mim4d world</p><h1>A synthetic driving world, and what is in it</h1>'
        '<p class="lede">Procedural towns in the format of nuScenes, with the ground truth that real recordings lack. '
        "Nothing here was ever on a road: it proves a pipeline and its kernels, not accuracy on real data.</p>"
        f'<ul class="chips"><li class="warn">synthetic</li>{"".join(f"<li>{page.text(chip)}</li>" for chip in chips)}'
        f'</ul><nav aria-label="Contents"><a href="#world">The world</a>{links}</nav></header>'
    )
    footer = (
        "<footer>Written by mim4d from this world's own files. Everything on the page is in this one file.</footer>"
    )
    body = page.section("world", "The world", _world(made, scenes, sections)) + "".join(sections.values())
    return page.document("mim4d: a synthetic driving world", f"{header}<main>{body}</main>{footer}")


def _link(scene: str) -> str:
    return f'<a href="#{page.text(scene)}">{page.text(scene)}</a>'


def _world(made: dict[str, Any], scenes: list[Shown], pictured: Container[str]) -> str:
    other = sorted({track.name for scene in scenes for track in scene.tracks} - set(CLASS_COLOURS))
    names = [*CLASS_COLOURS, *other]
    heads = ["Scene", "Split", "Key frames", "Metres driven", "LiDAR points a sweep", *names]
    head = "".join(f'<th scope="col">{page.text(name.replace("_", " "))}</th>' for name in heads)
    body = ""
    for scene in scenes:
        cells = [
            "validation" if scene.validation else "training",
            page.number(len(scene.clips), 0),
            page.number(scene.metres, 0),
            page.number(scene.echoes, 0),
            *(page.number(count, 0) for count in track_counts(scene.tracks, names, lambda track: 1)),
        ]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        name = _link(scene.name) if scene.name in pictured else page.text(scene.name)
        body += f'<tr><th scope="row">{name}</th>{row}</tr>'
    table = (
        '<div class="scroll" tabindex="0" role="region" aria-label="Scenes and things in them">'
        '<table class="scores counts"><caption>Things per class</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    return f"{page.facts(made, 'Made with', lambda key: page.NOTHING)}{table}{_legend()}"


def _legend() -> str:
    rows = ""
    for title, colours in (("Boxes", CLASS_COLOURS), ("Map", {**AREA_COLOURS, **LINE_COLOURS})):
        pairs = "".join(
            f'<span class="pair"><i class="swatch" style="background:{css}" aria-hidden="true"></i>'
            f"{page.text(name)}</span>"
            for name, css in legend(colours)
        )
        rows += f'<p class="legend"><strong>{title}</strong> &ensp;{pairs}</p>'
    return rows + page.how_to_read(
        "Boxes wear nuScenes' customary colours. In the images only boxes that the LiDAR met are drawn, the front face "
        "bold; from above the others are outlines, and the short line points forward. From above the car stands in the "
        "middle and drives upwards; grey dots are the LiDAR's. Distances: red is near, violet is far, finer near the "
        "car. Normals, in the car's axes: red grows forward, green to the left, blue upwards. Grey is the sky."
    )


# --- one scene --------------------------------------------------------------------------------------------------------


def _photo(image: Picture, alt: str) -> str:
    return page.image(raster_uri(image, photo=True, quality=QUALITY), alt)


def _view(frame: FrameRecord, index: int, width: int) -> View:
    """A camera's image resized to ``width`` pixels, with its calibration: lines drawn on it are fine."""
    camera = frame.cameras[index]
    size = max(1, round(camera.height * width / camera.width)), width
    return View(*load_image(camera, size), frame.frame_from_cam(index))


def _boxed(scene: Shown, frame: FrameRecord, index: int, width: int) -> Picture:
    """A camera's image with the boxes of its own moment that the LiDAR met, ``width`` pixels wide."""
    view = _view(frame, index, width)
    cam_from_frame = invert_rigid(view.frame_from_cam)
    found = scene.boxes(frame.cameras[index].timestamp_us, invert_rigid(frame.global_from_frame))
    boxes = [(name, transform(cam_from_frame, box)) for name, box, seen in found if seen]
    return draw_boxes(view.image, boxes, view.intrinsics)


def _points(frame: FrameRecord) -> Array:
    """(P, 3) LiDAR points in the frame's coordinates."""
    if frame.lidar is None:
        return np.zeros((0, 3))
    return transform(frame.frame_from_lidar(), load_lidar(frame.lidar))


def _above(scene: Shown, frame: FrameRecord, ground: HdMap, side: int, reach: float) -> Picture:
    boxes = scene.boxes(frame.timestamp_us, invert_rigid(frame.global_from_frame))
    return from_above(side, reach, map_around(ground, frame, reach), _points(frame), boxes)


def _rig(pictures: list[str], names: list[str]) -> str:
    order = reading_order(names)
    tiles = "".join(
        f'<figure>{pictures[i]}<p class="note">{page.text(plain_name(names[i]))}</p></figure>' for i in order
    )
    return f'<div class="rig">{tiles}</div>'


def _scene(scene: Shown, ground: HdMap, truth: Truth | None) -> str:
    frame = scene.moment
    names = [camera.channel for camera in frame.cameras]
    front = names.index("CAM_FRONT")
    view = _view(frame, front, OVERLAY_WIDTH)
    hits = lidar_hits(_points(frame), view)
    lidar = lidar_overlay(view.image, np.column_stack([hits.uv, hits.depth]), width=OVERLAY_WIDTH, radius=1.7)
    above = _above(scene, frame, ground, ABOVE_SIDE, ABOVE_REACH)
    split = "validation" if scene.validation else "training"
    words = f"{scene.location}, {split}, {len(scene.clips)} key frames. {scene.description}."
    rig = [
        _photo(_boxed(scene, frame, i, RIG_WIDTH), f"{scene.name}: {plain_name(name)} camera with boxes")
        for i, name in enumerate(names)
    ]
    parts = [
        f"<p>{page.text(words)}</p>",
        _rig(rig, names),
        '<div class="two"><div class="stack">',
        _film(scene, ground, front),
        page.figure(_photo(lidar, f"{scene.name}: LiDAR distances over the front image"), "LiDAR over the front image"),
        "</div>",
        page.figure(
            _photo(above, f"{scene.name} from above: map, LiDAR points and boxes around the car"),
            f"From above, {ABOVE_REACH:g} m to every side",
        ),
        "</div>",
        _truth(scene, frame, names, truth),
    ]
    return page.section(scene.name, f"{scene.name}", *parts)


def _film(scene: Shown, ground: HdMap, front: int) -> str:
    """Front camera and map side by side; a reader who asked for less motion gets its first picture."""
    frames = scene.frames[:FILM_FRAMES]
    images = [
        film_frame(
            _boxed(scene, frame, front, 2 * FILM_SIDE), _above(scene, frame, ground, FILM_SIDE, FILM_REACH), gap=4
        )
        for frame in frames
    ]
    seconds = (frames[-1].timestamp_us - frames[0].timestamp_us) / 1e6
    still = raster_uri(images[0], photo=True, quality=STILL_QUALITY)
    moving = page.image(film_uri(images, hertz=1 / HALF_KEY), f"{scene.name}: the drive, front camera and from above")
    body = f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{still}">{moving}</picture>'
    return page.figure(body, f"The drive, {seconds:.3g} s")


def _truth(scene: Shown, frame: FrameRecord, names: list[str], truth: Truth | None) -> str:
    if truth is None:
        return (
            '<p class="note">Depth and normals are not drawn: this world was made by another version of mim4d, '
            "which built its scenes differently.</p>"
        )
    depths, normals = [], []
    for name, camera in zip(names, frame.cameras, strict=True):
        distance, normal = truth.image(name, camera.timestamp_us, min(TRUTH_WIDTH, camera.width))
        depths.append(_photo(depth_to_rgb(distance), f"{scene.name}: distances, {plain_name(name)} camera"))
        normals.append(_photo(normals_to_rgb(normal), f"{scene.name}: surface normals, {plain_name(name)} camera"))
    return (
        f'<div class="two"><div><h3>Distances</h3>{_rig(depths, names)}</div>'
        f"<div><h3>Normals</h3>{_rig(normals, names)}</div></div>"
    )
