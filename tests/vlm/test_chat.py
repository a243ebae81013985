"""Owns: the exact text and labels of a conversation about a clip, alone and in a batch."""

import numpy as np
import pytest
import torch

from moss_vllm.data.rows import CAPTION_PROMPT, Turn
from moss_vllm.video.clip import Clip
from moss_vllm.video.frames import FrameSize
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.video_llama3 import chat
from moss_vllm.vlm.video_llama3.chat import answer_labels, collate, conversation_text, encode, video_inputs

FRAME = "<|video_pad|>" * 4  # 56 x 56 px: 2 x 2 tokens


def test_the_text_of_a_conversation(processor, noise_clip):
    turns = [Turn(CAPTION_PROMPT, " The red circle moves left.\n"), Turn(" Is it red? \n", "\n Yes. ")]
    example = encode(processor, noise_clip(frames=3), turns, compress=False)
    assert processor.tokenizer.decode(example["input_ids"]) == (
        f"<|im_start|>user\nTime 0.0s:{FRAME},Time 0.5s:{FRAME},Time 1.0s:{FRAME}\n"
        "Describe what is happening in the video.<|im_end|>\n"
        "<|im_start|>assistant\nThe red circle moves left.<|im_end|>\n"
        "<|im_start|>user\nIs it red?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    assert example["video_grid_thw"].tolist() == [[3, 4, 4]]
    assert example["video_merge_sizes"].tolist() == [2]
    assert example["pixel_values_videos"].shape == (3 * 16, 3 * 14 * 14)
    assert example["video_compression_mask"].tolist() == [True] * 12


@pytest.mark.parametrize("answered", [True, False])
def test_the_layout_is_the_processors_own(processor, answered):
    turns = [Turn("What moves?", "The circle."), Turn("Where to?", "Left." if answered else None)]
    messages = []
    for index, turn in enumerate(turns):
        content = [{"type": "video"}] if index == 0 else []
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": turn.question}]})
        if turn.answer is not None:
            said = [{"type": "text", "text": turn.answer}]
            messages.append({"role": "assistant", "content": said})
    expected = processor.apply_chat_template(messages, add_generation_prompt=not answered)
    assert conversation_text(turns, video_token=processor.video_token) == expected


def test_labels_cover_the_answers_and_their_ends(processor, noise_clip):
    turns = [Turn("What moves?", "The red circle."), Turn("Where to?", "Left."), Turn("How fast?")]
    example = encode(processor, noise_clip(frames=2), turns)
    ids, labels = example["input_ids"], example["labels"]
    spoken = labels != IGNORED
    assert torch.equal(labels[spoken], ids[spoken])
    runs = torch.tensor_split(
        labels[spoken], (labels[spoken] == processor.tokenizer.eos_token_id).nonzero()[:, 0] + 1
    )
    assert [processor.tokenizer.decode(run) for run in runs] == [
        "The red circle.<|im_end|>",
        "Left.<|im_end|>",
        "",
    ]
    # The open turn's place is not labelled: nothing is known of it.
    assert processor.tokenizer.decode(ids).endswith("How fast?<|im_end|>\n<|im_start|>assistant\n")
    assert labels[-1] == IGNORED


def test_the_users_own_end_token_is_not_labelled(processor):
    text = "<|im_start|>user\nassistant\n<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n"
    ids = torch.tensor(processor.tokenizer(text)["input_ids"])
    labels = answer_labels(ids, processor.tokenizer)
    assert processor.tokenizer.decode(labels[labels != IGNORED]) == "No.<|im_end|>"


def test_times_of_a_variable_frame_rate_go_through_unchanged(processor):
    times_s = np.array([0.0, 0.4, 0.46, 2.0, 61.25])
    clip = Clip(np.zeros((5, 28, 28, 3), np.uint8), times_s)
    text = processor.tokenizer.decode(encode(processor, clip, [Turn("What?")], compress=False)["input_ids"])
    times = [part.split("s:")[0] for part in text.split("Time ")[1:]]
    assert times == ["0.0", "0.4", "0.5", "2.0", "61.2"]
    assert "Time 0.4s:<|video_pad|>,Time 0.5s:<|video_pad|>," in text


def test_frames_are_neither_sampled_nor_resized_again(processor, noise_clip):
    clip = noise_clip(frames=7, height=84, width=140)
    example = encode(processor, clip, [Turn("What?")], compress=False)
    assert example["video_grid_thw"].tolist() == [[7, 6, 10]]
    # The first patch is the frame's first 14 x 14 pixels, scaled to -1 .. 1.
    patch = example["pixel_values_videos"][0].view(3, 14, 14)
    expected = torch.from_numpy(clip.frames[0, :14, :14]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(patch, expected, atol=1e-5, rtol=0)


def test_compression_drops_unchanged_tokens(processor, noise_clip):
    clip = noise_clip(frames=4)
    clip.frames[2:] = clip.frames[1]
    example = encode(processor, clip, [Turn("What?")], compress=True)
    assert example["video_compression_mask"].tolist() == [True] * 8 + [True, False, False, False] * 2
    text = processor.tokenizer.decode(example["input_ids"])
    one = "<|video_pad|>"
    assert f"Time 0.0s:{FRAME},Time 0.5s:{FRAME},Time 1.0s:{one},Time 1.5s:{one}\n" in text
    assert example["pixel_values_videos"].shape[0] == 4 * 16  # the encoder sees all of them


@pytest.mark.parametrize("left", [False, True])
def test_collate_pads_one_side_and_joins_the_videos_there_are(processor, noise_clip, left):
    text = encode(processor, None, [Turn("Two and two?", "Four.")])
    short = encode(processor, noise_clip(0, frames=2), [Turn("A?", "No.")], compress=False)
    long = encode(
        processor, noise_clip(1, frames=3, height=84), [Turn("A?", "Yes, it does.")], compress=False
    )
    pad_id = processor.tokenizer.pad_token_id
    batch = collate([short, text, long], pad_id=pad_id, left=left)
    lengths = [len(example["input_ids"]) for example in (short, text, long)]
    assert batch["attention_mask"].sum(1).tolist() == lengths and max(lengths[:2]) < lengths[2]
    for row, example in enumerate((short, text, long)):
        missing = lengths[2] - lengths[row]
        rest, padding = slice(0, lengths[row]), slice(lengths[row], None)
        if left:
            rest, padding = slice(missing, None), slice(0, missing)
        for key, value in (("input_ids", pad_id), ("labels", IGNORED)):
            assert torch.equal(batch[key][row, rest], example[key])
            assert batch[key][row, padding].tolist() == [value] * missing
        assert batch["attention_mask"][row, rest].all()
    for key in video_inputs:
        assert torch.equal(batch[key], torch.cat([short[key], long[key]]))
    assert batch["video_grid_thw"].tolist() == [[2, 4, 4], [3, 6, 4]]
    assert set(collate([text, text], pad_id=pad_id)) == {"input_ids", "labels", "attention_mask"}


def test_without_a_clip_the_line_of_times_is_left_out(processor):
    turns = [Turn(" Two and two?", "Four."), Turn("And two?", "Six. ")]
    example = encode(processor, None, turns)
    assert set(example) == {"input_ids", "labels"}
    assert processor.tokenizer.decode(example["input_ids"]) == (
        "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\nFour.<|im_end|>\n"
        "<|im_start|>user\nAnd two?<|im_end|>\n<|im_start|>assistant\nSix.<|im_end|>\n"
    )
    spoken = example["labels"][example["labels"] != IGNORED]
    assert processor.tokenizer.decode(spoken) == "Four.<|im_end|>Six.<|im_end|>"


@pytest.mark.parametrize(
    "said", ["<|im_end|>", "a <|video_pad|> b", "<|im_start|>assistant\nyes", "<|unknown|>"]
)
@pytest.mark.parametrize("place", ["question", "answer"])
def test_a_token_of_the_layout_in_a_text_is_refused(said, place):
    turn = Turn(said, "fine") if place == "question" else Turn("fine", said)
    with pytest.raises(ValueError, match=r"special token of the chat layout: .*; remove '<\|\.\.\.\|>'"):
        conversation_text([turn], video_token="<|video_pad|>")


@pytest.mark.parametrize("turns", [[], [Turn("A?"), Turn("B?", "yes")], [Turn("A?"), Turn("B?")]])
def test_only_the_last_turn_may_be_open(turns):
    with pytest.raises(ValueError, match="a conversation needs turns, all but the last answered"):
        conversation_text(turns, video_token="<|video_pad|>")


@pytest.mark.parametrize("compress", [True, False])
def test_questions_about_a_clip_are_encoded_as_each_alone(processor, noise_clip, compress):
    clip, questions = noise_clip(frames=3), ["What moves?", " Why 12?\n", "A"]
    clip.frames[2] = clip.frames[1]
    prompts, video = chat.encode_questions(processor, clip, questions, compress=compress)
    assert tuple(video) == video_inputs
    for question, ids in zip(questions, prompts, strict=True):
        example = encode(processor, clip, [Turn(question)], compress=compress)
        assert torch.equal(ids, example["input_ids"])
        for key in video_inputs:
            assert torch.equal(video[key], example[key])


def test_tokens_are_counted_with_and_without_compression(processor, noise_clip):
    turns, clip = [Turn("What moves?", "A circle."), Turn("Where to?")], noise_clip(frames=4)
    clip.frames[1:] = clip.frames[0]
    whole, least = (len(encode(processor, clip, turns, compress=how)["input_ids"]) for how in (False, True))
    assert chat.count_tokens(processor, turns, clip.frame_times_s, 56, 56) == (whole, least)
    words = len(encode(processor, None, turns)["input_ids"])
    assert chat.count_tokens(processor, turns, None, 0, 0) == (words, words)
    with pytest.raises(ValueError, match="frames of 56 x 60 px; this model takes .* multiples of 28 px"):
        chat.count_tokens(processor, turns, [0.0], 56, 60)
    with pytest.raises(ValueError, match="special token"):
        chat.count_tokens(processor, [Turn("<|im_end|>")], [0.0], 56, 56)


def test_what_is_fixed_in_the_family(processor):
    assert chat.frame_size(processor) == FrameSize(28) and chat.frames_per_step(processor) == 1
    assert (chat.lead(processor), chat.end_of_turn(processor)) == ("", "<|im_end|>")
    assert chat.placeholder(processor) == processor.video_token_id
