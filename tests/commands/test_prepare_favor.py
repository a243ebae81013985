"""Owns: prepare_favor.py cuts exactly the frames of [start, end), and every row is kept, rejected or missing.

Sources carry their frame number in the picture as eight dark or bright bars. The fast tests run
`run_isolated` in this process; the slow one runs real child processes.
"""

import json
import os
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from moss_vllm.commands.scripts import prepare_favor
from moss_vllm.data.favor import read_favor_train
from moss_vllm.video import cutting
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.cutting import cut_clip
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.isolated import Failure
from moss_vllm.video.packets import index_frames

SCRIPT = prepare_favor
ID = "aB3_-xY9zQ0"
URL = f"https://www.youtube.com/watch?v={ID}"
MS = Fraction(1, 1000)
UNEVEN_MS = np.cumsum([0] + [40, 40, 40, 300, 40] * 11 + [40] * 4)


def write(path, codec="libx264", times_ms=None, size=(56, 84), n=60, rotation=None, pix_fmt="yuv420p"):
    """Six seconds at 10 fps, a key frame every 25 frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = (
        {"bf": "2", "g": "25"} if codec == "libx264" else {"cpu-used": "8", "deadline": "realtime", "g": "25"}
    )
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        if times_ms is not None:
            stream.codec_context.time_base = MS
        for i in range(n):
            bars = np.where([i >> bit & 1 for bit in range(8)], 235, 20)
            grey = np.repeat(bars[np.arange(size[1]) * 8 // size[1]][None], size[0], 0).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.repeat(grey[..., None], 3, -1), format="rgb24")
            frame.pts, frame.time_base = (i, Fraction(1, 10)) if times_ms is None else (int(times_ms[i]), MS)
            file.mux(stream.encode(frame.reformat(format=pix_fmt)))
        file.mux(stream.encode())
    return path


def numbers(frames):
    """Read the frame numbers back."""
    centres = (np.arange(8) * 2 + 1) * frames.shape[2] // 16
    bits = frames[:, frames.shape[1] // 4, centres].mean(-1) > 128
    return (bits * 2 ** np.arange(8)).sum(-1).tolist()


def read_all(path, **part):
    return read_clip(path, Sampling(sample_fps=1000, short_side_px=None), **part)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("source") / f"{ID}.mp4")


def row(name, start=None, end=None, **fields):
    times = {} if start is None else {"url": URL, "start": start, "end": end, "subset": "Koala36M"}
    return {"video_name": name, "caption": f"Caption of {name}.", **times, **fields}


def put(root, rows, *sources):
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.json").write_text(json.dumps(rows))
    for path, place in sources:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        os.link(path, root / place)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def prepare(root, *flags):
    return prepare_favor.main(["--data", str(root), "--workers", "2", *map(str, flags)])


CUTS = [(0, 6.0, 0, 60), (1.2, 2.2, 12, 22), (1.25, 2.21, 12, 23), (2.5, 2.6, 25, 26), (5.95, 6.0, 59, 60)]


@pytest.mark.parametrize(("start_s", "end_s", "first", "stop"), CUTS)
def test_exact_frames_and_times(tmp_path, source, start_s, end_s, first, stop):
    clip = tmp_path / "clip.mp4"
    times_s = cut_clip(str(source), str(clip), start_s, end_s)
    got, part = read_all(clip), read_all(source, start_s=start_s, end_s=end_s)
    assert numbers(got.frames) == numbers(part.frames) == list(range(first, stop))
    expected_s = np.maximum(np.arange(first, stop) / 10 - start_s, 0)
    np.testing.assert_allclose(got.frame_times_s, expected_s, atol=1e-5)
    np.testing.assert_allclose(times_s, part.frame_times_s, atol=1e-5)
    assert np.abs(got.frames.astype(int) - part.frames).mean() < 1
    assert index_frames(str(clip)).suits_decord
    with av.open(str(clip)) as file:
        assert len(file.streams) == 1 and file.format.name.startswith("mov,mp4")
        assert file.duration / 1e6 == pytest.approx(end_s - start_s, abs=0.1)
        if (start_s, end_s) == (1.2, 2.2):
            assert file.streams.video[0].average_rate == 10


@pytest.mark.parametrize(
    "kind",
    [
        {"times_ms": UNEVEN_MS},
        {"size": (57, 85), "pix_fmt": "yuv444p"},
        {"rotation": 90},
        {"codec": "libvpx-vp9"},
    ],
    ids=["uneven", "odd size", "rotated", "vp9"],
)
def test_unusual_sources_train_alike(tmp_path, kind):
    path = write(tmp_path / ("v.webm" if "codec" in kind else "v.mp4"), **kind)
    cut_clip(str(path), str(tmp_path / "clip.mp4"), 0.55, 3.0)
    for sample_fps in (2.0, 1000):
        sampling = Sampling(sample_fps, short_side_px=None)
        whole = read_clip(path, sampling, start_s=0.55, end_s=3.0)
        clip = read_clip(tmp_path / "clip.mp4", sampling)
        assert clip.frames.shape == whole.frames.shape
        assert np.abs(clip.frames.astype(int) - whole.frames).mean() < 2
        np.testing.assert_allclose(clip.frame_times_s, whole.frame_times_s, atol=1e-3)


def test_a_row_about_a_picture_that_stays_is_kept_and_cut(tmp_path, source, here):
    held = tmp_path / "held.mp4"
    with av.open(str(source)) as file, av.open(str(held), "w") as target:
        stream = target.add_stream_from_template(file.streams.video[0])
        packets = [packet for packet in file.demux(video=0) if packet.size]
        packets[-1].duration = round((10 - packets[-1].pts * packets[-1].time_base) / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    put(tmp_path / "FAVOR", [row("a.mp4", 3, 8)], (held, f"{ID}.mp4"))
    assert prepare(tmp_path / "FAVOR", "--out", tmp_path / "out") == 0
    clip = read_clip(tmp_path / "out" / "videos" / "FAVOR-Train" / "a.mp4", Sampling(sample_fps=1))
    assert numbers(clip.frames) == [30, 40, 50, 59]
    np.testing.assert_allclose(clip.frame_times_s, [0, 1, 2, 2.9], atol=1e-3)
    assert numbers(read_clip(tmp_path / "out" / "videos" / "FAVOR-Train" / "a.mp4", start_s=4.5).frames) == [
        59
    ]


def test_wrong_cut_is_noticed(tmp_path, source, monkeypatch):
    monkeypatch.setattr(cutting, "decode_in_order", lambda path, **_: iter([]))
    with pytest.raises(BadVideo, match="0 of the part's 10 frames decode, then: the file ends"):
        cut_clip(str(source), str(tmp_path / "clip.mp4"), 1, 2)
    monkeypatch.undo()
    encode = cutting._encode
    monkeypatch.setattr(cutting, "_encode", lambda f, ticks, *to: encode(islice(f, 9), ticks[:10], *to))
    with pytest.raises(BadVideo, match="10 frames were written, 9 decode"):
        cut_clip(str(source), str(tmp_path / "clip.mp4"), 1, 2)
    monkeypatch.setattr(cutting, "_encode", lambda f, ticks, *to: encode(f, ticks * 2, *to))
    with pytest.raises(BadVideo, match="other times"):
        cut_clip(str(source), str(tmp_path / "clip.mp4"), 1, 2)


def test_every_row_is_kept_rejected_or_missing(tmp_path, source, here, capsys):
    root, out = tmp_path / "FAVOR", tmp_path / "out"
    rows = [
        row("hosted.mp4", mood="calm", motion_list=["walks"]),  # 0
        row("first_cut.mp4", "1.2", 2.2),
        row("second_cut", 3, "4.0", url=f"https://youtu.be/{ID}?t=3"),
        row("too_long.mp4", 4, 6.5),
        row("too_late.mp4", 6.2, 6.3),
        row("no_times.mp4", 1, None),  # 5
        row("backwards.mp4", 3, 2),
        row("gone.mp4", 1, 2, url="https://www.youtube.com/watch?v=-gonegone12&t=1"),
        row("not_downloaded.mp4"),
        row("hosted.mp4"),
        row("silent.mp4") | {"caption": " "},  # 10
        row("empty.mp4"),
        row("broken_source.mp4", 0, 1, url="https://youtu.be/BROKENvideo"),
        row("bench.mp4", questions=[]),
        {"caption": "no name"},
        row("./first_cut.mp4", 2, 3),  # 15
    ]
    put(root, rows, (source, f"{ID}.mp4"), (source, "videos/FAVOR-Train/hosted.mp4"))
    (root / "empty.mp4").touch()
    (root / "BROKENvideo.mp4").write_text("?")
    assert prepare(root, "--out", out) == 0
    said = capsys.readouterr().out
    assert "kept 3 of 16 rows: 2 cut now, 11 bad, 2 missing\n" in said
    assert f"next: python scripts/check_videos.py --data {out / 'kept.json'}" in said
    assert here == [f"{ID}.mp4", "BROKENvideo.mp4"]

    assert json.loads((out / "kept.json").read_text()) == rows[:3]
    kept = read_favor_train(out / "kept.json", out)
    assert [(r.row_id, r.start_s) for r in kept] == [
        ("hosted", None),
        ("first_cut", None),
        ("second_cut", None),
    ]
    assert numbers(read_all(kept[0].path).frames) == list(range(60))
    assert numbers(read_all(kept[1].path).frames) == list(range(12, 22))
    assert numbers(read_all(kept[2].path).frames) == list(range(30, 40))

    rejected = {line["row"]: (line["video_name"], line["reason"]) for line in lines(out / "rejected.jsonl")}
    reasons = {
        3: "end is 6.5 s, the video ends at 6.00 s",
        4: "start is 6.2 s, the video ends at 6.00 s",
        5: "start 1 and end None are not seconds",
        6: "start 3 and end 2 are not seconds",
        9: "its video is that of row 0",
        10: "'caption' is empty",
        11: "is empty (0 bytes)",
        12: "not a video",
        13: "FAVOR-Bench",
        14: "has no 'video_name'",
        15: "its video is that of row 1",
    }
    assert rejected.keys() == reasons.keys()
    for index, reason in reasons.items():
        assert rejected[index][0] == rows[index].get("video_name") and reason in rejected[index][1]
    assert lines(out / "missing.jsonl") == [
        {
            "row": 7,
            "video_id": "-gonegone12",
            **{k: rows[7][k] for k in ("video_name", "url", "start", "end")},
        },
        {
            "row": 8,
            "video_id": None,
            "video_name": "not_downloaded.mp4",
            "url": None,
            "start": None,
            "end": None,
        },
    ]
    assert (out / "missing_urls.txt").read_text() == "https://www.youtube.com/watch?v=-gonegone12\n"
    clips = sorted(path.name for path in (out / "videos" / "FAVOR-Train").iterdir())
    assert clips == ["first_cut.mp4", "hosted.mp4", "second_cut.mp4"]
    assert sorted(path.name for path in out.iterdir()) == [
        "kept.json", "missing.jsonl", "missing_urls.txt", "rejected.jsonl", "videos"
    ]  # fmt: skip


def test_second_run_cuts_only_what_is_new(tmp_path, source, here, capsys):
    root = tmp_path / "FAVOR"
    rows = [row("a.mp4", 0, 1), row("b.mp4", 1, 2, url="https://youtu.be/arrivedLate")]
    put(root, rows, (source, f"videos/{ID}.mp4"))
    out = root / "prepared"
    assert prepare(root) == 0
    assert "kept 1 of 2 rows: 1 cut now, 0 bad, 1 missing" in capsys.readouterr().out
    before = (out / "videos" / "FAVOR-Train" / "a.mp4").stat().st_mtime_ns
    write(root / "arrivedLate.webm", codec="libvpx-vp9")  # as a downloader may store it
    here.clear()
    assert prepare(root) == 0 and here == ["arrivedLate.webm"]
    assert "kept 2 of 2 rows: 1 cut now, 0 bad, 0 missing" in capsys.readouterr().out
    assert (out / "videos" / "FAVOR-Train" / "a.mp4").stat().st_mtime_ns == before
    here.clear()
    assert prepare(root) == 0 and here == []
    assert (out / "missing_urls.txt").read_text() == ""
    assert len(read_favor_train(out / "kept.json", out)) == 2


def test_links_survive_moving_the_folder(tmp_path, source, here):
    put(tmp_path / "FAVOR", [row("hosted.mp4")], (source, "videos/FAVOR-Train/hosted.mp4"))
    prepare(tmp_path / "FAVOR")
    (tmp_path / "FAVOR").rename(tmp_path / "moved")
    (clip,) = read_favor_train(tmp_path / "moved/prepared/kept.json", tmp_path / "moved/prepared")
    assert numbers(read_all(clip.path).frames) == list(range(60))
    # a link to what was removed gives way
    (tmp_path / "moved/videos/FAVOR-Train/hosted.mp4").unlink()
    os.link(source, tmp_path / "moved" / "hosted.mp4")
    assert prepare(tmp_path / "moved") == 0


HOSTILE = [
    "../out_of_it.mp4",
    "/tmp/out_of_it.mp4",
    "a/../../../out_of_it.mp4",
    "..\\x.mp4",
    "nul\0.mp4",
    "x" * 300,
    "C:\\x",
]


def test_no_name_leads_out_of_the_folder(tmp_path, source, here):
    root, out = tmp_path / "FAVOR", tmp_path / "deep" / "out"
    (out / "videos" / "FAVOR-Train").mkdir(parents=True)
    (out / "videos" / "FAVOR-Train" / "link").symlink_to(tmp_path)
    names = [*HOSTILE, "link/out_of_it.mp4", "sub/folder/fine.mp4"]
    put(root, [row(name, 0, 1) for name in names], (source, f"{ID}.mp4"))
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    assert prepare(root, "--out", out) == 0
    assert {path for path in tmp_path.rglob("*") if out not in path.parents} == before
    assert not Path("/tmp/out_of_it.mp4").exists()
    assert [r["video_name"] for r in json.loads((out / "kept.json").read_text())] == ["sub/folder/fine.mp4"]
    assert [line["video_name"] for line in lines(out / "rejected.jsonl")] == names[:-1]
    assert (out / "videos" / "FAVOR-Train" / "sub" / "folder" / "fine.mp4").is_file()


def test_lost_process_costs_only_what_it_had_not_done(tmp_path, source, monkeypatch):
    put(tmp_path, [row("a.mp4", 0, 1), row("b.mp4", 1, 2)], (source, f"{ID}.mp4"))

    def die_at_the_second(work, jobs, **_):
        for path, cuts in jobs:
            work((path, cuts[:1]))
            yield (path, cuts), Failure("its process died of SIGSEGV", "")

    monkeypatch.setattr(prepare_favor, "run_isolated", die_at_the_second)
    prepare(tmp_path)
    assert [r["video_name"] for r in json.loads((tmp_path / "prepared/kept.json").read_text())] == ["a.mp4"]
    (line,) = lines(tmp_path / "prepared/rejected.jsonl")
    assert (line["row"], line["reason"]) == (1, "its process died of SIGSEGV")


def test_full_disk_rejects_nobody(tmp_path, source, here, monkeypatch, capsys):
    put(tmp_path, [row("a.mp4", 0, 1)], (source, f"{ID}.mp4"))

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_favor, "cut_clip", fail)
    monkeypatch.setattr(prepare_favor, "ROOM_BYTES", 2**60)
    with pytest.raises(SystemExit) as caught:
        prepare(tmp_path)
    assert caught.value.code == 2 and "free space and run this again" in capsys.readouterr().err
    assert not (tmp_path / "prepared" / "kept.json").exists()


def test_nothing_kept_is_status_1(tmp_path, here):
    put(tmp_path, [row("a.mp4", 0, 1)])
    assert prepare(tmp_path) == 1


@pytest.mark.slow
def test_with_child_processes(tmp_path, source, capfd):
    others = [f"otherVideo{i}" for i in range(3)]
    rows = [row("a.mp4", 0, 1), *(row(f"cut_{o}.mp4", 2, 3, url=f"https://youtu.be/{o}") for o in others)]
    put(tmp_path, rows, (source, f"{ID}.mp4"), *((source, f"{o}.mp4") for o in others))
    assert prepare(tmp_path, "--out", tmp_path / "out") == 0
    assert "kept 4 of 4 rows: 4 cut now, 0 bad, 0 missing" in capfd.readouterr().out
    for clip in read_favor_train(tmp_path / "out" / "kept.json", tmp_path / "out")[1:]:
        assert numbers(read_all(clip.path).frames) == list(range(20, 30))
