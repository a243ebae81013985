"""Write drawn frames to a video file."""

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

FILE_FPS = 4


BITS_A_PIXEL = 2.55  # of files alike in size: about the quality of crf 12 on the clips of the motion world


def write_clip(
    frames: NDArray[np.uint8], path: Path, *, fps: int = FILE_FPS, alike_in_size: bool = False
) -> None:
    """An h264 mp4 of `frames` (T, H, W, 3).

    Args:
        fps: frames per second.
        alike_in_size: pad every file of as many frames and pixels to the same number of bytes, so that its
            size does not tell how much moves in it.
    """
    # mbtree of the x264 in PyAV 18 gives other bytes from one call to the next, now and then.
    options, x264 = {"preset": "veryfast", "threads": "1"}, dict[str, object](mbtree=0)
    if alike_in_size:
        kilobits = round(BITS_A_PIXEL * fps * frames[0, ..., 0].size / 1000)
        rate = {"bitrate": kilobits, "vbv-maxrate": kilobits, "vbv-bufsize": kilobits // fps}
        x264 |= {**rate, "nal-hrd": "cbr", "filler": 1, "bframes": 0}  # B-frames would lengthen the header
    else:
        options["crf"] = "12"
    options["x264-params"] = ":".join(f"{name}={value}" for name, value in x264.items())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
