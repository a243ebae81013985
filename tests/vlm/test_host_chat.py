"""Owns: the text, labels, inputs and number of tokens of conversations about clips, for all hosts of MOSS."""

import numpy as np
import pytest
import torch
from tiny_processors import TINY_PROCESSORS, tiny_model, tiny_processor

from moss_vllm.data.rows import Turn
from moss_vllm.video.clip import Clip
from moss_vllm.video.frames import FrameSize
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.hosts import chat as host_chat

CHATS = {
    "qwen2_vl": host_chat.QWEN2_VL_CHAT,
    "qwen2_5_vl": host_chat.QWEN25_VL_CHAT,
    "qwen3_vl": host_chat.QWEN3_VL_CHAT,
    "smolvlm": host_chat.SMOLVLM_CHAT,
    "glm4v": host_chat.GLM4V_CHAT,
    "internvl": host_chat.INTERNVL_CHAT,
    "llava_onevision": host_chat.LLAVA_ONEVISION_CHAT,
    "perception_lm": host_chat.PERCEPTION_LM_CHAT,
}
PAIRS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")  # two frames make a step of time
SMOLVLM_FRAME = "<fake_token_around_image><global-img>" + "<image>" * 4 + "<fake_token_around_image>"
TWO = [Turn("What moves?", "The circle."), Turn("Where to?", "Left.")]
# Decomposed letters, white space and numbers, which tokenizers normalize, trim and split.
ODD = [
    Turn(" Caf\u0065\u0301?\n\n 12 ", "\n 3\u0065\u0301  and  (4)! "),
    Turn("\u4e2d?", "\u4e2d\u6587\u3002"),
    Turn("!", ""),
]
UNEVEN_S = (0.0, 0.4, 0.9, 7.0, 61.26, 125.5, 3600.0)


def chat_and_processor(name):
    return CHATS[name], tiny_processor(name)


def side_px(name):
    size = CHATS[name].frame_size(tiny_processor(name))
    return size.square_px or 2 * size.multiple_px


def make_clip(name, frames=5, seed=0, times_s=None):
    side = side_px(name)
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), np.uint8)
    return Clip(pixels, np.arange(frames) / 2 if times_s is None else np.array(times_s))


def spoken(processor, example):
    labels = example["labels"]
    return processor.tokenizer.decode(labels[labels != IGNORED])


def decoded(processor, example):
    return processor.tokenizer.decode(example["input_ids"])


every_family = pytest.mark.parametrize("name", CHATS)


@pytest.fixture(autouse=True)
def needs_num2words(request):
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("name") == "smolvlm":
        pytest.importorskip("num2words")


def test_every_family_of_processors_has_a_chat():
    assert set(CHATS) == set(TINY_PROCESSORS)


@pytest.mark.parametrize(
    "name, expected",
    [
        (
            "qwen2_5_vl",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>"
            + "<|video_pad|>"
            * 8
            + "<|vision_end|>What moves?<|im_end|>\n"
            "<|im_start|>assistant\nThe circle.<|im_end|>\n"
            "<|im_start|>user\nWhere to?<|im_end|>\n<|im_start|>assistant\nLeft.<|im_end|>\n",
        ),
        (
            "qwen3_vl",
            "<|im_start|>user\n<|vision_start|>"
            "<0.2 seconds><|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
            "<1.0 seconds><|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
            "<|vision_end|>What moves?<|im_end|>\n<|im_start|>assistant\nThe circle.<|im_end|>\n"
            "<|im_start|>user\nWhere to?<|im_end|>\n<|im_start|>assistant\nLeft.<|im_end|>\n",
        ),
        (
            "smolvlm",
            "<|im_start|>User: You are provided the following series of three frames from a 0:00:01 "
            f"[H:MM:SS] video.\n\nFrame from 00:00:{SMOLVLM_FRAME}\nFrame from 00:00:{SMOLVLM_FRAME}\n"
            f"Frame from 00:01:{SMOLVLM_FRAME}\n\nWhat moves?<end_of_utterance>\n"
            "Assistant: The circle.<end_of_utterance>\n"
            "User: Where to?<end_of_utterance>\nAssistant: Left.<end_of_utterance>\n",
        ),
        (
            "glm4v",
            "[gMASK]<sop><|user|>\n<|begin_of_video|>"
            + "".join(f"<|begin_of_image|>{'<|image|>' * 4}<|end_of_image|>{second}" for second in (0, 1))
            + "<|end_of_video|>What moves?<|assistant|>\nThe circle."
            "<|user|>\nWhere to?<|assistant|>\nLeft.<|user|>",
        ),
        (
            "internvl",
            "<|im_start|>user\n"
            + "".join(f"Frame{n}: <img>{'<IMG_CONTEXT>' * 4}</img>\n" for n in (1, 2, 3))
            + "What moves?<|im_end|>\n<|im_start|>assistant\nThe circle.<|im_end|>\n"
            "<|im_start|>user\nWhere to?<|im_end|>\n<|im_start|>assistant\nLeft.<|im_end|>\n",
        ),
        (
            "llava_onevision",
            "<|im_start|>user " + "<video>" * 13 + "\nWhat moves?<|im_end|><|im_start|>assistant\nThe circle."
            "<|im_end|><|im_start|>user \nWhere to?<|im_end|><|im_start|>assistant\nLeft.<|im_end|>",
        ),
    ],
)
def test_the_text_of_a_conversation(name, expected):
    chat, processor = chat_and_processor(name)
    assert decoded(processor, chat.encode(processor, make_clip(name, frames=3), TWO)) == expected


@every_family
@pytest.mark.parametrize("turns", [TWO, [*TWO, Turn("How fast?")], [Turn("What moves?")], ODD])
@pytest.mark.parametrize("frames", [None, 1, 4])
def test_tokens_are_the_processors_own_and_labels_cover_answers_and_ends_of_turns(name, turns, frames):
    chat, processor = chat_and_processor(name)
    clip = None if frames is None else make_clip(name, frames)
    example = chat.encode(processor, clip, turns)
    assert set(example) == {"input_ids", "labels", *(chat.video_inputs if clip else ())}
    end, lead = chat.end_of_turn(processor), chat.lead(processor)
    said = [turn.answer.strip() for turn in turns if turn.answer is not None]
    normal = processor.tokenizer.backend_tokenizer.normalizer
    said = [normal.normalize_str(text) if normal else text for text in said]
    assert spoken(processor, example) == "".join(f"{lead}{text}{end}" for text in said)
    labelled = example["labels"] != IGNORED
    assert torch.equal(example["labels"][labelled], example["input_ids"][labelled])
    opened = turns[-1].answer is None
    if opened:  # as a user of transformers writes it
        own = by_hand(processor, clip, turns, answers_in_parts=name != "glm4v")
        if name != "llava_onevision" or len(turns) == 1:
            assert torch.equal(example["input_ids"], own["input_ids"][0])
        for key in chat.video_inputs if clip else ():
            assert torch.equal(example[key], own[key])
        assert example["labels"][-1] == IGNORED


def by_hand(processor, clip, turns, *, answers_in_parts):
    messages = []
    for index, turn in enumerate(turns):
        shown = [{"type": "video"}] if clip and index == 0 else []
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": turn.question}]})
        if turn.answer is not None:
            parts = [{"type": "text", "text": turn.answer}]
            messages.append({"role": "assistant", "content": parts if answers_in_parts else turn.answer})
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    videos = {}
    if clip:
        count, times_s = len(clip.frames), clip.frame_times_s
        fps = (count - 1) / (times_s[-1] - times_s[0]) if count > 1 else 1.0
        videos = {"videos": [[clip.frames]], "do_resize": False, "do_sample_frames": False}
        indices = (times_s * fps).tolist()
        videos["video_metadata"] = [{"total_num_frames": count, "fps": fps, "frames_indices": indices}]
    bos = processor.tokenizer.bos_token
    special = {"add_special_tokens": not (bos and text.startswith(bos))}
    return processor(text=[text], return_tensors="pt", **videos, **special)


@every_family
def test_a_prompt_is_what_an_answered_conversation_begins_with(name):
    """Training and evaluation read the same tokens before an answer, and its first token is its own."""
    chat, processor = chat_and_processor(name)
    clip = make_clip(name)
    prompt = chat.encode(processor, clip, [Turn("What moves?")])["input_ids"]
    example = chat.encode(processor, clip, TWO[:1])
    assert torch.equal(example["input_ids"][: len(prompt)], prompt)
    assert (example["labels"][: len(prompt)] == IGNORED).all() and example["labels"][len(prompt)] != IGNORED
    first = processor.tokenizer(chat.lead(processor) + "The", add_special_tokens=False)["input_ids"][0]
    assert example["labels"][len(prompt)] == first


@pytest.mark.parametrize(
    "name, lead, end",
    [
        ("qwen2_5_vl", "", "<|im_end|>"),
        ("smolvlm", " ", "<end_of_utterance>"),
        ("glm4v", "", "<|user|>"),
        ("llava_onevision", "", "<|im_end|>"),
        ("perception_lm", "", "<|eot_id|>"),
    ],
)
def test_what_stands_around_an_answer(name, lead, end):
    chat, processor = chat_and_processor(name)
    assert (chat.lead(processor), chat.end_of_turn(processor)) == (lead, end)


@every_family
@pytest.mark.parametrize("times_s", [UNEVEN_S, (0.0,), (0.0, 0.5)])
def test_questions_about_a_clip_are_encoded_as_each_alone(name, times_s, monkeypatch):
    chat, processor = chat_and_processor(name)
    clip, calls = make_clip(name, len(times_s), times_s=times_s), []
    seen = type(processor.video_processor).preprocess
    monkeypatch.setattr(
        type(processor.video_processor), "preprocess", lambda *a, **k: calls.append(1) or seen(*a, **k)
    )
    questions = ["What moves?", " Caf\u0065\u0301? 12 ", "\n\nWhy", "3"]
    prompts, video = chat.encode_questions(processor, clip, questions, compress=False)
    assert len(calls) == 1 and tuple(video) == chat.video_inputs
    for question, ids in zip(questions, prompts, strict=True):
        example = chat.encode(processor, clip, [Turn(question)])
        assert torch.equal(ids, example["input_ids"])
        for key in video:
            assert torch.equal(video[key], example[key])


@every_family
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_tokens_are_counted_exactly(name, frames):
    chat, processor = chat_and_processor(name)
    times_s = np.sort(np.random.default_rng(frames).uniform(0, 200, frames)).round(3)
    for turns in (TWO, [Turn("What?")], ODD):
        clip = make_clip(name, frames, times_s=times_s)
        counts = chat.count_tokens(processor, turns, times_s, side_px(name), side_px(name))
        assert counts == (len(chat.encode(processor, clip, turns)["input_ids"]),) * 2
        alone = len(chat.encode(processor, None, turns)["input_ids"])
        assert chat.count_tokens(processor, turns, None, 0, 0) == (alone, alone)


@pytest.mark.parametrize("name", PAIRS)
def test_tokens_of_frames_that_are_no_squares_are_counted_exactly(name):
    chat, processor = chat_and_processor(name)
    high, wide = (factor * chat.frame_size(processor).multiple_px for factor in (3, 5))
    clip = Clip(np.zeros((3, high, wide, 3), np.uint8), np.array([0.0, 0.5, 11.0]))
    ids = chat.encode(processor, clip, TWO)["input_ids"]
    assert chat.count_tokens(processor, TWO, clip.frame_times_s, high, wide) == (len(ids),) * 2
    assert int((ids == chat.placeholder(processor)).sum()) == 2 * 15


@every_family
def test_frames_are_neither_sampled_nor_resized(name):
    chat, processor = chat_and_processor(name)
    clip = make_clip(name, frames=6)
    example = chat.encode(processor, clip, TWO)
    video = processor.video_processor
    mean, deviation = (np.array(getattr(video, key)) for key in ("image_mean", "image_std"))
    expected = torch.from_numpy((clip.frames / 255 - mean) / deviation).permute(0, 3, 1, 2).float()
    pixels = example[chat.video_inputs[0]]
    if name in PAIRS:
        patch = video.patch_size
        assert example["video_grid_thw"].tolist() == [[3, 4, 4]]
        first = pixels[0].view(3, 2, patch, patch).transpose(0, 1)
        torch.testing.assert_close(first, expected[:2, :, :patch, :patch], atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(pixels.view(expected.shape), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "times_s, seconds",
    [((0.0, 0.25, 0.5, 0.75), 0.5), ((3.0, 4.0, 5.0), 2.0), ((0.0,), 2.0), ((0.0, 3.0), 6.0)],
)
def test_qwen25_vl_is_told_how_long_a_step_is(times_s, seconds):
    chat, processor = chat_and_processor("qwen2_5_vl")
    clip = make_clip("qwen2_5_vl", len(times_s), times_s=times_s)
    told = chat.encode(processor, clip, TWO)["second_per_grid_ts"]
    torch.testing.assert_close(told, torch.tensor([seconds]))


def test_whole_seconds_stay_whole():
    """Times are not reckoned from numbers and a rate, which may give 6.99999 s, written as 6."""
    chat, processor = chat_and_processor("smolvlm")
    times_s = [n / 3 for n in range(22)]
    text = decoded(processor, chat.encode(processor, make_clip("smolvlm", 22, times_s=times_s), TWO))
    assert [text.count(f"Frame from 00:0{second}:") for second in range(8)] == [3] * 7 + [1]


@every_family
def test_a_family_tells_its_sizes(name):
    chat, processor = chat_and_processor(name)
    pixels = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32, "glm4v": 28}.get(name)
    assert chat.frame_size(processor) == (FrameSize(pixels) if pixels else FrameSize(16, 16))
    assert chat.frames_per_step(processor) == (2 if name in PAIRS else 1)
    frame_token = {"smolvlm": "<image>", "internvl": "<IMG_CONTEXT>", "glm4v": "<|image|>"}.get(
        name, processor.video_token
    )
    assert chat.placeholder(processor) == processor.tokenizer.convert_tokens_to_ids(frame_token)


@every_family
def test_frames_of_another_size_are_refused(name):
    chat, processor = chat_and_processor(name)
    wrong = Clip(np.zeros((2, side_px(name), side_px(name) + 4, 3), np.uint8), np.array([0.0, 0.5]))
    told = "sides that are multiples of (28|32) px" if name in PAIRS else "squares of 16 px"
    for ask in (
        lambda: chat.encode(processor, wrong, TWO),
        lambda: chat.encode_questions(processor, wrong, ["What?"], compress=False),
        lambda: chat.count_tokens(processor, TWO, [0.0, 0.5], *wrong.frames.shape[1:3]),
    ):
        with pytest.raises(
            ValueError, match=rf"frames of \d+ x \d+ px; this model takes {told}: read the clip"
        ):
            ask()


@every_family
def test_compression_is_refused(name):
    chat, processor = chat_and_processor(name)
    clip = make_clip(name)
    for ask in (
        lambda: chat.encode(processor, clip, TWO, compress=True),
        lambda: chat.encode_questions(processor, clip, ["What?"], compress=True),
    ):
        with pytest.raises(
            ValueError, match="VideoLLaMA3 alone can drop tokens of a video; pass compress=False"
        ):
            ask()


@every_family
@pytest.mark.parametrize("place", ["question", "answer"])
def test_a_token_of_the_layout_in_a_text_is_refused(name, place):
    chat, processor = chat_and_processor(name)
    for token in {processor.video_token, chat.end_of_turn(processor), "<|unknown|>"}:
        said = f"a {token} b"
        turn = Turn(said, "fine") if place == "question" else Turn("fine", said)
        for ask in (
            lambda turn=turn: chat.encode(processor, None, [turn]),
            lambda turn=turn: chat.count_tokens(processor, [turn], [0.0], side_px(name), side_px(name)),
        ):
            with pytest.raises(
                ValueError, match="special token of the chat layout: .*; remove it from the row"
            ):
                ask()


@pytest.mark.parametrize("turns", [[], [Turn("A?"), Turn("B?", "yes")]])
def test_only_the_last_turn_may_be_open(turns):
    chat, processor = chat_and_processor("qwen2_vl")
    with pytest.raises(ValueError, match="a conversation needs turns, all but the last answered"):
        chat.encode(processor, None, turns)


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("assistant\n' }}{%- endif", "assistant\n<think>\n' }}{%- endif", "otherwise than the prompt"),
        (
            "{{ part.text }}",
            "{{ ('<think></think>' if message.role != 'user') ~ part.text }}",
            "'<think></think>The",
        ),
        (
            "{{ part.text }}",
            "{{ part.text if loop.last and message is eq messages[-1] or message.role == 'user' }}",
            "otherwise",
        ),
    ],
)
def test_a_template_that_thinks_is_refused(old, new, told, monkeypatch):
    chat, processor = chat_and_processor("qwen2_vl")
    assert processor.chat_template.count(old) == 1
    monkeypatch.setattr(processor, "chat_template", processor.chat_template.replace(old, new))
    with pytest.raises(
        ValueError, match="template of this Qwen2VLProcessor writes .* that answers at once"
    ) as error:
        chat.encode(processor, None, TWO)
    assert told in str(error.value)


@every_family
@pytest.mark.parametrize("left", [False, True])
def test_collate_pads_texts_and_joins_videos(name, left):
    chat, processor = chat_and_processor(name)
    frames = (4, 4) if name == "llava_onevision" else (3, 6)
    short, long = (
        chat.encode(processor, make_clip(name, n, seed=n), [Turn("A?", "Yes. " * n)]) for n in frames
    )
    text = chat.encode(processor, None, [Turn("A?", "No.")])
    examples, pad_id = [short, text, long], processor.tokenizer.pad_token_id
    batch = chat.collate(examples, pad_id=pad_id, left=left)
    lengths = [len(example["input_ids"]) for example in examples]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    for row, example in enumerate(examples):
        kept = batch["attention_mask"][row].bool()
        assert kept[-1 if left else 0]
        assert torch.equal(batch["input_ids"][row, kept], example["input_ids"])
        assert torch.equal(batch["labels"][row, kept], example["labels"])
        assert (batch["input_ids"][row, ~kept] == pad_id).all() and (
            batch["labels"][row, ~kept] == IGNORED
        ).all()
    pixels = batch[chat.video_inputs[0]]
    one, other = (example[chat.video_inputs[0]] for example in (short, long))
    if name == "smolvlm":
        assert (
            torch.equal(pixels[0, :3], one[0])
            and (pixels[0, 3:] == 0).all()
            and torch.equal(pixels[1:], other)
        )
    elif name == "perception_lm":
        assert torch.equal(pixels, torch.cat([one, other], 1)) and batch["frames_per_clip"].tolist() == [3, 6]
    else:
        assert torch.equal(pixels, torch.cat([one, other]))
    assert set(chat.collate([text], pad_id=pad_id)) == {"input_ids", "labels", "attention_mask"}


def test_llava_onevision_takes_clips_of_one_length_together():
    chat, processor = chat_and_processor("llava_onevision")
    examples = [chat.encode(processor, make_clip("llava_onevision", n), TWO) for n in (2, 3)]
    with pytest.raises(ValueError, match=r"clips of \[2, 3\] frames in a batch; .* batches of one clip"):
        chat.collate(examples, pad_id=0)


@every_family
def test_a_model_of_the_family_reads_the_inputs(name):
    """And its loss depends on the video and is that of the labels alone."""
    chat = CHATS[name]
    model, processor = tiny_model(name)
    losses = []
    for seed in (0, 1):
        examples = [chat.encode(processor, make_clip(name, seed=seed), TWO)]
        batch = chat.collate(examples, pad_id=processor.tokenizer.pad_token_id)
        if name in PAIRS:
            batch["mm_token_type_ids"] = (batch["input_ids"] == chat.placeholder(processor)).long() * 2
        with torch.no_grad():
            losses.append(float(model(**batch).loss))
    assert np.isfinite(losses).all() and losses[0] != losses[1]
