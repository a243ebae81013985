"""Open a video file, find its picture stream, and tell when its pictures are shown and which way up.

Everything that reads a file (the list of its times, every decoder, its size, cutting) takes these rules from
here.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from moss_vllm.video.frames import REPLACE_FILE, BadVideo, check_frame_size, folder_frame_size

# FFmpeg's demuxers that read the file they are given and no other. Playlists, concat lists, session
# descriptions, subtitles, patterns of file names and single pictures are left out.
CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "nut", "rm", "dv"),
    *("gif", "apng", "ivf", "obu", "mpegvideo", "mjpeg", "m4v", "h261", "h263", "h264", "hevc", "vvc", "vc1"),
    "yuv4mpegpipe",
)
_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}

DEFAULT_BONUS_PX = 5_000_000  # counted for the stream marked as default, as in the ffmpeg command
SQUARE_WITHIN = Fraction(1, 100)  # scalers write what their even sides leave over into the pixel aspect
MAX_TILT = 0.02  # radians that a display matrix may be off a right angle
_NO_TIMES = 0x80  # libavformat's AVFMT_NOTIMESTAMPS, as of raw streams


@dataclass(frozen=True)
class Look:
    """How the pictures of a file are stored, and how they are meant to be seen.

    First the sides are swapped, then the order of rows or columns is reversed. `pixel_aspect` is the
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


def open_file(path: str) -> av.container.InputContainer:
    """Open a file by its content, whatever its name and its titles hold.

    Raises: BadVideo for a path without a file, or a file that is no video container.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe may never return
            raise BadVideo(path, "is a pipe, a device or a folder, not a file", "name a video file")
        if not status.st_size:
            raise BadVideo(path, "the file is empty (0 bytes)", REPLACE_FILE)
        # "file:" allows names with a colon; old avi files hold titles that are not UTF-8.
        return av.open(f"file:{path}", metadata_errors="ignore", options=dict(_OPTIONS))
    except av.ArgumentError as error:  # FFmpeg's error for a format off the whitelist
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
    """The video stream of a file; of several, the one that the ffmpeg command takes.

    Cover pictures and thumbnails do not count.

    Raises: BadVideo if there is none, or the header does not name its codec.
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
        if stream.codec_context is None:  # its header is cut; even `width` raises AttributeError
            raise BadVideo(path, "its header does not say how the video is coded", REPLACE_FILE)
    stream = max(
        moving, key=lambda s: s.width * s.height + DEFAULT_BONUS_PX * bool(s.disposition & marks.default)
    )
    if stream.width and stream.height:
        check_frame_size(path, stream.height, stream.width)  # before a decoder allocates memory for it
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
    return stream


def decode_in_order(path: str, *, from_s: float | None = None) -> Iterator[av.VideoFrame]:
    """All frames of a file, or those from a key frame before `from_s` on (in the file's own clock).

    Their times increase; see `_Clock`.

    Raises: BadVideo for a file that cannot be opened, av.FFmpegError while decoding.
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
    """Sets the time of every picture, in the decoder's output order.

    It is the time that the file stores. A picture without one, or after a joint of two files where time
    starts again, begins where the picture before it ends.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self.context = stream.codec_context
        self.is_raw = bool(container.format.flags & _NO_TIMES)
        self.is_avi = container.format.name == "avi"  # avi stores decoding times only
        self.waiting: deque[int] = deque()
        self.offset, self.last = 0, -1
        self.is_first = True
        rate, base = stream.guessed_rate or Fraction(25), stream.time_base or Fraction(1, 90_000)
        self.step = max(1, round(1 / (rate * base)))

    def note(self, packet: av.Packet) -> None:
        """Remember the time of a packet that is about to be decoded."""
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
            self.step = frame.duration or self.step  # longer for a picture with a repeated field
        elif is_new and not self.is_first:
            self.step = pts - self.last
        frame.pts = self.last = pts
        self.is_first = False
        return is_new

    def _next_waiting(self, frame: av.VideoFrame) -> int | None:
        """The n-th picture gets the n-th time; without reordering, packets without a picture are skipped."""
        if not self.context.has_b_frames and frame.dts is not None:
            while self.waiting and self.waiting[0] < frame.dts:
                self.waiting.popleft()
        return self.waiting.popleft() if self.waiting else None


def native_size(path: str) -> tuple[int, int]:
    """Height and width at which a player shows a file; for a folder, those of its first image.

    Raises: BadVideo for a file that cannot be opened or names no size, or a size beyond the limits.
    """
    if os.path.isdir(path):
        return folder_frame_size(path)
    with open_file(path) as container:
        stream = picture_stream(path, container)
        look = None
        for packet in container.demux(stream):
            if packet.size and packet.is_keyframe and (look := look_at(path, stream, packet)):
                break
        if look is None:
            look = Look(stream.height, stream.width, _pixel_aspect(stream))
    if not look.height or not look.width:
        raise BadVideo(path, "its header names no frame size", REPLACE_FILE)
    check_frame_size(path, *look.shown_size)
    return look.shown_size


def look_at(path: str, stream: av.VideoStream, packet: av.Packet) -> Look | None:
    """The look of the picture in one packet, or None if it cannot be decoded by itself.

    PyAV 18 does not expose a stream's display matrix; a picture has it, whether container or codec store it.

    Raises: BadVideo for a display matrix that is no turn by right angles, or a size beyond the limits.
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
    side_data: Any = frames[0].side_data  # PyAV's stubs list other keys only
    if "DISPLAYMATRIX" in side_data:
        turn = _turn_of(path, np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32))
    look = Look(frames[0].height, frames[0].width, _pixel_aspect(stream), *turn)
    check_frame_size(path, *look.shown_size)
    return look


def _turn_of(path: str, matrix: np.ndarray) -> tuple[bool, bool, bool]:
    """`swaps_sides`, `flips_rows` and `flips_columns` of a Look by FFmpeg's display matrix.

    A stored column x and row y are shown in column a x + c y and row b x + d y.
    """
    a, b, _, c, d = (int(value) for value in matrix[:5])
    straight, crossed = sorted([abs(a), abs(d)]), sorted([abs(b), abs(c)])
    if straight[1] == crossed[1] == 0:  # players ignore such a matrix
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
