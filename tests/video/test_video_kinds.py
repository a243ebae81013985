"""Owns: whatever kind of file a video is, its pictures come in order, at their times, as a player shows them.

Or the file is refused by name: nothing but a container of video is opened, and no other file is read through
it. Each clip is written here; a picture carries its number as eight bars at mid-height and a colour in each
corner.
"""

import os
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from video_files import bars, numbers, write_pictures

from moss_vllm.video.clip import Sampling, read_clip, read_frames
from moss_vllm.video.container import native_size
from moss_vllm.video.cutting import cut_clip
from moss_vllm.video.frames import BadVideo, target_size
from moss_vllm.video.packets import index_frames
from moss_vllm.video.probe import probe_clip

SIZE = (84, 112)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
UPRIGHT = ["red", "green", "blue", "yellow"]  # top left, top right, bottom left, bottom right


def picture(number, height, width):
    image = bars(number, height, width)
    for colour, place in zip(COLOURS.values(), np.ndindex(2, 2), strict=True):
        rows, columns = (slice(-20 * at, None if at else 20) for at in place)
        image[rows, columns] = colour
    return image


def write(path, codec="libx264", n=12, first=0, size=SIZE, **settings):
    """Numbers from `first` on."""
    return write_pictures(path, [picture(first + i, *size) for i in range(n)], codec, **settings)


def corners(image):
    found = [image[y, x].astype(int) for y in (6, -7) for x in (6, -7)]
    return [min(COLOURS, key=lambda name: np.abs(rgb - COLOURS[name]).sum()) for rgb in found]


def check_all(path, expected, fps):
    """Every picture of a file, by both readers, against its numbers and its rate."""
    clip = read_clip(path, Sampling(sample_fps=1000, short_side_px=None))
    assert numbers(clip.frames) == numbers(read_frames(path, np.arange)) == list(expected)
    np.testing.assert_allclose(clip.frame_times_s, np.arange(len(expected)) / fps, atol=2e-3)


# ---- times


@pytest.mark.parametrize(
    ("name", "codec", "options", "fps"),
    [
        ("h264.avi", "libx264", {"bf": "3", "b-pyramid": "normal"}, 10),
        ("mpeg4.avi", "mpeg4", {"bf": "2"}, 10),
        ("v.h264", "libx264", {"bf": "3"}, 10),
        ("v.hevc", "libx265", {"x265-params": "bframes=3:log-level=none"}, 10),
        ("v.m1v", "mpeg1video", {"bf": "2"}, 25),
        ("v.m2v", "mpeg2video", {"bf": "2"}, 25),
        ("v.ivf", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"}, 10),
    ],
)
def test_files_that_store_no_presentation_times(tmp_path, name, codec, options, fps):
    path = write(tmp_path / name, codec, n=40, fps=fps, options=options)
    check_all(path, range(40), fps)
    assert index_frames(str(path)).end_s - index_frames(str(path)).frame_times_s[0] == pytest.approx(40 / fps)


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mpg", "mpeg2video"), ("ts", "libx264"), ("ts", "mpeg2video"), ("mkv", "libx264")]
)
def test_time_that_starts_again(tmp_path, suffix, codec):
    parts = [write(tmp_path / f"{i}.{suffix}", codec, n=20, fps=25, first=20 * i) for i in range(2)]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    check_all(path, range(40), 25)
    clip = read_clip(path, Sampling(sample_fps=25), start_s=0.6, end_s=1.0)  # over the joint
    assert numbers(clip.frames) == list(range(15, 25))
    cut_clip(str(path), str(tmp_path / "cut.mp4"), 0.6, 1.0)
    assert numbers(read_frames(tmp_path / "cut.mp4", np.arange)) == list(range(15, 25))


@pytest.mark.parametrize(("suffix", "codec"), [("flv", "libx264"), ("asf", "msmpeg4v3"), ("mp4", "libx264")])
def test_a_joined_file_whose_second_part_no_demuxer_reads_is_refused(tmp_path, suffix, codec):
    parts = [write(tmp_path / f"{i}.{suffix}", codec, n=20, fps=25, first=20 * i) for i in range(2)]
    assert numbers(read_frames(parts[0], np.arange)) == list(range(20))
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for read in (read_clip, lambda path: read_frames(path, np.arange)):
        with pytest.raises(BadVideo, match="another file is joined to its end"):
            read(path)


def test_a_matroska_file_that_starts_late_is_whole(tmp_path):
    path = tmp_path / "late.mkv"
    with (
        av.open(str(write(tmp_path / "v.mkv", options={"bf": "0"}))) as source,
        av.open(str(path), "w") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts += 5000  # ms
                packet.dts = packet.pts
                packet.stream = stream
                target.mux(packet)
    check_all(path, range(12), 10)


@pytest.mark.parametrize(
    ("name", "codec"), [("v.webm", "libvpx"), ("v.mkv", "mpeg2video"), ("v.mkv", "libx264")]
)
@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_matroska_file_that_is_cut_short_is_refused(tmp_path, name, codec, share):
    path = write(tmp_path / name, codec, n=50, fps=25)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BadVideo, match=r"cut short: the header promises 2\.00 s"):
        read_frames(path, np.arange)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("v.mp4", "libx264"), ("v.mkv", "libx264"), ("v.webm", "libvpx-vp9"), ("v.gif", "gif")],
)
def test_a_last_picture_that_stays(tmp_path, name, codec):
    path = write(tmp_path / name, codec, last_s=5, options={"bf": "0"} if codec == "libx264" else {})
    clip = read_clip(path, start_s=3, end_s=5.5)
    assert numbers(clip.frames) == [11] and clip.frame_times_s.tolist() == [0]
    with pytest.raises(BadVideo, match=r"the video ends at 6\.10 s"):
        read_clip(path, start_s=6.2)
    cut_clip(str(path), str(tmp_path / "cut.mp4"), 0.9, 4.9)
    assert index_frames(str(tmp_path / "cut.mp4")).end_s == pytest.approx(4.0, abs=2e-3)
    assert numbers(read_clip(tmp_path / "cut.mp4", start_s=3).frames) == [11]


def test_a_picture_cut_off_ends_where_the_part_ends(tmp_path):
    path = write(tmp_path / "v.mp4")
    cut_clip(str(path), str(tmp_path / "cut.mp4"), 0.25, 0.53)
    part, clip = (
        read_clip(path, Sampling(sample_fps=60), start_s=0.25, end_s=0.53),
        read_clip(tmp_path / "cut.mp4", Sampling(sample_fps=60)),
    )
    assert numbers(part.frames) == numbers(clip.frames) == [2, 3, 4, 5]
    assert index_frames(str(tmp_path / "cut.mp4")).end_s == pytest.approx(0.28, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("v.ts", "libx264"),
        ("v.ts", "mpeg2video"),
        ("v.gif", "gif"),
        ("v.mjpeg", "mjpeg"),
    ],
)
def test_a_last_picture_that_is_torn_is_left_out(tmp_path, name, codec):
    path = write(tmp_path / name, codec, fps=25, options={"bf": "0"} if codec == "libx264" else {})
    whole, index = read_frames(path, np.arange), index_frames(str(path))
    assert numbers(whole) == list(range(12))
    with av.open(str(path)) as container:
        start, n_bytes = [(p.pos, p.size) for p in container.demux(video=0) if p.size][-1]
    os.truncate(path, start + (path.stat().st_size - start if name == "v.ts" else n_bytes) // 2)
    np.testing.assert_array_equal(read_frames(path, np.arange), whole[:-1])
    assert index_frames(str(path)).end_s == pytest.approx(index.frame_times_s[-1])


# ---- the way up and the shape of pixels


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ((0, False), UPRIGHT),
        ((0, True), ["green", "red", "yellow", "blue"]),
        ((90, False), ["green", "yellow", "red", "blue"]),
        ((90, True), ["yellow", "green", "blue", "red"]),
        ((180, False), ["yellow", "blue", "green", "red"]),
        ((180, True), ["blue", "yellow", "red", "green"]),
        ((270, False), ["blue", "red", "yellow", "green"]),
        ((270, True), ["red", "blue", "green", "yellow"]),
    ],
)
@pytest.mark.parametrize("aspect", [1, Fraction(64, 45)])
def test_display_matrix_and_pixel_aspect(tmp_path, turn, expected, aspect):
    def prepare(stream):
        stream.set_display_rotation(*turn)
        stream.codec_context.sample_aspect_ratio = aspect

    path = write(tmp_path / "v.mp4", n=3, prepare=prepare)
    shown = (84, round(112 * aspect))
    frames = read_frames(path, np.arange)
    assert frames.shape[1:3] == (shown if turn[0] % 180 == 0 else shown[::-1]) == native_size(str(path))
    assert corners(frames[0]) == expected
    clip = read_clip(path)
    assert corners(clip.frames[0]) == expected
    probe = probe_clip(path, Sampling(sample_fps=2, short_side_px=224, max_frames=9))
    assert clip.frames.shape[1:3] == target_size(*native_size(str(path)), 224) == (probe.height, probe.width)

    cut_clip(str(path), str(tmp_path / "cut.mp4"), 0, 0.3)
    again = read_frames(tmp_path / "cut.mp4", np.arange)
    assert again.shape == frames.shape and corners(again[0]) == expected
    with av.open(str(tmp_path / "cut.mp4")) as file:
        flag = file.streams.video[0].sample_aspect_ratio or 1
        assert flag == (aspect if turn[0] % 180 == 0 else 1 / Fraction(aspect))


def test_the_aspect_that_a_scaler_leaves_over_is_no_aspect(tmp_path):
    def prepare(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(256, 255)

    assert native_size(str(write(tmp_path / "v.mp4", n=2, prepare=prepare))) == SIZE


@pytest.mark.parametrize(
    "matrix", [(46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30), (65536, *[0] * 7, 1 << 30)]
)
def test_a_matrix_that_is_no_right_angle_is_refused(tmp_path, matrix):
    path = write(tmp_path / "v.mp4", n=2, prepare=lambda stream: stream.set_display_matrix(matrix))
    for read in (read_clip, lambda path: read_frames(path, np.arange), lambda path: native_size(str(path))):
        with pytest.raises(BadVideo, match=r"v\.mp4: its display matrix .* is no turn by right angles"):
            read(path)


# ---- several pictures in a file


def write_two(path, streams, n=12):
    """Streams of (size, first number, disposition), interleaved; a cover is one picture."""
    with av.open(str(path), "w") as container:
        made = []
        for size, first, disposition in streams:
            is_cover = disposition == av.stream.Disposition.attached_pic
            stream = container.add_stream("mjpeg" if is_cover else "libx264", rate=10)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if is_cover else "yuv420p"
            if disposition is not None:
                stream.disposition = disposition
            made.append((stream, size, first, 1 if is_cover else n))
        for i in range(n):
            for stream, size, first, count in made:
                if i < count:
                    frame = av.VideoFrame.from_ndarray(picture(first + i, *size), format="rgb24")
                    frame = frame.reformat(format=stream.pix_fmt)
                    frame.pts, frame.time_base = i, Fraction(1, 10)
                    container.mux(stream.encode(frame))
        for stream, *_ in made:
            container.mux(stream.encode())
    return path


DEFAULT, NONE, COVER = (
    av.stream.Disposition.default,
    av.stream.Disposition(0),
    av.stream.Disposition.attached_pic,
)


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("larger.ts", [((56, 84), 100, None), (SIZE, 0, None)]),
        ("default.mkv", [((140, 196), 100, NONE), (SIZE, 0, DEFAULT)]),
        ("cover.mp4", [((600, 600), 100, COVER), (SIZE, 0, None)]),
    ],
)
def test_one_of_several_picture_streams(tmp_path, name, streams):
    path = write_two(tmp_path / name, streams)
    check_all(path, range(12), 10)
    assert native_size(str(path)) == SIZE == read_frames(path, np.arange).shape[1:3]


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
@pytest.mark.parametrize(("size", "is_good"), [((168, 224), True), ((56, 112), False)])
def test_a_size_that_changes_on_the_way(tmp_path, suffix, size, is_good):
    parts = [
        write(tmp_path / f"{i}.ts", n=6, first=6 * i, size=s, options={"bf": "0"})
        for i, s in enumerate((SIZE, size))
    ]
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as target:  # the headers of H.264 are in its packets
        stream, count = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = 9000 * count
                        packet.time_base, packet.duration, packet.stream = Fraction(1, 90_000), 9000, stream
                        target.mux(packet)
                        count += 1
    if is_good:
        check_all(path, range(12), 10)
        return
    for start_s in (0, 0.8):  # also where only pictures of the other shape are read
        with pytest.raises(BadVideo, match=r"pictures change from 112x84 to 112x56"):
            read_clip(path, Sampling(sample_fps=10), start_s=start_s)


# ---- what is no video


def playlists(folder, video):
    """Texts that FFmpeg plays, with the name under which it would."""
    target = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\n{video}\n"
    yield "vod.m3u8", target + "#EXT-X-ENDLIST\n"
    yield "live.m3u8", target
    yield "concat.mp4", f"ffconcat version 1.0\nfile '{video}'\n"
    yield "self.mp4", "ffconcat version 1.0\nfile self.mp4\nfile self.mp4\n"
    yield (
        "call.mp4",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
    )
    yield "subtitles.mp4", "[Script Info]\nTitle: x\n\n[Events]\n"
    yield "frame%03d.png", "a pattern of names"


def test_texts_that_would_be_played_are_refused(tmp_path):
    outside = write(tmp_path / "outside.ts")
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, text in playlists(folder, outside):
        (folder / name).write_text(text)
        started = time.monotonic()
        for read in (read_clip, lambda path: native_size(str(path))):
            with pytest.raises(BadVideo, match="not a video"):
                read(folder / name)
        assert time.monotonic() - started < 1, name


def test_pipes_devices_and_names_of_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", "/dev/zero"):
        with pytest.raises(BadVideo, match="a pipe, a device or a folder, not a file"):
            read_clip(path)
    for name in (
        "nul\0.mp4",
        "half \ud834.mp4",
        "x" * 300,
        "concat:a.mp4|b.mp4",
        "subfile,,start,0,end,9,,:a.mp4",
    ):
        with pytest.raises(BadVideo):
            read_clip(name)
