"""Owns: the command that answers - clip and answer are those of an evaluation, printed as they come."""

import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from moss_vllm.commands.scripts import ask
from moss_vllm.data.rows import Turn
from moss_vllm.evaluation.answering import answer, prepare_prompts
from moss_vllm.runtime.screen import plain
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.families import VIDEO_LLAMA3
from moss_vllm.vlm.video_llama3 import chat
from moss_vllm.vlm.video_llama3.chat import collate, encode


@pytest.fixture(scope="module")
def video(world):
    return sorted((world / "FAVOR").rglob("*.mp4"))[0]


@pytest.fixture(scope="module")
def trained(tiny_base, moss, processor, tmp_path_factory):
    """A checkpoint whose protocol is neither the paper's nor the miniature's."""
    model = attach_lora(load_base(tiny_base, moss=moss), rank=2, alpha=2, dropout=0.0)
    folder = tmp_path_factory.mktemp("run") / "a_run" / "step-000002"
    protocol = {"sample_fps": 4.0, "short_side_px": 56, "max_frames": 6, "compress_tokens": False}
    checkpoint.save(folder, model, processor, {"moss": moss, "protocol": protocol})
    return folder


@pytest.fixture
def clips(monkeypatch):
    """What was read, and how."""
    seen = []

    def read(path, **how):
        seen.append((how, read_clip(path, **how)))
        return seen[-1][1]

    monkeypatch.setattr(ask, "read_clip", read)
    return seen


def expected(folder, clip, question, tokens, compress=False):
    loaded = checkpoint.load(folder)
    prompts = prepare_prompts(loaded.processor, clip, [question], compress=compress)
    return next(answer(loaded, [prompts], max_new_tokens=tokens, batch_size=1)).texts[0]


def test_it_answers_as_an_evaluation_does(video, trained, clips, capsys):
    answers = ask.main([str(video), "What moves?", "--ckpt", str(trained), "--max-new-tokens", "12"])
    how, clip = clips[0]
    assert how == {"sampling": Sampling(4.0, 56, 6), "start_s": 0.0, "end_s": None}
    assert len(clip.frames) == 6 and min(clip.frames.shape[1:3]) == 56
    assert answers == [expected(trained, clip, "What moves?", 12)]
    said = capsys.readouterr()
    # Random weights say control characters too: none of them reaches the terminal.
    assert said.out == "\n".join(map(plain, answers[0].split("\n"))) + "\n" and len(answers[0]) > 5
    assert "a_run sees 6 frames of 56 x 56" in said.err


def test_flags_win_over_the_checkpoint_and_it_over_the_paper(video, trained, tiny_base, clips, monkeypatch):
    compressed = []

    def watch(processor, clip, turns, *, compress):
        compressed.append(compress)
        return encode(processor, clip, turns, compress=compress)

    family = replace(VIDEO_LLAMA3, chat=SimpleNamespace(**{**vars(chat), "encode": watch}))
    monkeypatch.setattr(checkpoint.Loaded, "family", property(lambda self: family))
    few = ["--max-new-tokens", "1"]
    flags = ["--sample-fps", "1", "--max-frames", "3", "--short-side-px", "84", "--compress-tokens"]
    ask.main([str(video), "x", "--ckpt", str(trained), *flags, "--start-s", "1", "--end-s", "3", *few])
    ask.main([str(video), "x", "--ckpt", str(tiny_base), "--short-side-px", "56", *few])
    first, second = (how for how, _ in clips)
    assert first == {"sampling": Sampling(1, 84, 3), "start_s": 1, "end_s": 3}
    assert second == {"sampling": Sampling(2, 56, 180), "start_s": 0, "end_s": None}
    assert compressed == [True, True]
    assert clips[0][1].frame_times_s.tolist() == [0.0, 1.0]


def shown(answer):
    """What the command prints of it: characters that act are escaped, new lines stay."""
    return "\n".join(map(plain, answer.split("\n"))) + "\n"


def test_without_a_question_it_asks_for_some(video, trained, clips, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What moves?\n\n  Where is it?  \n"))
    answers = ask.main([str(video), "--ckpt", str(trained), "--max-new-tokens", "5"])
    assert len(clips) == 1  # one video, read once
    assert answers == [expected(trained, clips[0][1], each, 5) for each in ("What moves?", "Where is it?")]
    assert capsys.readouterr().out == "".join(shown(answer) for answer in answers)


def test_a_checkpoint_answers_alike_each_time_it_is_opened(video, checkpoints, clips):
    for folder in checkpoints.values():
        argv = [str(video), "What moves?", "--ckpt", str(folder), "--max-new-tokens", "12"]
        given = [ask.main([*argv, "--short-side-px", "56", "--max-frames", "4"]) for _ in range(2)]
        assert given[0] == given[1] == [expected(folder, clips[-1][1], "What moves?", 12, compress=True)]


def test_it_answers_in_half_precision(video, trained, capsys, clips):
    answers = ask.main(
        [str(video), "What moves?", "--ckpt", str(trained), "--precision", "bf16", "--max-new-tokens", "4"]
    )
    assert capsys.readouterr().out == shown(answers[0])


def test_words_come_before_the_answer_is_over(trained, monkeypatch, noise_clip):
    """The streamer is handed each word as it is made."""
    loaded = checkpoint.load(trained)
    example = encode(loaded.processor, noise_clip(), [Turn("What moves?")])
    put = []

    class Watch(ask.AnswerStreamer):
        def put(self, value):
            put.append(value.numel())
            super().put(value)

    monkeypatch.setattr(ask, "AnswerStreamer", Watch)
    ask.answer(loaded, example, 6)
    assert put[0] == collate([example], pad_id=0)["input_ids"].numel() and put[1:] == [1] * 6
    assert not torch.is_inference_mode_enabled()


def test_a_wrong_size_is_told_before_a_model_opens(video, capsys):
    with pytest.raises(SystemExit, match="2"):
        ask.main([str(video), "x", "--ckpt", "nowhere", "--short-side-px", "5"])
    assert capsys.readouterr().err.endswith("error: --short-side-px is 5; it must be from 28 to 10000\n")
