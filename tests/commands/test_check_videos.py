"""Owns: every clip is decoded under a time limit, a lost decoder costs one clip, a good one is not redone.

The first half runs `run_isolated` in this process; the slow tests run real child processes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from launching import ROOT, as_flags

from moss_vllm.commands.scripts import check_videos
from moss_vllm.video.isolated import run_isolated

SCRIPT = check_videos


def write(path, frames=20, seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for i in range(frames):
            frame = np.ascontiguousarray(np.roll(noise, 3 * i, 1))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(data, out, *flags, **options):
    argv = ["--data", str(data), "--out", str(out), "--short-side-px", "56", "--workers", "2", *flags]
    return check_videos.main(argv, **options)


def test_corrupt_files_are_listed_with_their_rows(tmp_path, here, capsys):
    root, out = tmp_path / "FAVOR", tmp_path / "out"
    good, cut = write(root / "good.mp4"), write(root / "cut.mp4")
    os.truncate(cut, cut.stat().st_size // 2)
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("<html>404</html>")
    write(root / "aB3_-xY9zQ0.mp4")
    rows = [
        {"video_name": f"{name}.mp4", "caption": "It moves."} for name in ("good", "cut", "empty", "text")
    ]
    part = {"caption": "It moves.", "url": "https://youtu.be/aB3_-xY9zQ0"}
    rows += [
        part | {"video_name": "p1", "start": 0.2, "end": 1},
        part | {"video_name": "p2", "start": 9, "end": 10},
    ]
    rows += [{"video_name": "nowhere.mp4", "caption": "It moves."}]
    (root / "train.json").write_text(json.dumps(rows))

    assert check(root, out) == 1
    assert (
        "checked 6 clips: 2 good (0 of them known from an earlier run), 4 bad; 1 rows"
        in capsys.readouterr().out
    )
    bad = {tuple(line["rows"]): line for line in lines(out / "bad.jsonl")}
    assert {rows for rows in bad if "nowhere" not in rows[0]} == {("cut",), ("empty",), ("text",), ("p2",)}
    assert bad["empty",]["reason"] == "the file is empty (0 bytes)" and bad["empty",]["path"] == str(
        root / "empty.mp4"
    )
    assert "not a video" in bad["text",]["reason"] and "download" in bad["text",]["remedy"]
    assert bad["p2",]["start_s"] == 9 and "ends at 2.00 s" in bad["p2",]["reason"]
    (nowhere,) = (line for rows, line in bad.items() if "nowhere" in rows[0])
    assert nowhere["path"] is None and "row 6" in nowhere["rows"][0]
    checked = {
        (Path(line["clip"]["path"]).name, line["clip"]["end_s"]): line["frames"]
        for line in lines(out / "checked.jsonl")
    }
    assert checked == {(good.name, None): 4, ("aB3_-xY9zQ0.mp4", 1.0): 2}


def test_playlists_and_pipes_are_listed_as_bad(tmp_path, here, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    write(folder / "good.mp4")
    outside = write(tmp_path / "outside.mp4")
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{outside}'\n")
    (folder / "list.mov").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{outside}\n")
    os.mkfifo(folder / "pipe.mp4")
    assert check(folder, tmp_path / "out") == 1
    reasons = {
        os.path.basename(line["path"]): line["reason"] for line in lines(tmp_path / "out" / "bad.jsonl")
    }
    assert sorted(reasons) == ["concat.mp4", "list.mov", "pipe.mp4"]
    assert all("not a video" in reasons[name] for name in ("concat.mp4", "list.mov"))
    assert "a pipe" in reasons["pipe.mp4"]


def test_rows_of_one_clip_are_decoded_once(tmp_path, here):
    part = {"caption": "It moves.", "url": "https://youtu.be/aB3_-xY9zQ0", "start": 0, "end": 99}
    (tmp_path / "train.json").write_text(json.dumps([part | {"video_name": name} for name in "ab"]))
    (tmp_path / "aB3_-xY9zQ0.mp4").write_text("?")
    assert check(tmp_path, tmp_path / "out") == 1
    assert here == ["aB3_-xY9zQ0.mp4"]
    assert [line["rows"] for line in lines(tmp_path / "out" / "bad.jsonl")] == [["a", "b"]]


def test_good_files_are_not_decoded_again_unless_changed(tmp_path, here, capsys):
    for name in ("a", "b"):
        write(tmp_path / "videos" / "deep" / f"{name}.MP4")
    (tmp_path / "videos" / "bad.webm").write_text("?")
    (tmp_path / "videos" / "notes.txt").write_text("?")
    data, out = tmp_path / "videos", tmp_path / "out"
    assert check(data, out) == 1 and sorted(here) == ["a.MP4", "b.MP4", "bad.webm"]
    assert "1 files below" in capsys.readouterr().out
    here.clear()
    assert check(data, out) == 1 and here == ["bad.webm"]
    here.clear()
    write(data / "bad.mkv")
    (data / "bad.webm").unlink()
    os.utime(data / "deep" / "a.MP4", (0, 0))
    assert check(data, out) == 0 and sorted(here) == ["a.MP4", "bad.mkv"]
    assert lines(out / "bad.jsonl") == []
    here.clear()
    assert check(data, out, "--sample-fps", "5") == 0 and len(here) == 3  # other frames
    here.clear()
    with open(out / "checked.jsonl", "a") as file:
        file.write('{"clip": {"form')  # killed while writing
    assert check(data, out) == 0 and here == []
    write(data / "c.mp4")
    assert check(data, out) == 0 and here == ["c.mp4"]
    assert len(lines(out / "checked.jsonl")) == 2 + 2 + 3 + 1


@pytest.mark.parametrize("flag", ["--workers=0", "--short-side-px=8", "--sample-fps=nan", "--max-frames=x"])
def test_wrong_flag_makes_no_clip_bad(tmp_path, here, capsys, flag):
    write(tmp_path / "v.mp4")
    with pytest.raises(SystemExit) as caught:
        check(tmp_path, tmp_path / "out", flag)
    assert caught.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err and here == []


def test_a_folder_without_a_video_ends_with_status_2(tmp_path, here):
    with pytest.raises(SystemExit) as caught:
        check(tmp_path, tmp_path / "out")
    assert caught.value.code == 2


def decode_or_die(sampling, part):
    """`decode_part` with decoders that hang and die."""
    name = Path(part.path).stem
    if name.startswith("hang"):
        while True:
            time.sleep(60)
    if name.startswith("segv"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if name.startswith("oom"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("exit"):
        os._exit(3)
    if name.startswith("raise"):
        raise MemoryError("2 GiB")
    return check_videos.decode_part(sampling, part)


@pytest.mark.slow
def test_hanging_and_dying_decoders_cost_one_clip_each(tmp_path):
    names = ["hang", "segv", "good1", "oom", "exit", "raise", "good2", "good3"]
    for name in names:
        write(tmp_path / "videos" / f"{name}.mp4")
    (tmp_path / "videos" / "corrupt.mp4").write_text("?")
    out = tmp_path / "out"
    started = time.monotonic()
    assert check(tmp_path / "videos", out, "--limit-s", "2", decode=decode_or_die) == 1
    assert time.monotonic() - started < 60
    reasons = {Path(line["path"]).stem: line["reason"] for line in lines(out / "bad.jsonl")}
    assert "not a video" in reasons.pop("corrupt")
    assert reasons == {
        "hang": "not done after 2 s, so it was stopped",
        "segv": "its process died of SIGSEGV while at work on it",
        "oom": "its process died of SIGKILL (out of memory?) while at work on it",
        "exit": "its process ended with status 3 while at work on it",
        "raise": "MemoryError: 2 GiB",
    }
    good = {Path(line["clip"]["path"]).stem for line in lines(out / "checked.jsonl")}
    assert good == {"good1", "good2", "good3"}


def answer(job):
    return os.getpid(), job * job


@pytest.mark.slow
def test_children_stay_for_many_jobs():
    found = dict(run_isolated(answer, range(50), workers=2, limit_s=60))
    assert {job: square for job, (_, square) in found.items()} == {i: i * i for i in range(50)}
    assert 1 <= len({pid for pid, _ in found.values()}) <= 2
    assert os.getpid() not in {pid for pid, _ in found.values()}


@pytest.mark.slow
def test_child_that_cannot_start_is_an_error():
    def local(job):
        return job

    with pytest.raises(Exception, match="local"):
        list(run_isolated(local, [1], workers=1, limit_s=5))


def test_no_job_starts_no_process():
    assert list(run_isolated(answer, [], workers=2, limit_s=60)) == []


@pytest.mark.slow
def test_killed_run_goes_on_and_leaves_no_process(tmp_path):
    write(tmp_path / "videos" / "0.mp4", frames=120)
    for i in range(1, 40):
        os.link(tmp_path / "videos" / "0.mp4", tmp_path / "videos" / f"{i}.mp4")
    flags = as_flags({"data": tmp_path / "videos", "out": tmp_path / "out", "workers": 2})
    command = [sys.executable, str(ROOT / "scripts" / "check_videos.py"), *flags]
    checked = tmp_path / "out" / "checked.jsonl"
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as run:
        while not checked.exists() or checked.read_text().count("\n") < 3:
            assert run.poll() is None
            time.sleep(0.02)
        run.kill()
    n_done = len(lines(checked))
    assert 3 <= n_done < 40
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a child process outlives the run")
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"checked 40 clips: 40 good ({n_done} of them known from an earlier run), 0 bad" in second.stdout
    paths = [line["clip"]["path"] for line in lines(checked)]
    assert len(paths) == len(set(paths)) == 40
