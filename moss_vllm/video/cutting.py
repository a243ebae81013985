"""Cut a part out of a video into a clip of its own, frame by frame."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np

from moss_vllm.video.container import Look, decode_in_order
from moss_vllm.video.decoders import ROUNDING_S, pick_frames
from moss_vllm.video.frames import BadVideo, check_same_shape
from moss_vllm.video.packets import Index, index_frames

TICKS_PER_S = 90_000  # of the clip's clock; time stamps are off by 6 microseconds at most
SEEK_MARGIN_S = 1.0  # pictures next to the key frame that a seek lands on may be incomplete
X264 = {"crf": "18", "preset": "veryfast", "bf": "0"}
REPORT = "please report it with the source video"


def cut_clip(
    source: str, target: str, start_s: float, end_s: float, *, index: Index | None = None
) -> np.ndarray:
    """Write the frames on screen in [start_s, end_s) of a video to an mp4 without sound; return their times.

    They are the frames that `read_clip(source, start_s=..., end_s=...)` samples from, at the same times, the
    last until end_s, so the clip and the part train alike. They are encoded again (H.264, nearly lossless),
    stored upright with their pixels' aspect, then decoded and counted. `index` is the result of
    `index_frames`, if the caller has it.

    Shape: (T,), seconds from start_s; the first is 0.
    Raises: BadVideo if the source is shorter or a frame of it is lost; av.FFmpegError if writing fails.
    """
    index = index or index_frames(source)
    times_s = index.frame_times_s - index.frame_times_s[0]
    frame_s = float(times_s[-1] - times_s[-2]) if len(times_s) > 1 else 0.0
    video_end_s = index.end_s - float(index.frame_times_s[0])
    remedy = "check start and end, or download the video again"
    if start_s >= video_end_s:
        raise BadVideo(source, f"start is {start_s:g} s, the video ends at {video_end_s:.2f} s", remedy)
    if end_s > video_end_s + frame_s + ROUNDING_S:
        reason = f"end is {end_s:g} s, the video ends at {video_end_s:.2f} s"
        raise BadVideo(source, f"{reason} ({index.damage})" if index.damage else reason, remedy)
    first = max(0, int(np.searchsorted(times_s, start_s + ROUNDING_S, "right")) - 1)
    stop = max(first + 1, int(np.searchsorted(times_s, end_s - ROUNDING_S, "left")))
    ticks = np.maximum(np.rint((times_s[first:stop] - start_s) * TICKS_PER_S), 0).astype(int)
    end_tick = max(int(ticks[-1]) + 1, round((min(end_s, video_end_s) - start_s) * TICKS_PER_S))
    frames = _frames_at(source, index, index.frame_times_s[first:stop])
    _encode(frames, np.append(ticks, end_tick), target, index.look or Look(0, 0))
    _verify(target, ticks / TICKS_PER_S)
    return ticks / TICKS_PER_S


def _frames_at(source: str, index: Index, wanted_s: np.ndarray) -> Iterator[av.VideoFrame]:
    """The frames at these times of the file's own clock, decoded from a key frame before them or the start.

    Raises: BadVideo if one is lost.
    """
    starts = (float(wanted_s[0]) - SEEK_MARGIN_S, None) if len(index.key_times_s) else (None,)
    attempts = (decode_in_order(source, from_s=from_s) for from_s in starts)

    def explain(n_found: int, n_seen: int, reason: str) -> str:
        return f"{n_found} of the part's {len(wanted_s)} frames decode, then: {reason}"

    yield from pick_frames(source, attempts, wanted_s, explain)


def _encode(frames: Iterator[av.VideoFrame], ticks: np.ndarray, target: str, look: Look) -> None:
    """Write each frame at its tick; `ticks` has one more, where the last frame ends."""
    pictures = (_as_encoded(frame, look) for frame in frames)
    first = next(pictures)
    seconds = Fraction(int(ticks[-2] - ticks[0]), TICKS_PER_S)
    rate = (len(ticks) - 2) / seconds if seconds else Fraction(25)
    with av.open(f"file:{target}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate.limit_denominator(1001), options=X264)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, first.format.name
        context = stream.codec_context
        context.time_base, context.thread_count = Fraction(1, TICKS_PER_S), 1
        context.sample_aspect_ratio = 1 / look.pixel_aspect if look.swaps_sides else look.pixel_aspect
        for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(context, name, getattr(first, name))

        waiting: av.Packet | None = None
        for tick, picture in zip(ticks, chain([first], pictures, [None]), strict=True):
            if picture is not None:
                check_same_shape(target, (first.height, first.width), (picture.height, picture.width))
                picture.pts, picture.time_base = int(tick), Fraction(1, TICKS_PER_S)
                picture.pict_type = av.video.frame.PictureType.NONE  # or it keeps the source's
            for packet in stream.encode(picture):
                if waiting:
                    container.mux(waiting)
                waiting = packet
        assert waiting is not None, "every picture becomes a packet"
        # X264 reorders nothing, so this packet holds the last picture.
        waiting.duration = int(ticks[-1] - ticks[-2])
        container.mux(waiting)


def _as_encoded(frame: av.VideoFrame, look: Look) -> av.VideoFrame:
    """Upright and in 8 bits; 4:2:0 holds even sides only."""
    if look.is_turned:
        upright = look.upright(frame.to_ndarray(format="rgb24"))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright, np.uint8), format="rgb24")
    is_even = frame.width % 2 == frame.height % 2 == 0
    wanted = "yuv420p" if is_even else "yuv444p"
    if is_even and frame.format.name == "yuvj420p":
        return frame
    return frame.reformat(format=wanted)


def _verify(target: str, times_s: np.ndarray) -> None:
    """Raise BadVideo unless every frame written decodes, at its time."""
    made = index_frames(target)
    n_decoded = sum(1 for _ in decode_in_order(target))
    if made.damage or n_decoded != len(times_s) or len(made.frame_times_s) != len(times_s):
        reason = f"{len(times_s)} frames were written, {n_decoded} decode {made.damage}".rstrip()
        raise BadVideo(target, reason, REPORT)
    if not np.allclose(made.frame_times_s, times_s, atol=ROUNDING_S):
        raise BadVideo(target, "its frames have other times than were written", REPORT)
