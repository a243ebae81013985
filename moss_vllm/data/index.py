"""What a video file holds: which pictures are shown when, for how long, and which way up.

Whatever reads a file (the list of its times, every decoder, the size, cutting) takes from here how it is
opened, which stream is its picture, what time a picture has and how it is meant to be seen.
"""

from __future__ import annotations

import math
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np

from moss_vllm.data.frames import REPLACE_FILE, BadVideo, check_frame_size, folder_frame_size

# Demuxers of FFmpeg that read the file they are given and no other. Playlists, concat lists, session
# descriptions, subtitles, patterns of file names and single pictures are none of them.
CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut", "rm", "dv"),
    *("gif", "apng", "ivf", "obu", "mpegvideo", "mjpeg", "m4v", "h261", "h263", "h264", "hevc", "vvc", "vc1"),
    "yuv4mpegpipe",
)
_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}

# decord 0.6 returns other frames than asked for, without an error, from mpeg2, edit lists, cut ts files and
# open GOPs (the default of x265), so it gets these codecs in these containers, and closed GOPs only.
_PLAIN_CODECS = ("h264", "hevc", "vp9", "mpeg4", "mjpeg")
_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_PLAIN_CONTAINERS = (_MOV, "matroska,webm", "avi")

DEFAULT_BONUS_PX = 5_000_000  # of the stream marked as default, as in the ffmpeg command
SQUARE_WITHIN = Fraction(1, 100)  # scalers write what their even sides leave over into the pixel aspect
JOINT_PACKETS = (
    4  # of ts that may be flagged before a joint, where two counters meet; no picture is bad there
)
_NO_TIMES = 0x80  # libavformat's AVFMT_NOTIMESTAMPS, as of raw streams
MAX_TILT = 0.02  # radians that a display matrix may be off a right angle


class _Packet(NamedTuple):
    pts: int | None
    duration: int | None
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool


@dataclass(frozen=True)
class Look:
    """How the pictures of a file are stored, and how they are meant to be seen.

    First the sides are swapped, then the order of rows or columns is turned round. `pixel_aspect` is the
    width of a stored pixel for a height of 1.
    """

    height: int
    width: int
    pixel_aspect: Fraction = Fraction(1)
    swaps_sides: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width in stored pixels, the right way up."""
        return (self.width, self.height) if self.swaps_sides else (self.height, self.width)

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width as a player shows them, in square pixels: one side is stretched, none shrinks."""
        one = Fraction(1)
        height = round(self.height / min(one, self.pixel_aspect))
        width = round(self.width * max(one, self.pixel_aspect))
        return (width, height) if self.swaps_sides else (height, width)

    @property
    def is_turned(self) -> bool:
        """Whether stored pictures are not the right way up."""
        return self.swaps_sides or self.flips_rows or self.flips_columns

    @property
    def is_mirrored(self) -> bool:
        """Whether no rotation brings stored pictures the right way up."""
        return self.swaps_sides ^ self.flips_rows ^ self.flips_columns

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """A stored picture (H, W, 3) the right way up, in stored pixels."""
        picture = picture.swapaxes(0, 1) if self.swaps_sides else picture
        return picture[:: -1 if self.flips_rows else 1, :: -1 if self.flips_columns else 1]


@dataclass(frozen=True)
class Index:
    """Times of all frames shown and the end of the last, in the file's own clock.

    `damage` says what the file promised but lacks. `look` is None for a folder of images. Where `can_seek` is
    false, times are known only by decoding from the start.
    """

    frame_times_s: np.ndarray
    end_s: float
    damage: str = ""
    suits_decord: bool = False
    suits_torchcodec: bool = False
    look: Look | None = None
    can_seek: bool = False


def index_frames(path: str) -> Index:
    """List the presentation times of a file from its packets, or by decoding it where packets do not tell.

    Raises: BadVideo if the file cannot be opened, has no picture stream, or none of its pictures decodes.
    """
    packets: list[_Packet] = []
    data_end_s, damage, look, last_key, has_one_header = 0.0, "", None, None, True
    with open_file(path) as container:
        stream = picture_stream(path, container)
        start_s, promised_s = (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6
        container_name, time_base = container.format.name, float(stream.time_base or 0)
        is_known = stream.codec.canonical_name in _PLAIN_CODECS and container_name in _PLAIN_CONTAINERS
        try:
            for packet in container.demux():
                if packet.size and packet.pts is not None:
                    packet_end_s = (packet.pts + (packet.duration or 0)) * float(packet.time_base)
                    data_end_s = max(data_end_s, packet_end_s - start_s)
                if packet.size and packet.stream is stream:
                    packets.append(_Packet(*(getattr(packet, field) for field in _Packet._fields)))
                    if packet.is_keyframe:
                        look = look or _look_at(path, stream, packet)
                        last_key = packet
                    has_one_header = has_one_header and not packet.has_sidedata("new_extradata")
        except av.FFmpegError as error:
            damage = f"its data cannot be read on ({error})"
        stores_order_only = container_name == "avi" and stream.codec_context.has_b_frames
        # Where the size changes on the way, others scale to the first one, whatever its shape.
        is_simple = has_one_header and len(container.streams.video) == 1
        if is_known and is_simple and last_key is not None and not damage:
            is_simple = _look_at(path, stream, last_key) == look
    # A cut mkv, webm or avi ends without an error; only its header knows how long it was meant to be.
    if is_known and data_end_s < promised_s - max(1.0, 0.05 * promised_s):
        damage = f"cut short: the header promises {promised_s:.2f} s, the data end at {data_end_s:.2f} s"
    joints = _joints(packets)
    at_joints = {i - held for i in joints for held in range(JOINT_PACKETS + 1)}
    if any(packet.is_corrupt for i, packet in enumerate(packets) if i not in at_joints):
        damage = damage or "a packet is incomplete or damaged"

    shown = [packet for packet in packets if not packet.is_discard]
    pts = sorted(packet.pts for packet in shown if packet.pts is not None)
    end = _end_of_last(shown, pts)
    is_plain = (
        is_known
        and look is not None
        and not stores_order_only
        and len(set(pts)) == len(packets) > 0
        and packets[0].is_keyframe
        and packets[0].pts == pts[0]
        and not joints
        and not any(packet.is_corrupt for packet in packets)
    )
    if look is None or not is_plain:
        return _index_by_decoding(path, look, len(shown), (pts[-1:], end), damage)
    suits_decord = (
        is_simple
        and _has_closed_gops(packets)
        and not look.is_mirrored
        and (container_name == _MOV or not look.is_turned)  # it sees no turn elsewhere
    )
    suits_torchcodec = is_simple and not look.is_turned
    times_s, end_s = np.array(pts) * time_base, end * time_base
    return Index(times_s, end_s, damage, suits_decord, suits_torchcodec, look, can_seek=True)


def _index_by_decoding(
    path: str, look: Look | None, n_packets: int, last: tuple[list[int], int], damage: str
) -> Index:
    """What `decode_in_order` gives; `last` is the time of the last packet, if it has one, and its end."""
    times: list[int] = []
    is_interlaced, base, step = False, 0.0, 0
    try:
        for frame in decode_in_order(path):
            look = look or Look(frame.height, frame.width)
            is_interlaced = is_interlaced or frame.interlaced_frame
            pts = frame.pts or 0  # `decode_in_order` sets it
            step = frame.duration or (pts - times[-1] if times else 0)
            base = float(frame.time_base or 0)
            times.append(pts)
    except av.FFmpegError as error:
        damage = f"{len(times)} of {n_packets} frames decode, then: {error}"
    if not times:
        raise BadVideo(path, f"0 of {n_packets} frames decode to a picture", REPLACE_FILE)
    # Some packets hold no picture: vp8's hidden frames, pictures before the first key frame, half pictures.
    if not damage and len(times) < n_packets * (0.45 if is_interlaced else 0.9) - 2:
        damage = f"{len(times)} of {n_packets} frames decode"
    end = last[1] if last[0] == times[-1:] else times[-1] + step
    return Index(np.array(times) * base, end * base, damage, look=look)


def _joints(packets: list[_Packet]) -> list[int]:
    """Key frames at which time starts again: no picture stored before one is shown after it."""
    found, latest = [], -math.inf
    for i, packet in enumerate(packets):
        if packet.pts is not None:
            if packet.is_keyframe and packet.pts <= latest:
                found.append(i)
                latest = -math.inf
            latest = max(latest, packet.pts)
    return found


def _end_of_last(packets: list[_Packet], pts: list[int]) -> int:
    """When the last picture goes: by its own duration, else after as long as the picture before it stays.

    In mp4 the last picture stored, which may be another one, has the duration.
    """
    if not pts:
        return 0
    lasting = [packet for packet in packets if packet.pts == pts[-1]] + packets[-1:]
    end = max((p.pts + p.duration for p in lasting if p.pts is not None and p.duration), default=pts[-1])
    return end if end > pts[-1] else 2 * pts[-1] - pts[max(len(pts) - 2, 0)]


def _has_closed_gops(packets: list[_Packet]) -> bool:
    """Whether no frame stored after a key frame is shown before it: decord miscounts after a seek there."""
    pts = [packet.pts or 0 for packet in packets]
    earliest_later = np.minimum.accumulate(pts[::-1])[::-1]
    return all(earliest_later[i] == pts[i] for i, packet in enumerate(packets) if packet.is_keyframe)


def open_file(path: str) -> av.container.InputContainer:
    """The file, whatever its name and its titles hold; only its content says what it is.

    Raises: BadVideo for what is no container of video, or no file.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited on
            raise BadVideo(path, "is a pipe, a device or a folder, not a file", "name a video file")
        if not status.st_size:
            raise BadVideo(path, "the file is empty (0 bytes)", REPLACE_FILE)
        # "file:" for names with a colon; old avi files carry titles that are not UTF-8.
        return av.open(f"file:{path}", metadata_errors="ignore", options=dict(_OPTIONS))
    except av.ArgumentError as error:  # so FFmpeg says that a format is not on the list
        reason = "not a video by its content: only containers such as mp4, mkv, avi or ts are opened"
        raise BadVideo(path, reason, "name the video itself; pictures are read from a folder") from error
    except av.FFmpegError as error:
        raise BadVideo(path, f"not a video, or its header is lost ({error})", REPLACE_FILE) from error
    except OSError as error:
        raise BadVideo(path, f"{error.strerror}", "check the path, and that you may read it") from error
    except BadVideo:
        raise
    except ValueError as error:  # a name that no file can have
        raise BadVideo(path, f"not a video, or its header is lost ({error})", REPLACE_FILE) from error


def picture_stream(path: str, container: av.container.InputContainer) -> av.VideoStream:
    """The moving picture of a file; of several the one that the ffmpeg command takes.

    Cover pictures and thumbnails are none.

    Raises: BadVideo where there is none, or one that cannot be decoded.
    """
    marks = av.stream.Disposition
    moving = [
        s
        for s in container.streams.video
        if not s.disposition & (marks.attached_pic | marks.timed_thumbnails)
    ]
    if not moving:
        raise BadVideo(path, "there is no video stream (sound only?)", "check that it is the right file")
    for stream in moving:
        if stream.codec_context is None:  # half a header is left; asking for the width is an AttributeError
            raise BadVideo(path, "its header does not say how the video is coded", REPLACE_FILE)
    stream = max(
        moving, key=lambda s: s.width * s.height + DEFAULT_BONUS_PX * bool(s.disposition & marks.default)
    )
    if stream.width and stream.height:
        check_frame_size(path, stream.height, stream.width)  # before a decoder claims memory for it
    stream.codec_context.thread_count = 1
    return stream


def decode_in_order(path: str, *, from_s: float | None = None) -> Iterator[av.VideoFrame]:
    """All frames of a file, or those from a key frame before `from_s` on (in the file's own clock).

    Their times rise; see `_Clock`.

    Raises: BadVideo for a file that cannot be opened, av.FFmpegError on the way.
    """
    with open_file(path) as container:
        stream = picture_stream(path, container)
        if from_s is not None:
            container.seek(int(from_s * 1e6))
        clock = _Clock(container, stream)
        for packet in container.demux(stream):
            clock.note(packet)
            for frame in packet.decode():
                if clock.sets(frame):
                    yield frame


class _Clock:
    """Gives every picture of a file its time, in the order in which the decoder puts them out.

    It is the file's own time, but for pictures of files that store none, or whose time starts again as where
    two files were joined: these go on where the picture before them ends.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self.context = stream.codec_context
        self.is_raw = bool(container.format.flags & _NO_TIMES)
        self.is_avi = container.format.name == "avi"  # has the times of decoding only
        self.waiting: deque[int] = deque()
        self.offset, self.last = 0, -1
        self.is_first = True
        rate, base = stream.guessed_rate or Fraction(25), stream.time_base or Fraction(1, 90_000)
        self.step = max(1, round(1 / (rate * base)))

    def note(self, packet: av.Packet) -> None:
        """Keep what is needed of a packet that is about to be decoded."""
        if self.is_avi and packet.size and packet.dts is not None:
            self.waiting.append(packet.dts)

    def sets(self, frame: av.VideoFrame) -> bool:
        """Set the time of a picture; false if the picture before it has the same."""
        pts = None if self.is_raw else self._next_waiting(frame) if self.is_avi else frame.pts
        if pts is None:
            pts = 0 if self.is_first else self.last + self.step
        else:
            pts += self.offset
        if not self.is_first and pts < self.last:
            self.offset += self.last + self.step - pts
            pts = self.last + self.step
        is_new = self.is_first or pts > self.last
        if self.is_raw:
            self.step = frame.duration or self.step  # longer where a field is repeated
        elif is_new and not self.is_first:
            self.step = pts - self.last
        frame.pts = self.last = pts
        self.is_first = False
        return is_new

    def _next_waiting(self, frame: av.VideoFrame) -> int | None:
        """The n-th picture put out has the n-th time; where the order is kept, some packets may hold none."""
        if not self.context.has_b_frames and frame.dts is not None:
            while self.waiting and self.waiting[0] < frame.dts:
                self.waiting.popleft()
        return self.waiting.popleft() if self.waiting else None


def native_size(path: str) -> tuple[int, int]:
    """Height and width at which a player shows a file; of a folder those of its first image.

    Raises: BadVideo for a file that cannot be opened or names no size, or a size beyond the limits.
    """
    if os.path.isdir(path):
        return folder_frame_size(path)
    with open_file(path) as container:
        stream = picture_stream(path, container)
        look = None
        for packet in container.demux(stream):
            if packet.size and packet.is_keyframe and (look := _look_at(path, stream, packet)):
                break
        if look is None:
            look = Look(stream.height, stream.width, _pixel_aspect(stream))
    if not look.height or not look.width:
        raise BadVideo(path, "its header names no frame size", REPLACE_FILE)
    check_frame_size(path, *look.shown_size)
    return look.shown_size


def _look_at(path: str, stream: av.VideoStream, packet: av.Packet) -> Look | None:
    """What the picture of one packet tells, or None if it cannot be decoded by itself.

    PyAV 18 does not tell a stream's display matrix; a picture has it, whether container or codec store it.

    Raises: BadVideo for a picture that is to be turned by an angle in between, or a size beyond the limits.
    """
    context = stream.codec_context
    try:
        frames = [*context.decode(packet), *context.decode(None)]
    except av.FFmpegError:
        frames = []
    context.flush_buffers()
    if not frames:
        return None
    turn = (False, False, False)
    told: Any = frames[0].side_data  # PyAV's stubs know other keys only
    if "DISPLAYMATRIX" in told:
        turn = _turn_of(path, np.frombuffer(bytes(told["DISPLAYMATRIX"]), np.int32))
    look = Look(frames[0].height, frames[0].width, _pixel_aspect(stream), *turn)
    check_frame_size(path, *look.shown_size)
    return look


def _turn_of(path: str, matrix: np.ndarray) -> tuple[bool, bool, bool]:
    """`swaps_sides`, `flips_rows` and `flips_columns` of a Look by FFmpeg's display matrix.

    A stored column x and row y are shown in column a x + c y and row b x + d y.
    """
    a, b, _, c, d = (int(value) for value in matrix[:5])
    straight, crossed = sorted([abs(a), abs(d)]), sorted([abs(b), abs(c)])
    if straight[1] == crossed[1] == 0:  # players take it for none
        return False, False, False
    if straight[0] and crossed[1] <= MAX_TILT * straight[0]:
        return False, d < 0, a < 0
    if crossed[0] and straight[1] <= MAX_TILT * crossed[0]:
        return True, b < 0, c < 0
    numbers = " ".join(f"{value / 65536:.2f}" for value in (a, b, c, d))
    reason = f"its display matrix ({numbers}) is no turn by right angles"
    raise BadVideo(path, reason, "encode it upright, `ffmpeg -i IN OUT.mp4`, or leave it out")


def _pixel_aspect(stream: av.VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return Fraction(1) if aspect <= 0 or abs(aspect - 1) < SQUARE_WITHIN else aspect
