"""Every mistake in the data ends in one line that names the folder, the table or the file."""

from __future__ import annotations

import sys

import pytest

from mim4d.data.nuscenes import load_tables, open_clips
from mim4d.data.verify import TABLES, check_root, path_inside
from mim4d.errors import UserError


def open_room(root, truth, **options):
    return open_clips(root, truth.version, "mini_train", (-0.5, 0.0), cameras=truth.cameras, **options)


def message(root, truth):
    with pytest.raises(UserError) as caught:
        open_room(root, truth)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_whole_room_is_accepted_silently(room, truth, capfd):
    assert check_root(room, truth.version) == room
    load_tables(str(room), truth.version)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_no_root(tmp_path, truth):
    assert message(tmp_path / "nowhere", truth) == f"no such data root: {tmp_path / 'nowhere'} (--data.root)"
    (tmp_path / "file").write_text("")
    assert "no such data root" in message(tmp_path / "file", truth)
    assert "no data root given" in message("", truth)


def test_a_home_folder_is_expanded(room, truth, monkeypatch):
    monkeypatch.setenv("HOME", str(room.parent))
    assert check_root("~/room", truth.version) == room


def test_a_wrong_version_names_those_there(room, tmp_path):
    with pytest.raises(
        UserError, match=r"no version folder 'v1\.0-trainval' in .*: it has v1\.0-mini \(--data\.version"
    ):
        check_root(room, "v1.0-trainval")
    with pytest.raises(UserError, match="it has no folder with nuScenes tables"):
        check_root(tmp_path, "v1.0-mini")
    with pytest.raises(UserError, match="no version folder ''"):
        check_root(room, "")


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_table(broken_room, truth, table):
    path = broken_room / truth.version / f"{table}.json"
    path.unlink()
    assert message(broken_room, truth) == f"missing table: {path}"


@pytest.mark.parametrize("content", ["", "   ", "{}", '[{"token": "a"}', "\x00" * 100])
def test_a_table_cut_off_or_of_another_kind(broken_room, truth, content):
    path = broken_room / truth.version / "sample_data.json"
    path.write_text(content)
    assert message(broken_room, truth).startswith(f"broken table: {path} is empty or cut off")


def test_a_table_broken_in_the_middle(broken_room, truth):
    path = broken_room / truth.version / "ego_pose.json"
    text = path.read_text()
    path.write_text(text[: len(text) // 2] + text[len(text) // 2 + 9 :].replace("{", "", 1))
    assert message(broken_room, truth).startswith(f"broken table: {path} is not valid JSON")


@pytest.mark.parametrize(
    "table, column", [("sample_data", "calibrated_sensor_token"), ("sensor", "channel"), ("map", "log_tokens")]
)
def test_a_table_without_a_column(broken_room, truth, table, column):
    truth.edit(broken_room, table, lambda rows: rows[-1].pop(column) and None)
    found = message(broken_room, truth)
    assert found.startswith(f"broken table: {broken_room / truth.version / table}.json, row ")
    assert found.endswith(f"has no {column!r}")


def test_a_dangling_token_is_found_by_the_devkits_load(broken_room, truth):
    truth.edit(broken_room, "sample_data", lambda rows: rows[5].update(calibrated_sensor_token="gone"))
    found = message(broken_room, truth)
    assert "sample_data.json" in found
    assert "calibrated_sensor_token 'gone' is not in calibrated_sensor.json" in found


def test_a_dangling_token_is_found_by_ours(broken_room, truth):
    truth.edit(broken_room, "sample_data", lambda rows: [r.update(ego_pose_token="gone") for r in rows] and None)
    assert message(broken_room, truth).endswith("ego_pose.json has no token 'gone'")


def test_a_missing_map_file(broken_room, truth):
    (broken_room / "maps" / "prior.png").unlink()
    assert message(broken_room, truth).startswith(f"missing map file: {broken_room / 'maps' / 'prior.png'}")


def test_tables_without_images(broken_room, truth):
    (broken_room / "samples").rename(broken_room / "elsewhere")
    assert message(broken_room, truth).startswith(f"no image files in data root {broken_room}")


def test_a_missing_or_empty_image(broken_room, truth):
    path = sorted((broken_room / "samples" / "CAM_FRONT").glob("scene-0061*"))[2]
    path.write_bytes(b"")
    assert message(broken_room, truth) == f"empty image file: {path}; copy it again"
    path.unlink()
    assert message(broken_room, truth).startswith(f"missing image file: {path} (No such file")


def test_only_files_that_clips_read_need_be_there(broken_room, truth):
    """Key frames 0.5 s apart need no sweep: a download of the samples alone works."""
    (broken_room / "sweeps").rename(broken_room / "not-downloaded")
    assert len(open_room(broken_room, truth)) == 4


def test_a_missing_or_truncated_sweep(broken_room, truth):
    path = sorted((broken_room / "samples" / "LIDAR_TOP").glob("scene-0061*"))[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert message(broken_room, truth).startswith(f"truncated LiDAR file: {path} has {len(whole) - 7} bytes")
    path.unlink()
    assert message(broken_room, truth).startswith(f"missing LiDAR file: {path}")


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "samples/../../outside.png", "", "."])
def test_a_file_name_that_leaves_the_root_is_refused(broken_room, truth, name):
    (broken_room.parent / "outside.png").write_bytes(b"x")
    truth.edit(broken_room, "sample_data", lambda rows: [r.update(filename=name) for r in rows] and None)
    assert "leaves the data root" in message(broken_room, truth)


def test_a_linked_folder_inside_the_root_is_followed(broken_room, truth):
    """Large sets often have their samples on another disk."""
    elsewhere = broken_room.parent / "disk"
    (broken_room / "samples").rename(elsewhere)
    (broken_room / "samples").symlink_to(elsewhere)
    assert len(open_room(broken_room, truth)) == 4


def test_dots_within_the_root_are_harmless(tmp_path):
    assert path_inside(tmp_path, "samples/./a/../b.jpg") == str(tmp_path / "samples" / "b.jpg")


@pytest.mark.parametrize(
    "table, change, found",
    [
        ("calibrated_sensor", {"rotation": [0, 0, 0, 0]}, "the rotation's norm is 0, not 1"),
        ("calibrated_sensor", {"rotation": [2, 0, 0, 0]}, "the rotation's norm is 2, not 1"),
        ("calibrated_sensor", {"translation": [0, float("nan"), 0]}, "translation must be 3 finite numbers"),
        ("ego_pose", {"rotation": [1, 0, 0]}, "rotation must be 4 finite numbers"),
        ("ego_pose", {"rotation": [1, 0, 0, "?"]}, "rotation must be 4 finite numbers"),
        ("calibrated_sensor", {"camera_intrinsic": []}, "camera_intrinsic must be 3x3 finite numbers"),
        ("calibrated_sensor", {"camera_intrinsic": [[0, 0, 1], [0, 5, 1], [0, 0, 1]]}, "no positive focal length"),
        ("sample_data", {"width": 0}, "width and height must be positive"),
    ],
)
def test_a_broken_calibration_is_named(broken_room, truth, table, change, found):
    truth.edit(broken_room, table, lambda rows: [row.update(change) for row in rows] and None)
    text = message(broken_room, truth)
    assert text.startswith(f"broken record: {table}.json, token ")
    assert found in text


def test_a_missing_devkit_is_one_sentence(room, truth, monkeypatch):
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    assert message(room, truth) == "reading nuScenes needs nuscenes-devkit: pip install 'mim4d[train]'"
