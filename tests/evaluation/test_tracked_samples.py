"""Owns: what a tracker gets of sample answers - the frames that the clip has, and the words, at each step."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.tracking import TrackioTracker, WandBTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moss_vllm.data.motionbench import read_motionbench
from moss_vllm.evaluation.tracked_samples import GAP_PX, MOST_SAMPLES, STRIP, TrackedSamples, in_words
from moss_vllm.training import engines
from moss_vllm.video.clip import read_clip

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def videos(world):
    found = read_motionbench(world / "MotionBench", world / "MotionBench")
    return [video for video in found if video.questions][: MOST_SAMPLES + 1]


@pytest.fixture
def samples(videos):
    """As a line of evals.jsonl has them."""
    return [
        {
            "video": video.video_id,
            "question": video.questions[0].text,
            "options": list(video.questions[0].options),
            "answer": video.questions[0].answer,
            "output": f"said {number}",
            "correct": number % 2 == 0,
        }
        for number, video in enumerate(videos)
    ]


def paths(videos):
    return {video.video_id: video.path for video in videos}


def test_tensorboard_gets_frames_and_words_at_each_step(videos, samples, tmp_path):
    accelerator = engines.start(tracker="tensorboard", folder=str(tmp_path))
    accelerator.init_trackers("tensorboard")
    tracked = TrackedSamples(accelerator, paths(videos))
    for step in (2, 4):
        tracked.log([{**one, "output": f"{one['output']} at {step}"} for one in samples], step)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    tags = events.Reload().Tags()
    assert sorted(tags["images"]) == [f"samples/{n}" for n in range(1, MOST_SAMPLES + 1)]
    frames = read_clip(videos[1].path, STRIP).frames
    for event, step in zip(events.Images("samples/2"), (2, 4), strict=True):
        strip = np.array(Image.open(io.BytesIO(event.encoded_image_string)))
        assert event.step == step and strip.shape[0] == frames.shape[1] and len(frames) == STRIP.max_frames
        for number, frame in enumerate(frames):
            left = number * (frame.shape[1] + GAP_PX)
            assert np.array_equal(strip[:, left : left + frame.shape[1]], frame)
    words = events.Tensors("samples/2/text_summary")
    assert [one.step for one in words] == [2, 4]
    text = words[1].tensor_proto.string_val[0].decode()
    assert text == in_words({**samples[1], "output": "said 1 at 4"})
    assert samples[1]["question"] in text and "answered, which is wrong: **said 1 at 4**" in text
    assert f"right: **{samples[1]['answer']}**" in text and f"- A. {samples[1]['options'][0]}" in text


def test_a_video_that_cannot_be_read_costs_its_picture_alone(videos, samples, tmp_path):
    accelerator = engines.start(tracker="tensorboard", folder=str(tmp_path))
    accelerator.init_trackers("tensorboard")
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    given = paths(videos) | {videos[0].video_id: tmp_path / "broken.mp4", videos[1].video_id: None}
    TrackedSamples(accelerator, given).log(samples[:3], 1)
    accelerator.end_training()
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
    assert tags["images"] == ["samples/3"]
    assert sorted(tags["tensors"]) == [f"samples/{n}/text_summary" for n in (1, 2, 3)]


@pytest.mark.parametrize("kind", [WandBTracker, TrackioTracker])
def test_the_other_trackers_get_their_own_kinds_of_image(videos, samples, monkeypatch, kind):
    """Stand-ins have the calls that accelerate's trackers make of the packages, which are not installed."""
    engines.start()  # accelerate's own log asks for its state
    logged, package = [], SimpleNamespace()
    package.Image = lambda strip, caption=None: ("image", strip.shape, caption)
    package.Table = lambda columns, data, dataframe: (columns, data)
    monkeypatch.setitem(sys.modules, kind.name, package)
    tracker = object.__new__(kind)
    tracker.run = SimpleNamespace(log=lambda values, step, **_: logged.append((step, values)))
    TrackedSamples(SimpleNamespace(trackers=[tracker]), paths(videos)).log(samples, 6)
    if kind is WandBTracker:
        ((step, values),) = logged
        columns, rows = values["samples"]
        assert step == 6 and columns[0] == "step" and columns[-1] == "frames" and len(rows) == MOST_SAMPLES
        assert rows[0][1:5] == [samples[0][key] for key in ("video", "question", "answer", "output")]
        assert rows[0][-1][0] == "image"
    else:
        assert [step for step, _ in logged] == [6] * MOST_SAMPLES
        assert logged[0][1]["samples/1"][2] == in_words(samples[0])
