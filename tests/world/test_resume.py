"""A stopped run goes on: killed anywhere, short of room, or beside another one, the world ends in the same bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.world_truth import digest

from mim4d.errors import UserError
from mim4d.viz import gallery
from mim4d.world import crew, files, generate, generator
from mim4d.world.crew import Plan, work_together
from mim4d.world.files import Folder
from mim4d.world.pieces import Piece, Workshop
from mim4d.world.recipe import Recipe

TINY: dict[str, Any] = {"seconds": 0.5, "image_size": (32, 40)}
PARTIAL = ".world.partial"

# Kills the process at the N-th call of a function of os: before it, in the middle of what it writes, or after it.
KILL_AT = """
import os, sys
from mim4d.world import generate
name, when, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
original, calls = getattr(os, name), 0
def killing(*arguments, **options):
    global calls
    calls += 1
    if calls == number and when == "half":
        original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
    if calls == number and when == "after":
        original(*arguments, **options)
    if calls == number:
        os.kill(os.getpid(), 9)
    return original(*arguments, **options)
setattr(os, name, killing)
generate("world", seconds=0.5, image_size=(32, 40), workers=1)
"""

# Shares the tiny world among two processes, writes their numbers, and calls STOP at the N-th file.
TOGETHER = """
import os, subprocess, sys, time
from mim4d.world import crew, generate, generator
generator.WORTH = 1e-3
pids = []
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        pids.append(self.pid)
crew.subprocess.Popen = Popen
def progress(done, total):
    if done == int(sys.argv[1]):
        print(*pids, flush=True)
        STOP
generate("world", seconds=0.5, image_size=(32, 40), workers=2, progress=progress)
"""


def run(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)


def environment() -> dict[str, str]:
    """A child finds the same mim4d as this process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def wait_until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The undisturbed world."""
    out = tmp_path_factory.mktemp("whole") / "world"
    generate(out, workers=1, **TINY)
    assert [p.name for p in out.parent.iterdir()] == ["world"]
    return digest(out)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_bytes(tmp_path: Path, whole: dict[str, str]) -> None:
    moments = [
        ("write", "half", 1),  # the very first file: what is to be made
        ("write", "half", 4),  # an image
        ("replace", "before", 6),  # written, but not yet under its name
        ("fsync", "before", 12),  # between a piece's files and its note
        ("write", "half", 10),  # a note
        ("replace", "after", 20),
        ("write", "half", 90),
        ("write", "half", 30),  # the rows of a scene, a map, a table
        ("rename", "before", 1),  # all is done but the name
        ("rename", "after", 1),  # all is done but the clearing up
    ]
    kept = []
    for moment in moments:
        done = run(KILL_AT, *moment, cwd=tmp_path)
        assert done.returncode == -signal.SIGKILL, (moment, done.stderr)
        assert (tmp_path / "world").exists() == (moment == ("rename", "after", 1))
        notes = tmp_path / PARTIAL / "notes"
        kept.append(len(list(notes.rglob("*.json"))) if notes.exists() else 0)
    assert kept == sorted(kept)  # nothing finished is ever lost
    assert len(set(kept)) >= 5
    assert digest(tmp_path / "world") == whole
    generate(tmp_path / "world", progress=lambda done, total: pytest.fail("nothing is to be made"), **TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["parent", "worker"])
def test_whoever_of_several_processes_is_killed_the_rest_ends_and_goes_on(
    tmp_path: Path, whole: dict[str, str], who: str
) -> None:
    victim = {"parent": "os.kill(os.getpid(), 9)", "worker": "os.kill(pids[0], 9)"}[who]
    done = run(TOGETHER.replace("STOP", victim), 60, cwd=tmp_path)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    wait_until(lambda: not any(alive(pid) for pid in pids))
    if who == "parent":
        assert done.returncode == -signal.SIGKILL
    else:
        assert "a worker process was stopped by signal 9" in done.stderr
        assert "the same command goes on from there" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == [PARTIAL]
    again = run(TOGETHER.replace("STOP", "pass"), -1, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["world"]
    assert digest(tmp_path / "world") == whole


@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not the json that a worker wants')")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(**TINY)
    slots = recipe.slots()
    here = Folder(tmp_path / "here")
    here.path.mkdir()
    here.begin(recipe.record())

    def work(piece: Piece, folder: Folder) -> None:
        work_together(Plan([piece]), recipe, slots, folder, lock, 1, lambda: None)

    with (tmp_path / "lock").open("w") as file:
        lock = file.fileno()
        with pytest.raises(FileNotFoundError, match="nowhere"):
            work(Piece(slots[0].name, "CAM_BACK", 0, 1), Folder(tmp_path / "nowhere"))
        with pytest.raises(UserError, match="files of scene-0061 went missing"):
            work(Piece(slots[0].name, "rows"), here)
        with pytest.raises(RuntimeError, match=r"(?s)a worker process failed:.*Traceback.*StopIteration"):
            work(Piece("scene-9999", "CAM_BACK", 0, 1), here)
        hungry = "from mim4d.world.crew import Workshop; Workshop.make = lambda *_: bytearray(1 << 62); serve()"
        monkeypatch.setattr(crew, "BOOT", crew.BOOT.replace("serve()", hungry))
        with pytest.raises(MemoryError):
            work(Piece(slots[0].name, "CAM_BACK", 0, 1), here)


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(tmp_path: Path, whole: dict[str, str]) -> None:
    code = TOGETHER.split("generate(")[0].replace("STOP", "pass") + (
        "from mim4d.cli import main\n"
        "sys.exit(main(['world', 'world', '--seconds', '0.5', '--image-size', '32x40', '--workers', '2']))"
    )
    command = [sys.executable, "-c", code, "-1"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as made:
        wait_until(lambda: any((tmp_path / PARTIAL / "notes").rglob("*.json")))
        os.killpg(made.pid, signal.SIGINT)
        _, said = made.communicate()
    assert made.returncode == 130
    assert said == "mim4d: interrupted; the same command goes on from here\n"
    assert [p.name for p in tmp_path.iterdir()] == [PARTIAL]
    counts: list[tuple[int, int]] = []
    generate(tmp_path / "world", progress=lambda *count: counts.append(count), workers=1, **TINY)
    assert 0 < counts[0][0] < counts[-1][0] == counts[-1][1]
    assert digest(tmp_path / "world") == whole


@pytest.mark.parametrize("why", [KeyboardInterrupt, BrokenPipeError], ids=["ctrl-c", "reader of the progress gone"])
def test_an_interruption_before_anything_is_done_leaves_nothing(tmp_path: Path, why: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1:
            raise why

    with pytest.raises(why):
        generate(tmp_path / "deep" / "world", progress=stop, workers=1, **TINY)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("number", [1, 5, 100])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The N-th write finds half of the room that it needs, and no room is left from then on."""
    write, calls = os.write, 0

    def full(handle: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[: len(data) // 2] if calls == number else data)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "write", full)
        with pytest.raises(UserError, match=r"^cannot write the world to .*/world: No space left on device") as caught:
            generate(tmp_path / "world", workers=1, **TINY)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ([PARTIAL] if number == 100 else [])
    assert ("the same command goes on from there" in str(caught.value)) == (number == 100)
    generate(tmp_path / "world", workers=1, **TINY)
    assert digest(tmp_path / "world") == whole


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = Workshop.make, []

    def hungry(shop: Workshop, piece: Piece, done: Callable[[], None]) -> None:
        calls.append(piece)
        if len(calls) == 2:
            bytearray(1 << 62)
        make(shop, piece, done)

    monkeypatch.setattr(Workshop, "make", hungry)
    with pytest.raises(UserError, match=r"^not enough memory to make the world .*fewer workers.*goes on from there$"):
        generate(tmp_path / "world", workers=1, **TINY)
    assert [p.name for p in tmp_path.iterdir()] == [PARTIAL]


def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / gallery.NAME).mkdir()
    monkeypatch.setattr(gallery, "read_manifest", lambda root: {})
    monkeypatch.setattr(gallery, "read_world", lambda root: [])
    with pytest.raises(UserError, match=r"^cannot write .*/gallery.html: Is a directory$"):
        gallery.write_gallery(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [gallery.NAME]


def private_mounts() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "-rm", "true"]).returncode == 0


@pytest.mark.skipif(
    not private_mounts(), reason="no private mounts here; a full disk is also tested with a failing write"
)
def test_a_real_full_disk_and_a_read_only_one(tmp_path: Path, whole: dict[str, str]) -> None:
    command = ["world", "disk/world", "--seconds", "0.5", "--image-size", "32x40", "--workers", "2"]
    (tmp_path / "make.py").write_text(
        "import sys\nfrom mim4d.cli import main\nfrom mim4d.world import generator\n"
        f"generator.WORTH = 1e-3\nsys.exit(main({command}))"
    )
    mim4d = f"{sys.executable} make.py"
    script = f"""
    mkdir disk && mount -t tmpfs -o size=1500k none disk || exit 99
    {mim4d}; echo full $?; ls -A disk
    {mim4d}; echo again $?
    mount -o remount,size=30m disk
    {mim4d}; echo enlarged $?; ls -A disk
    cp -r disk/world copy
    rm -r disk/world; mount -o remount,ro disk
    {mim4d}; echo read-only $?; ls -A disk
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("wrote", "making"))]
    assert lines == ["full 2", PARTIAL, "again 2", "enlarged 0", "world", "read-only 2"], done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 3
    assert errors[0] == errors[1]
    assert f"cannot write the world to {tmp_path}/disk/world: No space left on device; what is done lies" in errors[0]
    assert errors[2] == f"mim4d: error: cannot write the world to {tmp_path}/disk/world: Read-only file system"
    assert digest(tmp_path / "copy") == whole


def test_other_arguments_are_refused_while_a_world_is_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(KILL_AT, "rename", "before", 1, cwd=tmp_path)
    with monkeypatch.context() as patch:  # a library that was built, or lost, meanwhile
        patch.setattr(generator, "caster_kind", lambda: "wooden")
        with pytest.raises(UserError, match=r"seed=0, .* by the \w+ ray caster \(here is wooden, .*delete the folder$"):
            generate(tmp_path / "world", **TINY)
    before = digest(tmp_path)
    with pytest.raises(
        UserError, match=r"\.world\.partial holds an unfinished world made with seed=0, .*delete the folder$"
    ):
        generate(tmp_path / "world", seed=1, **TINY)
    assert digest(tmp_path) == before


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds 'thesis.tex' and no unfinished world"):
        generate(tmp_path / "world", **TINY)
    assert (tmp_path / PARTIAL / "thesis.tex").read_text() == "years of work"


def test_two_processes_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GRACE", 0.0)
    (tmp_path / PARTIAL).mkdir()
    handle = os.open(tmp_path / PARTIAL, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is making this world"):
        generate(tmp_path / "world", **TINY)
    os.close(handle)
    assert [p.name for p in tmp_path.iterdir()] == [PARTIAL]


def test_a_file_that_was_lost_or_cut_is_made_again(tmp_path: Path, whole: dict[str, str]) -> None:
    run(KILL_AT, "rename", "before", 1, cwd=tmp_path)
    world = tmp_path / PARTIAL / "world"
    image, points = (next(iter(sorted(world.glob(f"samples/{c}/*")))) for c in ("CAM_BACK", "LIDAR_TOP"))
    image.unlink()
    points.write_bytes(points.read_bytes()[:-20])
    note = next((tmp_path / PARTIAL / "notes").rglob("CAM_FRONT-*.json"))
    note.write_bytes(note.read_bytes()[:10])
    next((tmp_path / PARTIAL / "notes").rglob("sample_annotation.rows")).unlink()
    counts: list[tuple[int, int]] = []
    generate(tmp_path / "world", progress=lambda *count: counts.append(count), workers=1, **TINY)
    assert counts[0] == (106 - 7 - 11 - 7, 106)
    assert digest(tmp_path / "world") == whole
