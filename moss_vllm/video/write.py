"""Write drawn frames to a video file."""

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

FILE_FPS = 4


def write_clip(frames: NDArray[np.uint8], path: Path, *, fps: int = FILE_FPS) -> None:
    """An h264 mp4 of `frames` (T, H, W, 3)."""
    with av.open(str(path), "w") as container:
        # mbtree of the x264 in PyAV 18 gives other bytes from one call to the next, now and then.
        options = {"crf": "12", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
