"""List when each picture of a video file is shown, from its packets, or by decoding if they do not tell."""

from __future__ import annotations

import math
import os
import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import av
import numpy as np

from moss_vllm.video.container import Look, decode_in_order, look_at, open_file, picture_stream
from moss_vllm.video.frames import REPLACE_FILE, BadVideo

# decord 0.6 returns other frames than asked for, without an error, from mpeg2, edit lists, cut ts files and
# open GOPs (the default of x265), so it gets these codecs in these containers, and closed GOPs only.
_DECORD_CODECS = ("h264", "hevc", "vp9", "mpeg4", "mjpeg")
_PLAIN_CODECS = (*_DECORD_CODECS, "av1")
_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_MATROSKA = "matroska,webm"
_PLAIN_CONTAINERS = (_MOV, _MATROSKA, "avi")
# How files begin whose demuxers read only the first of several joined files.
_BEGINNINGS = {
    _MOV: re.compile(rb"\0\0\0[\x10-\xff]ftyp[ -~]{4}"),
    "flv": re.compile(rb"FLV\x01[\0-\x05]\0\0\0\x09\0\0\0\0"),
    "asf": re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c"),
}
# How the last packet of a whole file ends, where no decoder reports a picture that is torn.
_ENDINGS = {"gif": re.compile(rb"\0;?\Z"), "mjpeg": re.compile(rb"\xff\xd9\0*\Z")}
_ENDING_BYTES = 64

JOINT_PACKETS = 4  # before a joint in ts may be flagged, as two counters meet there; the pictures are good


class _Packet(NamedTuple):
    pts: int | None
    duration: int | None
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool


@dataclass(frozen=True)
class Index:
    """Times of all frames shown and the end of the last, in the file's own clock.

    `damage` says what of the file is lost, or is empty. `look` is None for a folder of images. `key_times_s`
    are the times of the key frames that decoding may start from; empty if packets do not tell them.
    """

    frame_times_s: np.ndarray
    end_s: float
    damage: str = ""
    suits_decord: bool = False
    suits_torchcodec: bool = False
    look: Look | None = None
    key_times_s: np.ndarray = field(default_factory=lambda: np.zeros(0))


def index_frames(path: str, container: av.container.InputContainer | None = None) -> Index:
    """List the presentation times of a file from its packets, or by decoding it if packets do not tell.

    `container` is the file if `open_file` has opened it already; it is read to its end.

    Raises: BadVideo if the file cannot be opened, has no picture stream, or none of its pictures decodes.
    """
    packets: list[_Packet] = []
    data_end_s, damage, look, has_one_header, is_torn = 0.0, "", None, True, False
    with open_file(path) if container is None else nullcontext(container) as container:
        stream = picture_stream(path, container)
        start_s, promised_s = (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6
        container_name, time_base = container.format.name, float(stream.time_base or 0)
        ticks_s = {every.index: float(every.time_base or 0) for every in container.streams}
        codec_name = stream.codec.canonical_name
        if container_name == _MATROSKA:  # may count its duration from 0, not from its first packet
            start_s = min(start_s, 0.0)
        data_stop, ending = 0, _ENDINGS.get(container_name)  # in bytes of the file
        try:
            for packet in container.demux():
                if packet.pos is not None:
                    data_stop = max(data_stop, packet.pos + packet.size)
                if packet.size and packet.pts is not None:
                    packet_end_s = (packet.pts + (packet.duration or 0)) * ticks_s[packet.stream.index]
                    data_end_s = max(data_end_s, packet_end_s - start_s)
                if packet.size and packet.stream is stream:
                    packets.append(_Packet(*(getattr(packet, name) for name in _Packet._fields)))
                    if packet.is_keyframe:
                        look = look or look_at(path, stream, packet)
                    has_one_header = has_one_header and not packet.has_sidedata("new_extradata")
                    if ending:
                        is_torn = not ending.search(bytes(memoryview(packet)[-_ENDING_BYTES:]))
        except av.FFmpegError as error:
            damage = f"its data cannot be read on ({error})"
        stores_order_only = container_name == "avi" and stream.codec_context.has_b_frames
        is_simple = has_one_header and len(container.streams.video) == 1
    # A cut mkv, webm or avi ends without an error; only its header knows how long it was meant to be.
    slack_s = max(1.0, 0.05 * promised_s)
    if container_name == _MATROSKA and _segment_is_cut(path):
        slack_s = min(slack_s, 1.5 * promised_s / (len(packets) + 1))  # the last packet may have no duration
    if container_name in _PLAIN_CONTAINERS and data_end_s < promised_s - slack_s:
        damage = f"cut short: the header promises {promised_s:.2f} s, the data end at {data_end_s:.2f} s"
    if container_name in _BEGINNINGS and _begins_again(path, data_stop, _BEGINNINGS[container_name]):
        damage = "another file is joined to its end, which FFmpeg does not read; join with its concat demuxer"
    joints = _joints(packets)
    at_joints = {i - held for i in joints for held in range(JOINT_PACKETS + 1)}
    if any(packet.is_corrupt for i, packet in enumerate(packets) if i not in at_joints):
        damage = damage or "a packet is incomplete or damaged"

    shown = [packet for packet in packets if not packet.is_discard]
    pts = sorted(packet.pts for packet in shown if packet.pts is not None)
    end = _end_of_last(shown, pts)
    is_plain = (
        codec_name in _PLAIN_CODECS
        and container_name in _PLAIN_CONTAINERS
        and look is not None
        and not stores_order_only
        and len(set(pts)) == len(packets) > 0
        and packets[0].is_keyframe
        and packets[0].pts == pts[0]
        and not joints
        and not any(packet.is_corrupt for packet in packets)
    )
    if look is None or not is_plain:
        return _index_by_decoding(path, look, len(shown), (pts[-1:], end), damage, is_torn)
    suits_decord = (
        is_simple
        and codec_name in _DECORD_CODECS
        and _has_closed_gops(packets)
        and not look.is_mirrored
        and (container_name == _MOV or not look.is_turned)  # it sees no turn elsewhere
    )
    suits_torchcodec = is_simple and not look.is_turned
    times_s, end_s = np.array(pts) * time_base, end * time_base
    keys = sorted(p.pts for p in packets if p.is_keyframe and p.pts is not None)
    keys_s = np.array(keys if has_one_header else []) * time_base  # a skipped packet may hold a new header
    return Index(times_s, end_s, damage, suits_decord, suits_torchcodec, look, keys_s)


def _index_by_decoding(
    path: str, look: Look | None, n_packets: int, last: tuple[list[int], int], damage: str, is_torn: bool
) -> Index:
    """The index of the frames from `decode_in_order`; `last` is the last packet's time, if any, and its end.

    A last picture that the decoder reports as corrupt, or that `is_torn`, is left out.
    """
    times: list[int] = []
    is_interlaced, is_corrupt, base, step = False, False, 0.0, 0
    try:
        for frame in decode_in_order(path):
            look = look or Look(frame.height, frame.width)
            is_interlaced = is_interlaced or frame.interlaced_frame
            pts = frame.pts or 0  # `decode_in_order` has set it
            step = frame.duration or (pts - times[-1] if times else 0)
            base = float(frame.time_base or 0)
            times.append(pts)
            is_corrupt = frame.is_corrupt
    except av.FFmpegError as error:
        damage = f"{len(times)} of {n_packets} frames decode, then: {error}"
    end = last[1] if last[0] == times[-1:] else times[-1] + step if times else 0
    if times and not damage and (is_torn or is_corrupt):
        end = times.pop()
    if not times:
        raise BadVideo(path, f"0 of {n_packets} frames decode to a picture", REPLACE_FILE)
    # Some packets hold no picture: vp8's hidden frames, pictures before the first key frame, half pictures.
    if not damage and len(times) < n_packets * (0.45 if is_interlaced else 0.9) - 2:
        damage = f"{len(times)} of {n_packets} frames decode"
    return Index(np.array(times) * base, end * base, damage, look=look)


def _segment_is_cut(path: str) -> bool:
    """Whether a mkv or webm file ends before the element that holds all its data.

    An element is a name, a length and that many bytes. All bits of an unknown length are 1.
    """
    with open(path, "rb") as file:
        head, size = file.read(4096), os.fstat(file.fileno()).st_size
    at = 0
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML, Segment
        if head[at : at + 4] != name or len(head) < at + 12:
            return False
        n_bytes = 9 - head[at + 4].bit_length()  # one more than its leading zeros
        mask = (1 << 7 * n_bytes) - 1
        length = int.from_bytes(head[at + 4 : at + 4 + n_bytes], "big") & mask
        at += 4 + n_bytes + length
    return length != mask and at > size


def _begins_again(path: str, start: int, beginning: re.Pattern[bytes]) -> bool:
    """Whether another file begins behind the last packet; `start` may lie before the end of that."""
    kept = b""
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            if beginning.search(kept + block):
                return True
            kept = block[-32:]
    return False


def _joints(packets: list[_Packet]) -> list[int]:
    """Key frames at which time starts again: no picture stored before one is shown after it."""
    joints, latest = [], -math.inf
    for i, packet in enumerate(packets):
        if packet.pts is not None:
            if packet.is_keyframe and packet.pts <= latest:
                joints.append(i)
                latest = -math.inf
            latest = max(latest, packet.pts)
    return joints


def _end_of_last(packets: list[_Packet], pts: list[int]) -> int:
    """When the last picture ends: after its own duration, or after that of the picture before it.

    In mp4 the last packet stored has the duration, though it may hold another picture.
    """
    if not pts:
        return 0
    lasting = [packet for packet in packets if packet.pts == pts[-1]] + packets[-1:]
    end = max((p.pts + p.duration for p in lasting if p.pts is not None and p.duration), default=pts[-1])
    return end if end > pts[-1] else 2 * pts[-1] - pts[max(len(pts) - 2, 0)]


def _has_closed_gops(packets: list[_Packet]) -> bool:
    """Whether no frame stored after a key frame is shown before it: else decord miscounts after a seek."""
    pts = [packet.pts or 0 for packet in packets]
    earliest_later = np.minimum.accumulate(pts[::-1])[::-1]
    return all(earliest_later[i] == pts[i] for i, packet in enumerate(packets) if packet.is_keyframe)
