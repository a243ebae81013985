"""Video files written for a test, picture by picture."""

from fractions import Fraction

import av
import numpy as np
import pytest


def write_pictures(
    path,
    pictures,
    codec="libx264",
    options=None,
    *,
    fps=10,
    times_ms=None,
    rotation=None,
    prepare=None,
    last_s=None,
    keys=(),
    faststart=False,
):
    """A file of RGB pictures (H, W, 3), shown `fps` a second or at `times_ms`.

    `prepare` is called with the stream, the last picture stays for `last_s`, and the packets at `keys` are
    called key frames.
    """
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this PyAV has no {codec} encoder")
    pictures, packets = list(pictures), []
    step = Fraction(1, fps) if times_ms is None else Fraction(1, 1000)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        if times_ms is not None:
            stream.codec_context.time_base = step
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if prepare:
            prepare(stream)
        for i, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = i if times_ms is None else int(times_ms[i]), step
            packets += stream.encode(frame)
        packets += stream.encode()
        if last_s:
            packets[-1].duration = round(last_s / packets[-1].time_base)
        for packet in packets:
            packet.is_keyframe = packet.is_keyframe or packet.pts in keys
            container.mux(packet)
    return path


def bars(number, height, width):
    """A picture with the number as eight bars, dark or bright."""
    greys = np.where([number >> bit & 1 for bit in range(8)], 235, 20)[np.arange(width) * 8 // width]
    return np.tile(greys[None, :, None], (height, 1, 3)).astype(np.uint8)


def numbers(frames):
    """The numbers of pictures (T, H, W, 3), read a little above their middle."""
    centres = (np.arange(8) * 2 + 1) * frames.shape[2] // 16
    bits = frames[:, frames.shape[1] * 2 // 5, centres].mean(-1) > 128
    return (bits * 2 ** np.arange(8)).sum(-1).tolist()


def write_sound(path):
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
