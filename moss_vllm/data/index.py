"""When every frame of a video file is shown, by its packets; opening files, decoding them from the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import av
import numpy as np

from moss_vllm.data.frames import REPLACE_FILE, BadVideo, check_frame_size

# decord 0.6 returns other frames than asked for, without an error, from mpeg2, edit lists, cut ts files and
# open GOPs (the default of x265), so it gets these codecs in these containers, and closed GOPs only.
_DECORD_CODECS = ("h264", "hevc", "vp9", "mpeg4", "mjpeg")
_PLAIN_CODECS = (*_DECORD_CODECS, "av1")
_PLAIN_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")


class _Packet(NamedTuple):
    pts: int | None
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool


@dataclass(frozen=True)
class Index:
    """Times of all frames shown, in the file's own clock; `damage` says what the file promised but lacks.

    `key_times_s` are those of the key frames that decoding may start from; none where packets do not tell.
    """

    frame_times_s: np.ndarray
    damage: str
    suits_decord: bool
    key_times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))


def index_frames(path: str, container: av.container.InputContainer | None = None) -> Index:
    """List the presentation times of a file from its packets, or by decoding it where packets do not tell.

    `container` is the file as `open_file` opened it, if it is; it is read to its end.

    Raises: BadVideo if the file cannot be opened, has no picture stream, or its pictures have no times.
    """
    packets: list[_Packet] = []
    data_end_s, damage = 0.0, ""
    with open_file(path) if container is None else nullcontext(container) as container:
        stream = picture_stream(path, container)
        start_s, promised_s = (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6
        container_name, time_base = container.format.name, float(stream.time_base or 0)
        ticks_s = {every.index: float(every.time_base or 0) for every in container.streams}
        codec_name = stream.codec.canonical_name
        is_known = codec_name in _PLAIN_CODECS and container_name in _PLAIN_CONTAINERS
        try:
            for packet in container.demux():
                if packet.size and packet.pts is not None:
                    packet_end_s = (packet.pts + (packet.duration or 0)) * ticks_s[packet.stream.index]
                    data_end_s = max(data_end_s, packet_end_s - start_s)
                if packet.size and packet.stream is stream:
                    packets.append(_Packet(*(getattr(packet, name) for name in _Packet._fields)))
        except av.FFmpegError as error:
            damage = f"its data cannot be read on ({error})"
    # A cut mkv, webm or avi ends without an error; only its header knows how long it was meant to be.
    if is_known and data_end_s < promised_s - max(1.0, 0.05 * promised_s):
        damage = f"cut short: the header promises {promised_s:.2f} s, the data end at {data_end_s:.2f} s"
    elif any(packet.is_corrupt for packet in packets):
        damage = damage or "a packet is incomplete or damaged"

    pts = [packet.pts for packet in packets if packet.pts is not None and packet.pts >= 0]
    is_plain = (
        is_known
        and len(set(pts)) == len(packets) > 0
        and packets[0].is_keyframe
        and packets[0].pts == min(pts)
        and not any(packet.is_discard or packet.is_corrupt for packet in packets)
        and (container_name != "avi" or pts == sorted(pts))  # avi stores no pts, they are guessed
    )
    if is_plain:
        keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
        suits_decord = codec_name in _DECORD_CODECS and _has_closed_gops(packets, pts)
        return Index(
            np.array(sorted(pts)) * time_base, damage, suits_decord, np.array(sorted(keys)) * time_base
        )

    times_s, is_interlaced = [], False
    try:
        for frame in decode_in_order(path):
            is_interlaced = is_interlaced or frame.interlaced_frame
            if frame.time is not None and frame.time >= 0:
                times_s.append(frame.time)
    except av.FFmpegError as error:
        damage = f"{len(times_s)} of {len(packets)} frames decode, then: {error}"
    if not times_s:
        raise BadVideo(path, f"0 of {len(packets)} frames decode to a picture with a time", REPLACE_FILE)
    # Some packets hold no picture: vp8's hidden frames, pictures before the first key frame, half pictures.
    n_shown = sum(not packet.is_discard for packet in packets)
    if not damage and len(times_s) < n_shown * (0.45 if is_interlaced else 0.9) - 2:
        damage = f"{len(times_s)} of {n_shown} frames decode"
    return Index(np.array(sorted(set(times_s))), damage, False)


def _has_closed_gops(packets: list[_Packet], pts: list[int]) -> bool:
    """Whether no frame stored after a key frame is shown before it: decord miscounts after a seek there."""
    earliest_later = np.minimum.accumulate(pts[::-1])[::-1]
    return all(earliest_later[i] == pts[i] for i, packet in enumerate(packets) if packet.is_keyframe)


def open_file(path: str) -> av.container.InputContainer:
    """The file, whatever its name and its titles hold.

    Raises: BadVideo for what is no video.
    """
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise BadVideo(path, "the file is empty (0 bytes)", REPLACE_FILE)
    except OSError as error:
        raise BadVideo(path, f"{error.strerror}", "check the path, and that you may read it") from error
    try:
        # "file:" for names with a colon; old avi files carry titles that are not UTF-8.
        return av.open(f"file:{path}", metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise BadVideo(path, f"not a video, or its header is lost ({error})", REPLACE_FILE) from error


def picture_stream(path: str, container: av.container.InputContainer) -> av.VideoStream:
    """The moving picture of a file.

    Raises: BadVideo where there is none, or one that cannot be decoded.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.disposition & av.stream.Disposition.attached_pic:
        raise BadVideo(path, "there is no video stream (sound only?)", "check that it is the right file")
    if stream.codec_context is None:  # half a header is left; asking for the width then is an AttributeError
        raise BadVideo(path, "its header does not say how the video is coded", REPLACE_FILE)
    if stream.width and stream.height:
        check_frame_size(path, stream.height, stream.width)  # before a decoder claims memory for it
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
    return stream


def decode_in_order(path: str, *, from_s: float | None = None) -> Iterator[av.VideoFrame]:
    """All frames of a file, or those from a key frame before `from_s` on (in the file's own clock).

    Raises: BadVideo for a file that cannot be opened, av.FFmpegError on the way.
    """
    with open_file(path) as container:
        stream = picture_stream(path, container)
        if from_s is not None:
            container.seek(int(from_s * 1e6))
        yield from container.decode(stream)


def native_size(path: str) -> tuple[int, int]:
    """Height and width in the file's header.

    Raises: BadVideo for a header without them, or a size beyond the limits.
    """
    with open_file(path) as container:
        stream = picture_stream(path, container)
        height, width = stream.height, stream.width
    if not height or not width:
        raise BadVideo(path, "its header names no frame size", REPLACE_FILE)
    check_frame_size(path, height, width)
    return height, width
