"""Deliver the chosen frames of a video file at the size asked for, decoding no more than they need.

PyAV starts at the key frame before each chosen frame, leaves out pictures that no other needs, and scales
in FFmpeg's scaler straight from the stored colours. Frames that cannot be reached so are decoded from the
file's start. decord and torchcodec, if chosen, deliver pictures of full size, which Pillow resizes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from moss_vllm.video.container import Look, decode_in_order, picture_stream
from moss_vllm.video.frames import (
    REPLACE_FILE,
    BadVideo,
    check_clip_size,
    check_frame_size,
    check_same_shape,
    stack_resized,
)
from moss_vllm.video.packets import Index

DECODERS = ("auto", "pyav", "decord", "torchcodec")
Resized = Callable[[int, int], tuple[int, int]]  # (height, width) -> the size after resizing

# mkv and webm round times to 1 ms; half a step more keeps float noise from deciding a tie.
ROUNDING_S = 1.5e-3
SAME_FRAME_S = 1e-5
SEEK_S = 2.0  # reading on reaches a nearer key frame sooner than a seek
WORTH_A_JUMP = 4  # frames; decoding fewer is faster than skipping them
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}  # 16 has no such option


def check_decoder(decoder: str) -> None:
    """Raise ValueError for an unknown decoder, ImportError for a decoder that is not installed."""
    if decoder not in DECODERS:
        raise ValueError(f"decoder is {decoder!r}; it must be one of {', '.join(DECODERS)}")
    try:
        if decoder == "decord":
            import decord  # noqa: F401
    except ImportError as error:  # it has no wheels for mac or arm
        text = "decoder='decord' needs `pip install -e \".[decord]\"` (Linux or Windows on x86)"
        raise ImportError(text) from error
    try:
        if decoder == "torchcodec":
            import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        text = "decoder='torchcodec' needs `pip install -e \".[torchcodec]\"` and FFmpeg's libraries"
        raise ImportError(text) from error


def decode(
    path: str,
    container: av.container.InputContainer,
    index: Index,
    chosen: np.ndarray,
    resized: Resized,
    decoder: str,
) -> np.ndarray:
    """The chosen frames of an open file, resized and upright; `auto` is PyAV.

    Shape: chosen int (T,), rising -> uint8 (T, H, W, 3), RGB.
    Raises: BadVideo for a frame that is lost.
    """
    assert index.look is not None, f"{path} is a file"
    if decoder in ("decord", "torchcodec"):
        deliver = _decord_frames if decoder == "decord" else _torchcodec_frames
        resized = partial(_resized_as_shown, path, index.look, resized)
        return stack_resized(path, deliver(path, index, chosen), len(chosen), resized)
    pictures = _scaled(path, _pyav_frames(path, container, index, chosen), index.look, len(chosen), resized)
    return stack_resized(path, pictures, len(chosen), lambda height, width: (height, width))


def _pyav_frames(
    path: str, container: av.container.InputContainer, index: Index, chosen: np.ndarray
) -> Iterator[av.VideoFrame]:
    needed = _needed_frames(path, container, index, chosen) if len(index.key_times_s) else iter(())
    wanted_s, total = index.frame_times_s[chosen], len(index.frame_times_s)

    def explain(n_found: int, n_seen: int, reason: str) -> str:
        at_s = wanted_s[n_found] - index.frame_times_s[0]
        return f"{n_seen} of {total} frames decode, then at {at_s:.2f} s: {reason}"

    yield from pick_frames(path, (needed, decode_in_order(path)), wanted_s, explain)


def pick_frames(
    path: str,
    attempts: Iterable[Iterator[av.VideoFrame]],
    wanted_s: np.ndarray,
    explain: Callable[[int, int, str], str],
) -> Iterator[av.VideoFrame]:
    """The frames at these times of the file's own clock; if an attempt ends early, the next one continues.

    `explain` words the reason from the number of frames found, the number that the last attempt decoded, and
    why it ended.

    Raises: BadVideo if a frame is lost.
    """
    n_found, n_seen, reason = 0, 0, ""
    for frames in attempts:
        n_seen, reason = 0, "the file ends"
        try:
            for frame in frames:
                n_seen += 1
                if frame.time < wanted_s[n_found] - SAME_FRAME_S:
                    continue
                if frame.time > wanted_s[n_found] + SAME_FRAME_S or frame.is_corrupt:
                    reason = "a frame is lost or damaged"
                    break
                yield frame
                n_found += 1
                if n_found == len(wanted_s):
                    return
        except av.FFmpegError as error:
            reason = str(error)
    raise BadVideo(path, explain(n_found, n_seen, reason), REPLACE_FILE)


def _needed_frames(
    path: str, container: av.container.InputContainer, index: Index, chosen: np.ndarray
) -> Iterator[av.VideoFrame]:
    """The chosen frames and some between them, up to the first key frame that the decoder denies.

    A file may mark any picture as a key frame.
    """
    stream = picture_stream(path, container)
    context, tick_s = stream.codec_context, float(stream.time_base or 0)
    # Only H.264 marks them reliably: in HEVC a higher layer may still need such a picture.
    has_needless = stream.codec.canonical_name == "h264"
    packets: Iterator[av.Packet] = iter(())
    read_to = -math.inf
    for key_s, wanted_s in _runs(index, chosen):
        key, missing = round(key_s / tick_s), set(np.rint(wanted_s / tick_s).astype(int).tolist())
        if not read_to < key < read_to + SEEK_S / tick_s:
            container.seek(key, stream=stream)
            packets = container.demux(stream)
        context.flush_buffers()
        is_reached = is_known = False
        for packet in packets:
            read_to = read_to if packet.pts is None else max(read_to, packet.pts)
            is_reached = is_reached or packet.pts == key
            if not is_reached:
                continue
            if has_needless:
                context.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
            missing.discard(packet.pts)
            for frame in [*context.decode(packet), *([] if missing else context.decode(None))]:
                frame.time_base = stream.time_base  # unset on frames that a flush returns
                if frame.pts is None or frame.pts < key:
                    continue  # stored after the key frame, shown before it, and made from skipped pictures
                is_known = is_known or (frame.pts == key and bool(frame.key_frame))
                if not is_known:
                    return
                yield frame
            if not missing:
                break


def _runs(index: Index, chosen: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Pairs of a key frame's time and the times of the chosen frames to decode from there."""
    wanted_s, keys_s = index.frame_times_s[chosen], index.key_times_s
    key_of = np.searchsorted(keys_s, wanted_s, "right") - 1
    key_at = np.searchsorted(index.frame_times_s, keys_s)
    n_spared = key_at[key_of[1:]] - chosen[:-1] - 1  # between a chosen frame and the key frame of the next
    starts = [0, *(np.flatnonzero(n_spared >= WORTH_A_JUMP) + 1).tolist()]
    for start, stop in zip(starts, [*starts[1:], len(chosen)], strict=True):
        yield float(keys_s[key_of[start]]), wanted_s[start:stop]


def _scaled(
    path: str, frames: Iterator[av.VideoFrame], look: Look, count: int, resized: Resized
) -> Iterator[np.ndarray]:
    """RGB frames at their final size, turned upright after scaling, when they are small."""
    upright = resized(*look.shown_size)
    check_clip_size(path, count, upright)
    height, width = upright[::-1] if look.swaps_sides else upright
    reformatter = VideoReformatter()
    for frame in frames:
        stored = frame.height, frame.width
        check_frame_size(path, *stored)
        check_same_shape(path, (look.height, look.width), stored)
        # The scaler gives planar RGB a colour at every pixel, packed RGB only at every other.
        layout, filter_ = ("rgb24", None) if (height, width) == stored else ("gbrp", "BICUBIC")
        small = reformatter.reformat(frame, width, height, layout, interpolation=filter_, **ONE_THREAD)
        yield look.upright(small.to_ndarray())


def _resized_as_shown(path: str, look: Look, resized: Resized, height: int, width: int) -> tuple[int, int]:
    """The size for frames of a file, which come upright in stored pixels."""
    check_same_shape(path, look.upright_size, (height, width))
    return resized(*look.shown_size)


def _has_one_size(path: str, index: Index) -> bool:
    """Whether the last key frame has the size of the first one; other decoders scale to that silently."""
    last = next(decode_in_order(path, from_s=float(index.key_times_s[-1])))
    return index.look is not None and (last.height, last.width) == (index.look.height, index.look.width)


def _decord_frames(path: str, index: Index, chosen: np.ndarray) -> Iterator[np.ndarray]:
    import decord

    try:
        if not (index.suits_decord and _has_one_size(path, index)):
            raise RuntimeError("it returns wrong frames for this kind of file, so it was not used")
        decord.logging.set_level(decord.logging.QUIET)
        # num_threads=0, decord's default, fails on vp9. The reader ends with this generator: kept, it hangs.
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
        times_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        shown_s = index.frame_times_s - index.frame_times_s[0]
        if len(times_s) != len(shown_s) or not np.allclose(times_s - times_s[0], shown_s, atol=5e-3):
            raise RuntimeError(
                f"of {len(shown_s)} frames it counts {len(times_s)}, or gives them other times"
            )
        for i in chosen:
            with decord.bridge._BridgeScope("native"):  # whatever bridge the program has set
                frame = reader[int(i)].asnumpy()
            yield frame
    except Exception as error:  # decord raises its own kinds, RuntimeError and IndexError alike
        reason = f"decord failed ({str(error).splitlines()[0][:200]})"
        raise BadVideo(path, reason, "use decoder='auto'") from error


def _torchcodec_frames(path: str, index: Index, chosen: np.ndarray) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    if not (index.suits_torchcodec and _has_one_size(path, index)):
        reason = "torchcodec may give other frames of this kind of file, or turned ones"
        raise BadVideo(path, reason, "use decoder='auto'")
    try:  # approximate mode is wrong for variable frame rates
        video = VideoDecoder(
            os.path.abspath(path), seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=1
        )
        for i, time_s in zip(chosen, index.frame_times_s[chosen], strict=True):
            frame = video.get_frame_at(int(i))  # get_frame_played_at of 0.17 gave other frames
            if abs(frame.pts_seconds - time_s) > ROUNDING_S:
                raise RuntimeError(f"asked for the frame at {time_s:.3f} s, got {frame.pts_seconds:.3f} s")
            yield frame.data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        reason = f"torchcodec failed ({str(error).splitlines()[0][:200]})"
        raise BadVideo(path, reason, "use decoder='auto'") from error
