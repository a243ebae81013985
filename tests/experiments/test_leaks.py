"""Owns: experiments/leaks.py finds leaks that are planted, and calls nothing else a leak."""

import json

import leak_scenes
import leaks
import numpy as np
import pytest
from leak_probes import Asked, Words, habits

from moss_vllm.data.world import scenes


def args_of(*flags):
    return leaks.options().parse_args(["--train", "400", "--test", "150", "--files", "400", *flags])


def only(task, choose, draw=None):
    """A source of one task whose every clip is blank unless `draw` makes another."""

    def source(rng):
        answer, options = choose(rng)
        shown = draw(rng, answer) if draw else np.zeros((8, 84, 84, 3), np.uint8)
        yield task, scenes.Choice("", "What happens?", options, answer), lambda fps: shown

    return source


def probe(source, *kinds):
    found = leaks.probe_source(source, ["mini x"], args_of("--probes", *kinds), 0)
    return found["mini x"]["probes"]


def random_choice(rng):
    return str(rng.choice(["left", "right"])), ("left", "right")


def spot(x):
    """A clip with a bright square at x that does not move."""
    frames = np.full((8, 84, 84, 3), 90, np.uint8)
    frames[:, 30:50, x : x + 20] = 220
    return frames


@pytest.mark.slow
def test_a_place_tied_to_the_class_is_found_and_a_random_one_is_not():
    tied = only("mini x", random_choice, lambda rng, answer: spot(5 if answer == "left" else 50))
    free = only("mini x", random_choice, lambda rng, answer: spot(int(rng.choice([5, 50]))))
    found, clean = probe(tied, "one frame"), probe(free, "one frame")
    assert set(found) == {"first", "middle", "last", "first + last", "all"}
    assert all(score["leak"] and score["accuracy"] > 95 for score in found.values())
    assert not any(score["leak"] for score in clean.values())


@pytest.mark.slow
def test_start_and_end_that_tell_only_together_are_no_leak():
    """The votes of two frames are added: a probe that compared them would see the motion."""

    def moving(rng, answer):
        start = int(rng.choice([5, 50]))
        frames = spot(start)
        frames[4:] = spot(55 - start if answer == "left" else start)[4:]
        return frames

    source = only("mini x", random_choice, moving)
    found = probe(source, "one frame", "two times")
    assert not found["first + last"]["leak"] and not found["all"]["leak"]
    assert found["first, last"]["accuracy"] > 95 and not found["first, last"]["leak"]


@pytest.mark.slow
def test_a_file_size_tied_to_the_class_is_found():
    def larger(rng, answer):  # files of as many frames and pixels are alike
        side = 84 if answer == "left" else 98
        return rng.integers(0, 255, (8, side, side, 3), dtype=np.uint8)

    found = probe(only("mini x", random_choice, larger), "file")
    assert found["bytes"]["leak"] and found["bytes"]["accuracy"] > 95
    assert not found["frames"]["leak"]


@pytest.mark.slow
def test_more_frames_for_a_class_are_found():
    def longer(rng, answer):
        return np.zeros((8 if answer == "left" else 12, 84, 84, 3), np.uint8)

    assert probe(only("mini x", random_choice, longer), "file")["frames"]["leak"]


def asked(options, right, text="What?"):
    return Asked(text, tuple(options), right, 0)


@pytest.mark.slow
def test_wrong_options_made_from_the_right_one_are_found():
    args = args_of("--probes", "text")
    found = leaks.probe_source(leak_scenes.draw_world, ["control options"], args, 0)["control options"][
        "probes"
    ]
    assert found["words"]["leak"] and found["words"]["accuracy"] > 60
    assert not found["place"]["leak"] and not found["frequency"]["leak"]


def test_habits():
    trained = [asked(["a", "bbb"], 1), asked(["a", "bbb"], 1), asked(["a", "bbb"], 0)]
    tested = [asked(["bbb", "a"], 0), asked(["a", "bbb"], 1), asked(["new", "a"], 1)]
    assert habits(trained, tested) == {
        "place": [False, True, True],
        "length": [True, True, False],
        "frequency": [True, True, True],
    }


def test_options_know_what_they_share():
    one = asked(["a x, then b", "b, then a x", "a x, then c", "c, then b"], 0, "What does b do?")
    words = Words([one])
    content, relations, shown = words.encode([one, asked(["a", "b"], 0)])
    assert content.shape[:2] == relations.shape[:2] == (2, 4) and shown.tolist() == [
        [True] * 4,
        [True] * 2 + [False] * 2,
    ]
    assert relations[0, :, 0].tolist() == [1, 0, 1, 0]  # others with the same first clause in the same place
    assert relations[0, :, 1].tolist() == [1, 0, 0, 1]  # and the same second one
    assert relations[0, :, 2].tolist() == [2, 2, 2, 1]  # others with the first clause anywhere


@pytest.mark.parametrize(
    ("right", "of", "chance", "leak"),
    [(56, 100, 50.0, False), (66, 100, 50.0, True), (540, 1000, 50.0, False), (560, 1000, 50.0, True)],
)
def test_a_leak_is_beyond_five_points_and_the_interval(right, of, chance, leak):
    assert leaks.judge([True] * right + [False] * (of - right), chance)["leak"] is leak
    assert leaks.judge([True] * right + [False] * (of - right), chance, not_counted=True)["leak"] is False


def test_the_shares_are_the_worlds_and_clips_are_shared():
    drawn = leak_scenes.draw_questions(leak_scenes.draw_world, ["MotionBench AO", "FAVOR AS"], 20, (0, 0))
    assert [len(drawn.questions[task]) for task in ("MotionBench AO", "FAVOR AS")] == [20, 20]
    clips = {a.clip for a in drawn.questions["FAVOR AS"]}
    assert len(clips) == 10 and clips <= {a.clip for a in drawn.questions["MotionBench AO"]}
    first = drawn.questions["FAVOR AS"][0]
    assert "after" in first.text and drawn.clips[first.clip](2.0).shape == (
        8,
        scenes.FRAME_PX,
        scenes.FRAME_PX,
        3,
    )


def test_the_command_ends_with_1_for_a_leak_and_for_probes_that_are_too_weak(tmp_path, monkeypatch, capsys):
    flags = ["--tasks", "mini order", "--probes", "text", "--train", "300", "--test", "100"]
    monkeypatch.setattr(leaks, "fit", lambda *args, **kwargs: None)  # nothing is learned
    found = leaks.main([*flags, "--json", str(tmp_path / "a.json")])
    assert found["leaks"] == [] and found["missed_controls"] == ["control options"]
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["command"].startswith("python experiments/leaks.py --tasks 'mini order'")
    assert written["tasks"]["mini order"]["chance"] == 50.0
    told = capsys.readouterr().out
    assert "the probes are too weak: the planted control options was not found" in told and "no leak" in told
    score = {"accuracy": 61.0, "interval": (55.0, 66.0), "leak": True}
    result = {"mini order": {"chance": 50.0, "probes": {"words": score}}}
    assert leaks.leaks_of(result) == ["mini order: words has 61.0 % (55.0 to 66.0), chance is 50.0"]


@pytest.mark.parametrize("flags", [["--tasks", "mini tea"], ["--train", "0"], ["--json", "."]])
def test_bad_arguments_are_refused(flags):
    with pytest.raises(SystemExit) as stopped:
        leaks.main(flags)
    assert stopped.value.code == 2
