"""The page: well formed, self-contained, escaped, its numbers those of the summary, honest about what is missing."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_run import CONFIG, write_run
from helpers.html_page import Page

from mim4d.errors import UserError
from mim4d.viz import page, story
from mim4d.viz.report import write_report
from mim4d.viz.run import load_run


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Page]:
    """Writes the report of a copy of a run and parses it."""

    def write(run: Path) -> Page:
        copy = tmp_path_factory.mktemp("copy") / run.name
        shutil.copytree(run, copy)
        return Page(write_report(copy).read_text(encoding="utf-8"))

    return write


@pytest.fixture(scope="module")
def finished(finished_run: Path, read: Callable[[Path], Page]) -> Page:
    return read(finished_run)


def change_summary(run: Path, **entries: object) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, **entries}))


def test_page_is_whole_and_written_in_place(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", frames=1)
    path = write_report(run)
    assert path == run / "report.html"
    assert path.stat().st_size < 6e6
    first = path.read_bytes()
    assert write_report(run).read_bytes() == first  # nothing in it depends on when it was written
    assert sorted(entry.name for entry in run.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "renders",
        "report.html",
        "summary.json",
    ]


def test_nothing_is_loaded_from_elsewhere(finished: Page) -> None:
    finished.check_self_contained()


def test_anchors_lead_somewhere_and_ids_are_unique(finished: Page) -> None:
    finished.check_anchors()


def test_every_picture_decodes_and_is_described(finished: Page) -> None:
    pictures = finished.of("img")
    # strip 5, input 2 x 6, colours 6 x 4, depth 6 x 4, one colour bar
    assert len(pictures) == 5 + 12 + 24 + 24 + 1
    assert len(finished.pictures()) > len(pictures)  # the maps hold pictures too
    for attributes in pictures:
        assert attributes["alt"]
    for attributes in finished.of("svg"):
        assert attributes["role"] == "img"
        assert attributes["aria-label"]


def test_headline_and_table_hold_the_numbers_of_the_summary(finished: Page, finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    val, rebuilt = summary["val"], summary["val_reconstructed"]
    assert finished.text("h1") == "Depth error on scenes kept out of training fell by 67 %, from 9.81 m to 3.20 m"
    shown = {float(attributes["value"] or "nan") for attributes in finished.of("data")}
    for group in (val["before"], val["after"], val["trivial"], rebuilt["before"], rebuilt["after"]):
        assert {group["rgb_l1"], group["depth_l1_m"]} <= shown
    text = finished.text()
    for words in (
        "out of training (4 clips)",
        "0.211",
        "0.087",
        f"{page.MINUS}59 %",
        "6.14 m",
        f"model: {page.MINUS}48 %",
        "150 training steps",
    ):
        assert words in text
    assert "3 min 21 s" in text
    assert "better than a trivial guess in distance and in colour" in text
    assert "Synthetic" not in text


@pytest.mark.parametrize(
    "before, after, words",
    [
        (4.0, 5.0, "rose by 25 %, from 4.00 m to 5.00 m"),
        (4.0, 4.001, "did not change: from 4.00 m to 4.00 m"),
        (4.0, None, "cannot be compared: from 4.00 m to no number"),
    ],
)
def test_headline_tells_bad_news_too(finished_run: Path, before: float, after: float | None, words: str) -> None:
    trivial = {"rgb_l1": 0.05, "depth_l1_m": 1.0}
    val = {"before": {"rgb_l1": 0.2, "depth_l1_m": before}, "after": {"rgb_l1": 0.1, "depth_l1_m": after}}
    run = replace(load_run(finished_run), summary={"val": {**val, "trivial": trivial}})
    assert words in Page(f"<h1>{story.headline(run)}</h1>").text("h1")
    assert "does not beat a trivial guess yet" in story.verdict(run)


@pytest.mark.parametrize(
    "depth, colour, words",
    [
        (1.0, 0.1, "in distance and in colour."),
        (1.0, 0.3, "but not yet in colour"),
        (3.0, 0.1, "but not yet in distance"),
    ],
)
def test_verdict_against_the_trivial_guess(finished_run: Path, depth: float, colour: float, words: str) -> None:
    after, trivial = {"rgb_l1": colour, "depth_l1_m": depth}, {"rgb_l1": 0.2, "depth_l1_m": 2.0}
    run = replace(load_run(finished_run), summary={"val": {"before": trivial, "after": after, "trivial": trivial}})
    assert words in story.verdict(run)


def test_strings_are_escaped(tmp_path: Path) -> None:
    attack = "<script>alert('x')</script>"
    config = CONFIG.replace("demo", f'"{attack}"').replace("data/world", f'"{attack}"').replace("convnext_atto", attack)
    run = write_run(tmp_path / "<b>run</b>", frames=1, config=config)
    val = json.loads((run / "summary.json").read_text())["val"]
    environment = {
        attack: attack,
        "ops": {attack: {attack: attack}},
        "list": [attack, {attack: None}],
        "lines": f"a\n{attack}",
    }
    change_summary(run, environment=environment, steps=attack, data=attack, val=val)
    for name in ("before", "after"):
        arrays = dict(np.load(run / "renders" / f"{name}.npz"))
        arrays["cameras"] = np.array([f"{attack}{index}" for index in range(6)])
        np.savez(run / "renders" / f"{name}.npz", **arrays)
    source = write_report(run).read_text()
    written = Page(source)
    assert not written.of("script")
    assert not written.of("b")
    assert attack in written.text()  # it is there, as text
    assert "<script" not in source.lower()


def test_single_frame_run_shows_nothing_reconstructed(tmp_path: Path) -> None:
    written = Page(write_report(write_run(tmp_path / "run", frames=1)).read_text())
    text = written.text()
    assert "econstructed" not in text
    assert "After training" in text
    assert "What moves" not in text
    assert len(written.of("img")) == 5 + 12 + 18 + 18 + 1


def test_unfinished_run_says_so_and_shows_before_only(unfinished_run: Path, read: Callable[[Path], Page]) -> None:
    written = read(unfinished_run)
    text = written.text()
    assert written.text("h1").startswith("Unfinished run")
    assert "This run is not finished" in text
    assert "74 training steps so far" in text
    assert "After" not in text
    assert "0 training steps" not in text
    assert "9.81 m" in text  # the untrained model and the trivial guess have been measured
    assert "6.14 m" in text
    assert "mim4d pretrain --out unfinished" in text
    assert "draw what its newest checkpoint sees" in text
    assert "this page anew" not in text
    assert len(written.of("img")) == 5 + 12 + 12 + 12 + 1


def test_summary_without_result_counts_as_unfinished(finished_run: Path) -> None:
    before = {"rgb_l1": 0.25, "depth_l1_m": 7.5}
    run = replace(load_run(finished_run), summary={"val": {"before": before}})
    assert not run.finished
    assert story.headline(run).startswith("Unfinished run")
    assert "has not measured its result." in story.notices(run)
    assert "7.50&nbsp;m" in story.stats(run)


def test_diverged_run_is_drawn_all_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=30)
    val = json.loads((run / "summary.json").read_text())["val"]
    change_summary(run, val={**val, "after": {"rgb_l1": None, "depth_l1_m": None}}, val_reconstructed=None)
    arrays = dict(np.load(run / "renders" / "after.npz"))
    for name in ("depth_direct", "depth_reconstructed", "bev_direct", "bev_reconstructed", "sdf_slice", "motion"):
        arrays[name] = np.full_like(arrays[name], np.nan)
    np.savez(run / "renders" / "after.npz", **arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = Page(write_report(run).read_text())
    assert "cannot be compared: from 9.81 m to no number" in written.text("h1")
    assert "no number" in written.text("td")


def test_masking_switched_off_and_no_summary_are_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", frames=1, finished=False)
    arrays = dict(np.load(run / "renders" / "before.npz"))
    np.savez(run / "renders" / "before.npz", **{**arrays, "masked_image": arrays["image"]})
    (run / "summary.json").unlink()  # as when a run is stopped in its first minute
    text = Page(write_report(run).read_text()).text()
    assert "Masking is off in this run" in text
    assert "Not known yet" in text  # the machine


def test_rays_held_out_are_named_as_such(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", frames=1, config=CONFIG.replace("holdout: scenes", "holdout: rays"))
    written = Page(write_report(run).read_text())
    assert "LiDAR rays kept out of training" in written.text("h1")
    assert "a moment whose images were trained on" in written.text()
    assert "held-out moment" not in written.text()
    assert "Only the LiDAR returns that were kept out of training are drawn and compared" in written.text()


def test_synthetic_data_are_named_at_the_top(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", frames=1)
    change_summary(run, data={"synthetic": True})
    written = Page(write_report(run).read_text())
    assert "Synthetic data" in written.text("ul")
    assert "they say nothing about real streets" in written.text()
    assert "mim4d world" not in written.text("code")  # another world than this run's
    assert "learned from the synthetic world in data/world" in written.text()
    made = {"seed": 3, "scenes": 10, "seconds": 8.0, "image_size": [128, 224]}
    change_summary(run, data={"synthetic": True, "world": made})
    again = Page(write_report(run).read_text())
    wanted = "mim4d world data/world --seed=3 --scenes=10 --seconds=8.0 --image-size=128x224"
    assert wanted in again.text("code")
    assert "not written down" not in again.text()
    made |= {"version": "v1.0-mini", "knobs": {"weather": "fog", "sensor_noise": 2.0}}
    change_summary(run, data={"synthetic": True, "world": made})
    turned = "--seconds=8.0 --version=v1.0-mini --weather=fog --sensor-noise=2.0 --image-size=128x224"
    assert turned in Page(write_report(run).read_text()).text("code")


def test_errors_use_the_stride_of_their_own_pictures(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", frames=1)
    before = [row["alt"] for row in Page(write_report(run).read_text()).of("img")]
    arrays = dict(np.load(run / "renders" / "after.npz"))
    for name in ("rgb_direct", "depth_direct", "opacity_direct"):
        arrays[name] = arrays[name].repeat(2, axis=1).repeat(2, axis=2)
    np.savez(run / "renders" / "after.npz", **{**arrays, "stride": np.array(2)})  # as mim4d render --stride 2 does
    assert [row["alt"] for row in Page(write_report(run).read_text()).of("img")] == before


def test_lidar_left_out_is_said(tmp_path: Path, finished: Page) -> None:
    words = "LiDAR returns outside data.lidar_bounds are left out of the depth error"
    assert words not in finished.text()
    bounds = "  lidar_bounds: [-51.2, -51.2, -3.0, 51.2, 51.2, 5.0]\n  holdout: scenes\n"
    run = write_run(tmp_path / "run", frames=1, config=CONFIG.replace("  holdout: scenes\n", bounds))
    assert words in Page(write_report(run).read_text()).text()


@pytest.mark.parametrize("way, words", [("push", "pixels push into voxels"), ("pull", "voxels pull from images")])
def test_which_view_transform_ran_is_said(way: str, words: str, tmp_path: Path, finished: Page) -> None:
    assert words not in finished.text("li")  # a run from before there was a choice
    config = CONFIG.replace("  mask_ratio: 0.3\n", f"  view_transform: {way}\n")
    assert words in Page(write_report(write_run(tmp_path / "run", frames=1, config=config)).read_text()).text("li")


def test_commands_and_settings_to_run_it_again(finished: Page) -> None:
    commands = finished.text("code")
    assert "mim4d pretrain --preset demo --data.root data/world --data.version v1.0-mini --out runs/again" in commands
    assert "mim4d pretrain --preset finished/config.yaml --out runs/again" in commands
    assert "mim4d render finished" in commands
    assert "mask_ratio: 0.3" in finished.text("details")


def test_machine_tables_name_backends_and_reasons(finished: Page) -> None:
    text = finished.text("table")
    for words in ("Example CPU", "ops_cpu loaded", "this torch has no CUDA", "cpu ready", "cuda no device"):
        assert words.replace(" ", "") in text.replace(" ", "")


def test_step_times_of_both_ways_and_what_ran_stand_on_the_page(finished: Page) -> None:
    text = " ".join(finished.text("section").split())
    assert "ran 1.50 times as fast with this run's backends as with the references" in text  # 0.87 / 0.58
    rows = " ".join(finished.text("tr").split())
    for words in ("0.58", "3 steps, slowest 0.71 s", "0.87", "MIM4D_BACKEND=reference", "cpu, reference"):
        assert words in rows
    assert "384 rays of 64 samples" in text


@pytest.mark.parametrize(
    ("step_times", "words"),
    [
        ({"own": {"seconds": [0.5], "backends": {}}, "reference": None}, "nothing to compare it with"),
        (
            {"own": {"seconds": [0.5], "backends": {}}, "reference": {"failed": "more memory than the GPU has"}},
            "more memory than the GPU has",
        ),
        (
            {"own": {"seconds": [0.8], "backends": {}}, "reference": {"seconds": [0.4], "backends": {}}},
            "2.00 times slower with this run's backends",
        ),
        ({"own": {"seconds": ["x", None]}, "reference": 3}, ""),
        ({"own": {"seconds": []}}, ""),
        (["nonsense"], ""),
        (None, ""),
    ],
)
def test_step_times_that_are_missing_or_slower_are_said_as_they_are(
    step_times: object, words: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", frames=1)
    change_summary(run, step_times=step_times)
    text = " ".join(Page(write_report(run).read_text()).text("section").split())
    assert words in text
    assert ("Step time" in text.replace("Step time over", "")) or not words


def test_training_curves_are_there(finished: Page) -> None:
    labels = {attributes["aria-label"] for attributes in finished.of("svg")}
    for title in ("Colour error", "Depth error", "Total loss", "Learning rate", "Step time"):
        assert f"{title} over training steps" in labels
    assert {"Mean depth error over distance", "After, reconstructed: features from above"} <= labels


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", frames=1)
    (run / "renders" / "before.npz").unlink()
    with pytest.raises(UserError, match=r"before\.npz: missing"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_numbers_in_words() -> None:
    assert page.change(10.0, 5.0) == f"{page.MINUS}50&nbsp;%"
    assert page.change(10.0, 12.0) == "+20&nbsp;%"
    assert page.change(0.0, 1.0) == ""
    assert page.change(float("nan"), 1.0) == ""
    assert [page.duration(s) for s in (3.24, 42.0, 201.4, 7260.0)] == ["3.2 s", "42 s", "3 min 21 s", "2 h 1 min"]
    assert page.number(float("nan"), 2) == '<data value="">no number</data>'
    assert page.number(-1.25, 1, "m") == f'<data value="-1.25">{page.MINUS}1.2&nbsp;m</data>'
