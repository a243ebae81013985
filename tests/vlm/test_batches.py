"""Owns: a row becomes one whole example or a named rejection, and every batch runs the vision path."""

import json

import pytest
import torch

from moss_vllm.data.rows import ClipRow, Rejected, Turn
from moss_vllm.data.sources import read_sources
from moss_vllm.training.optim import parameter_groups
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.write import write_clip
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.families import VIDEO_LLAMA3
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.plan import plan
from moss_vllm.vlm.video_llama3.chat import encode, video_inputs

SAMPLING = Sampling(sample_fps=2.0, short_side_px=56, max_frames=8)
TURNS = (Turn("What moves?", "The red circle moves left."), Turn("Is it red?", "Yes."))
TEXT = ClipRow("text", None, TURNS, None, None)


@pytest.fixture
def video(world):
    """One in which little changes."""
    rows = json.loads((world / "FAVOR" / "train.json").read_text())
    name = next(row["video_name"] for row in rows if "turns" in row["caption"])
    return world / "FAVOR" / "videos" / "FAVOR-Train" / name


@pytest.fixture
def make(processor):
    """A training set of the rows."""

    def build(rows, *, max_tokens=4096, compress=False, **settings):
        return TrainingSet(
            rows, processor, sampling=SAMPLING, compress=compress, max_tokens=max_tokens, **settings
        )

    return build


def spoken(processor, example):
    return processor.tokenizer.decode(example["labels"][example["labels"] != IGNORED])


def test_a_row_is_its_clip_and_all_its_turns(make, video, processor):
    row_id, example = make([ClipRow("a", video, TURNS, 1.0, 2.5)])[0]
    expected = encode(processor, read_clip(video, SAMPLING, start_s=1.0, end_s=2.5), TURNS, compress=False)
    assert row_id == "a" and set(example) == set(expected)
    assert all(torch.equal(example[key], expected[key]) for key in expected)
    assert example["video_grid_thw"].tolist() == [[3, 4, 4]]
    assert spoken(processor, example) == "The red circle moves left.<|im_end|>Yes.<|im_end|>"


def test_compression_reaches_the_conversation(make, noise_clip, tmp_path):
    write_clip(noise_clip(frames=1).frames.repeat(16, 0), tmp_path / "still.mp4")
    row = ClipRow("a", tmp_path / "still.mp4", TURNS, None, None)
    (_, whole), (_, compressed) = make([row])[0], make([row], compress=True)[0]
    assert whole["video_compression_mask"].all() and not compressed["video_compression_mask"].all()


def test_another_reader_may_be_given(make, noise_clip, video):
    asked = []

    def read(path, **settings):
        asked.append((path, settings))
        return noise_clip(frames=5)

    data = make([ClipRow("a", video, TURNS, None, 2.0)], read=read)
    assert data[0][1]["video_grid_thw"].tolist() == [[5, 4, 4]]
    assert asked == [(video, {"start_s": 0.0, "end_s": 2.0, "sampling": SAMPLING})]


def test_shares_are_those_of_the_plan(make, world, processor):
    found = plan(read_sources(world / "FAVOR"), processor, compress=False, max_tokens=4096, sampling=SAMPLING)
    data = make(found.rows, shares=found.shares)
    assert (len(data), data.shares) == (12, [(12, 12.0)])
    assert make([TEXT]).shares == [(1, 1.0)]
    lengths = [len(example["input_ids"]) for _, example in (data[index] for index in range(3))]
    assert lengths == found.tokens[:3]
    with pytest.raises(ValueError, match=r"shares \[\(12, 12\.0\)\] do not add up to 1 rows"):
        make([TEXT], shares=found.shares)


# ---- rejected


def test_a_row_that_cannot_be_used_is_named(make, video, tmp_path):
    (tmp_path / "empty.mp4").touch()
    rows = [
        ClipRow("empty", tmp_path / "empty.mp4", TURNS, None, None),
        ClipRow("token", None, (Turn("What?", "<|im_end|>"),), None, None),
        TEXT,
    ]
    data = make(rows)
    assert [type(data[index]) for index in range(3)] == [Rejected, Rejected, tuple]
    assert data[0].row_id == "empty" and "the file is empty (0 bytes)" in data[0].reason
    assert data[1].row_id == "token" and "special token of the chat layout" in data[1].reason


def test_too_long_is_rejected_whole(make, video):
    row = ClipRow("a", video, TURNS, None, None)
    tokens = len(make([row])[0][1]["input_ids"])
    assert make([row], max_tokens=tokens)[0][0] == "a"
    rejected = make([row], max_tokens=tokens - 1)[0]
    assert rejected.reason.startswith(f"{tokens} tokens of 8 frames and the text, more than max_tokens=")


def test_an_error_of_ours_is_not_a_rejection(make, video):
    row = ClipRow("a", video, TURNS, None, None)

    def wrong(path, **settings):
        raise ValueError("decoder is 'x'")

    with pytest.raises(ValueError, match="decoder is 'x'"):  # not the row's fault: it would reject them all
        make([row], read=wrong)[0]

    def lost(path, **settings):
        raise BadVideo(str(path), "torn", "mend it")

    assert make([row], read=lost)[0].reason.endswith("torn (remedy: mend it)")


# ---- batches


def test_a_batch_of_texts_and_clips(make, video):
    data = make([TEXT, ClipRow("a", video, TURNS, None, None)])
    batch = data.collate([data[0], data[1], Rejected("bad", "torn")])
    assert (batch["row_ids"], batch["rejected"]) == (["text", "a"], [Rejected("bad", "torn")])
    assert batch["input_ids"].shape[0] == 2 and batch["video_grid_thw"].tolist() == [[8, 4, 4]]


@pytest.mark.parametrize("texts", [0, 1, 3])
def test_a_batch_without_a_video_gets_a_silent_one(make, processor, texts):
    data = make([TEXT])
    batch = data.collate([data[0]] * texts + [Rejected("bad", "torn")])
    assert batch["row_ids"] == ["text"] * texts and len(batch["rejected"]) == 1
    assert batch["input_ids"].shape[0] == texts + 1
    assert (batch["labels"][-1] == IGNORED).all()
    assert batch["video_grid_thw"].tolist() == [[1, 4, 4]]
    assert set(video_inputs) <= set(batch)
    pixels = batch["pixel_values_videos"]
    assert torch.equal(pixels, torch.full_like(pixels, -1.0))  # black
    for row in batch["labels"][:texts]:
        assert spoken(processor, {"labels": row}) == "The red circle moves left.<|im_end|>Yes.<|im_end|>"


@pytest.mark.parametrize("texts", [0, 2])
def test_a_batch_without_a_video_reaches_every_trained_parameter(make, tiny_base, moss, texts):
    torch.manual_seed(0)
    model = attach_lora(load_base(tiny_base, moss=moss), rank=2, alpha=2, dropout=0.0)
    parameter_groups(model, VIDEO_LLAMA3.rates)  # marks what trains
    data = make([TEXT])
    batch = data.collate([data[0]] * texts + [Rejected("bad", "torn")])
    inputs = {key: batch[key] for key in ("input_ids", "labels", "attention_mask", *video_inputs)}
    AnswerLoss(model)(**inputs).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert gradients and all(gradient is not None for gradient in gradients.values())
    vision = [g for name, g in gradients.items() if "moss" in name or "projector" in name]
    assert vision and not any(g.any() for g in vision)  # a silent clip teaches nothing
    assert any(g.any() for g in gradients.values()) == (texts > 0)


def test_a_silent_clip_leaves_the_loss_of_the_texts_unchanged(make, tiny_base, moss):
    model = load_base(tiny_base, moss=moss).eval()
    data = make([TEXT])
    batch = data.collate([data[0], data[0]])
    text_only = {key: batch[key][:2] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", *video_inputs)}
        together = model(**inputs).logits[:2]
        alone = model(**text_only).logits
    torch.testing.assert_close(together, alone)
