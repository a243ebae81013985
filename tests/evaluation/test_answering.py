"""Owns: questions answered together from one cache get the words that `generate` gives to each alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moss_vllm.data.rows import Turn
from moss_vllm.evaluation import answering, packing
from moss_vllm.evaluation.answering import (
    STAGES,
    answer,
    choose,
    choose_text,
    prepare_prompts,
    score_continuations,
)
from moss_vllm.evaluation.generation import followed, not_followed
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.video_llama3.chat import collate, encode

QUESTIONS = [
    "What moves?",
    "Where does the red circle go in the video, and how often does it turn?",
    "What moves first?\nA. left\nB. right\nC. up",
    "What moves first?\nA. left\nB. right\nC. down",
    "How often?",
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "moss"])
def loaded(request, tiny_base, moss, processor):
    """A model, with MOSS and LoRA or without, whose words depend on what it sees."""
    torch.manual_seed(0)
    base = load_base(tiny_base, moss=moss if request.param else None)
    model = base
    if request.param:
        model = attach_lora(base, rank=2, alpha=2, dropout=0.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or ".moss." in name and weight.dim() > 1:
                weight.normal_(std=0.05)
            elif weight.dim() > 1 and "embed_tokens" not in name:
                weight.mul_(5)
    return Loaded(model.eval(), processor, "tiny", {})


@pytest.fixture(scope="module")
def clip():
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8).repeat(7, 0).repeat(7, 1)
    frames = np.stack([np.roll(noise, 14 * (i // 2), 1) for i in range(6)])
    return Clip(frames, np.arange(6) / 2)


@pytest.fixture
def base(loaded):
    """The model below LoRA."""
    return loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model


def inputs_of(loaded, clip, question, compress, answer=()):
    """A batch of one prompt, with the tokens of an answer behind it."""
    example = encode(loaded.processor, clip, [Turn(question)], compress=compress)
    ids = torch.cat([example["input_ids"], torch.tensor(answer, dtype=torch.long)])
    batch = collate([{**example, "input_ids": ids}], pad_id=loaded.processor.tokenizer.pad_token_id)
    return {name: value for name, value in batch.items() if name != "labels"}


def generated(loaded, clip, question, compress, tokens):
    ids = generated_ids(loaded, clip, question, compress, tokens)
    return loaded.processor.tokenizer.decode(ids, skip_special_tokens=True)


def generated_ids(loaded, clip, question, compress, tokens):
    inputs = inputs_of(loaded, clip, question, compress)
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("compress", [True, False])
def test_answers_are_those_of_generate(loaded, clip, compress):
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS, compress=compress)
    expected = [generated(loaded, clip, q, compress, 12) for q in QUESTIONS]
    assert len(set(expected)) >= 3  # else equal words would prove nothing
    for size in (1, 2, 5):
        said = next(answer(loaded, [prompts], max_new_tokens=12, batch_size=size))
        assert said.texts == expected, size
        assert said.seconds.keys() == set(STAGES) and min(said.seconds.values()) > 0


def test_batches_across_videos_change_no_answer_and_keep_the_order(loaded, clip):
    clips = [Clip(clip.frames[:n], clip.frame_times_s[:n]) for n in (6, 1, 4, 2)]
    asked = [QUESTIONS, QUESTIONS[:1], QUESTIONS[2:4], QUESTIONS[1:]]
    videos = [
        prepare_prompts(loaded.processor, c, q, compress=False) for c, q in zip(clips, asked, strict=True)
    ]
    assert len({prompts.shared for prompts in videos}) == 4
    expected = [
        [generated(loaded, c, q, False, 12) for q in its] for c, its in zip(clips, asked, strict=True)
    ]
    for size in (3, 7, 16):
        said = [one.texts for one in answer(loaded, iter(videos), max_new_tokens=12, batch_size=size)]
        assert said == expected, size


def test_videos_are_answered_together_up_to_a_number_of_tokens(loaded, clip, monkeypatch):
    videos = [prepare_prompts(loaded.processor, clip, QUESTIONS[:2], compress=False) for _ in range(5)]
    alone, groups, join = answering._tokens(videos[:1]), [], answering.join_caches

    def note(caches, room):
        groups.append(len(caches))
        return join(caches, room)

    monkeypatch.setattr(answering, "join_caches", note)
    monkeypatch.setattr(answering, "MOST_TOKENS", 2 * alone)
    assert len(list(answer(loaded, iter(videos), max_new_tokens=2, batch_size=16))) == 5
    assert groups == [2, 2, 1]
    groups.clear()
    monkeypatch.setattr(answering, "MOST_TOKENS", alone - 1)  # a video alone is never refused
    assert len(list(answer(loaded, iter(videos), max_new_tokens=2, batch_size=16))) == 5
    assert groups == [1] * 5


@pytest.mark.parametrize("compress", [True, False])
def test_prompts_are_those_of_encode_with_the_video_once(processor, clip, compress):
    prompts = prepare_prompts(processor, clip, QUESTIONS, compress=compress)
    for ids, question in zip(prompts.ids, QUESTIONS, strict=True):
        example = encode(processor, clip, [Turn(question)], compress=compress)
        assert torch.equal(ids, example["input_ids"])
        assert all(torch.equal(value, example[name]) for name, value in prompts.video.items())
    video = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
    assert prompts.shared > int((prompts.ids[0] == video).nonzero()[-1])


def test_one_token_at_least_is_left_to_each_question(processor, clip):
    for count in (1, 2):
        prompts = prepare_prompts(processor, clip, ["What moves?"] * count, compress=False)
        assert prompts.shared == len(prompts.ids[0]) - 1


def test_an_answer_ends_where_the_model_ends_it(loaded, base, clip, monkeypatch):
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS, compress=False)
    whole = next(answer(loaded, [prompts], max_new_tokens=12, batch_size=5)).texts
    ends = [generated_ids(loaded, clip, question, False, 12)[3] for question in QUESTIONS[:2]]
    monkeypatch.setattr(base.generation_config, "eos_token_id", ends)
    cut = next(answer(loaded, [prompts], max_new_tokens=12, batch_size=5)).texts
    assert cut == [generated(loaded, clip, question, False, 12) for question in QUESTIONS]
    assert all(len(short) < len(long) for short, long in zip(cut[:2], whole[:2], strict=True))


RULES = {  # of a generation config: each changes greedy answers
    "penalty": {"repetition_penalty": 1.1},
    "n-grams": {"no_repeat_ngram_size": 1, "encoder_repetition_penalty": 1.3},
    "length": {"min_new_tokens": 7, "forced_eos_token_id": 5, "exponential_decay_length_penalty": (4, 1.5)},
    "words": {"forced_bos_token_id": 40},
    "encoder": {"encoder_no_repeat_ngram_size": 1},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8},  # none
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_the_models_generation_config_is_followed(loaded, base, clip, monkeypatch, rule):
    """Penalties count the tokens of each question's own prompt, the video's among them."""
    clips = [Clip(clip.frames[:n], clip.frame_times_s[:n]) for n in (6, 2)]
    videos = [prepare_prompts(loaded.processor, c, QUESTIONS[:3], compress=False) for c in clips]
    plain = [one.texts for one in answer(loaded, videos, max_new_tokens=8, batch_size=6)]
    for name, value in RULES[rule].items():
        monkeypatch.setattr(base.generation_config, name, value)
    if rule == "words":  # of those it says otherwise
        first = generated_ids(loaded, clip, QUESTIONS[0], False, 8)
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            monkeypatch.setattr(base.generation_config, name, first[:2])
        monkeypatch.setattr(base.generation_config, "bad_words_ids", [first[2:4]])
    said = [one.texts for one in answer(loaded, videos, max_new_tokens=8, batch_size=6)]
    assert said == [[generated(loaded, c, q, False, 8) for q in QUESTIONS[:3]] for c in clips]
    assert (said == plain) == (rule == "sampling")
    assert followed(base) == {} if rule == "sampling" else RULES[rule].items() <= followed(base).items()
    assert not_followed(base) == ""


def test_what_greedy_answers_cannot_follow_is_named(loaded, base, clip, monkeypatch):
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS[:1], compress=False)
    plain = next(answer(loaded, [prompts], max_new_tokens=8, batch_size=1)).texts
    ignored = {"num_beams": 4, "guidance_scale": 2.0, "stop_strings": ["a"], "max_length": 9}
    for name, value in ignored.items():
        monkeypatch.setattr(base.generation_config, name, value)
    told = (
        "the model's generation config has num_beams=4, guidance_scale=2.0, stop_strings=['a']: not followed"
    )
    assert not_followed(base) == f"{told}, answers are greedy"
    assert next(answer(loaded, [prompts], max_new_tokens=8, batch_size=1)).texts == plain


@torch.inference_mode()
def test_the_likeliest_choice_is_that_of_one_forward_pass(loaded, clip):
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS, compress=True)
    choices = [["A", "B", "C"]] * 3 + [["A", "B"]] * 2
    prompts.choices = choices
    said = next(choose(loaded, [prompts], batch_size=2))
    for question, letters, scores, best in zip(QUESTIONS, choices, said.scores, said.texts, strict=True):
        logits = loaded.model(**inputs_of(loaded, clip, question, True)).logits[0, -1]
        ids = [loaded.processor.tokenizer(letter)["input_ids"][0] for letter in letters]
        expected = logits.log_softmax(-1)[ids].tolist()
        assert list(scores) == letters and list(scores.values()) == pytest.approx(expected, abs=1e-4)
        assert best == letters[int(np.argmax(expected))]


def test_a_choice_of_several_tokens_is_refused(loaded, clip):
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS[:1], compress=True)
    with pytest.raises(ValueError, match="What moves: not one token of this tokenizer; use a protocol"):
        prompts.choices = [["A", "What moves"]]
        next(choose(loaded, [prompts], batch_size=1))


TEXTS = [  # of each question: one is the start of another, 26, one token and hundreds, one alone
    ["red", "red circle", "red circle moves left."],
    [f"{number} times" for number in range(26)],
    ["A", " ".join(["the red circle moves left."] * 80)],
    ["up", "down"],
    ["once"],
]


@torch.inference_mode()
def mean_loss(loaded, clip, question, text, compress=False):
    """By one forward of transformers over what a training on this answer reads, without its last token."""
    example = encode(loaded.processor, clip, [Turn(question, text)], compress=compress)
    pad = loaded.processor.tokenizer.pad_token_id
    batch = collate([example], pad_id=pad)
    labels = batch.pop("labels")[0, 1:]
    end = int((labels != -100).nonzero()[-1])
    assert int(labels[end]) == loaded.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels[end] = -100
    return float(torch.nn.functional.cross_entropy(loaded.model(**batch).logits[0, :-1], labels))


@pytest.mark.slow
@pytest.mark.parametrize("most_logits", [1024, 3])
def test_the_losses_of_texts_are_those_of_a_plain_forward_each(loaded, clip, monkeypatch, most_logits):
    monkeypatch.setattr(answering, "MOST_LOGITS", most_logits)
    clips = [Clip(clip.frames[:n], clip.frame_times_s[:n]) for n in (6, 1, 4)]
    asked, videos = [[0, 1, 2, 3, 4], [3], [4, 0]], []
    for one, numbers in zip(clips, asked, strict=True):
        questions = [QUESTIONS[n] for n in numbers]
        videos.append(prepare_prompts(loaded.processor, one, questions, compress=False))
        videos[-1].choices = [TEXTS[n] for n in numbers]
    expected = [
        [{text: mean_loss(loaded, one, QUESTIONS[n], text) for text in TEXTS[n]} for n in numbers]
        for one, numbers in zip(clips, asked, strict=True)
    ]
    for size in (1, 6, 16):
        said = list(choose_text(loaded, iter(videos), batch_size=size))
        for found, wanted in zip(said, expected, strict=True):
            assert [list(scores) for scores in found.scores] == [list(scores) for scores in wanted]
            for scores, right in zip(found.scores, wanted, strict=True):
                assert list(scores.values()) == pytest.approx(list(right.values()), rel=1e-5, abs=1e-5)
            assert found.texts == [min(scores, key=scores.get) for scores in wanted]
            assert found.seconds.keys() == set(STAGES)


def test_texts_of_one_token_and_compressed_videos(loaded, clip):
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS[:2], compress=True)
    prompts.choices = [["A", "B"], ["C", "A"]]
    found = next(choose_text(loaded, [prompts], batch_size=1))
    for question, scores in zip(QUESTIONS, found.scores, strict=False):
        wanted = [mean_loss(loaded, clip, question, text, compress=True) for text in scores]
        assert list(scores.values()) == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    prompts.choices = [["A", " \n"], ["C", "A"]]
    with pytest.raises(ValueError, match="a choice is empty; every choice needs a word"):
        next(choose_text(loaded, [prompts], batch_size=1))


@pytest.mark.parametrize("how", [answer, choose, choose_text])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_stop_the_run_and_name_the_question(
    loaded, clip, monkeypatch, how, value
):
    def last_is_broken(loaded, hidden):
        logits = sound(loaded, hidden)
        logits.flatten(0, -2)[-1] = value
        return logits

    sound, videos = answering._logits, []
    monkeypatch.setattr(answering, "_logits", last_is_broken)
    for number in range(2):
        videos.append(prepare_prompts(loaded.processor, clip, QUESTIONS[:2], compress=False))
        videos[-1].choices = [["A", "B"], ["C", "A"]]
        videos[-1].names = [f"question {number}_0", f"question {number}_1"]
    more = {"max_new_tokens": 2} if how is answer else {}
    told = (
        r"checkpoint tiny has no answer to question 1_1: its numbers are not finite \((nan|-?inf)\); in fp16"
    )
    with pytest.raises(RunStopped, match=told):
        list(how(loaded, videos, batch_size=4, **more))
    if how is choose_text:
        with pytest.raises(RunStopped, match="no answer to question 2 of 2: "):
            videos[0].names = ()
            score_continuations(loaded, videos[0], ["A", "left"])


def test_long_texts_count_in_the_tokens_of_videos_answered_together(loaded, clip, monkeypatch):
    def videos(text):
        for _ in range(4):
            prompts = prepare_prompts(loaded.processor, clip, QUESTIONS[:1], compress=False)
            prompts.choices = [["up", text]]
            yield prompts

    groups, join = [], answering.join_caches
    monkeypatch.setattr(
        answering, "join_caches", lambda caches, room: groups.append(len(caches)) or join(caches, room)
    )
    monkeypatch.setattr(answering, "MOST_TOKENS", 2 * answering._tokens(list(videos("down"))[:1]) + 100)
    for text, wanted in (("down", [2, 2]), ("red circle " * 60, [1] * 4)):
        groups.clear()
        assert len(list(choose_text(loaded, videos(text), batch_size=16))) == 4
        assert groups == wanted


@torch.inference_mode()
def test_the_score_of_continuations_is_their_mean_loss_in_one_forward_pass(loaded, clip):
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS[:3], compress=True)
    wanted = ["red", "the red circle moves left.", "A"]
    found = score_continuations(loaded, prompts, wanted)
    for question, text, (loss, greedy) in zip(QUESTIONS, wanted, found, strict=False):
        own = torch.tensor(loaded.processor.tokenizer(text)["input_ids"])
        inputs = inputs_of(loaded, clip, question, True, own.tolist())
        logits = loaded.model(**inputs).logits[0, -len(own) - 1 : -1]
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, own)), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == own).all())
    with pytest.raises(ValueError, match="a choice is empty; every choice needs a word"):
        score_continuations(loaded, prompts, ["", "a", "b"])


def test_a_cache_grows_when_answers_are_longer_than_its_room(loaded, clip, monkeypatch):
    monkeypatch.setattr(answering, "ROOM_TOKENS", 0)
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS[:2], compress=True)
    said = next(answer(loaded, [prompts], max_new_tokens=9, batch_size=2)).texts
    assert said == [generated(loaded, clip, question, True, 9) for question in QUESTIONS[:2]]


def test_heads_that_share_keys_attend_as_if_keys_were_repeated():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.rand(2, 1, 3, 5) > 0.4
    mask[..., 0] = True
    groups = SimpleNamespace(num_key_value_groups=3)
    found, _ = packing._attend(groups, query, key, value, mask, 0.3)
    repeated = [one.repeat_interleave(3, dim=1) for one in (key, value)]
    wanted = torch.nn.functional.scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=0.3)
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)
