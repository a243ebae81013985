"""Owns: every family is opened, trained, saved, merged and asked by the code that VideoLLaMA3 uses."""

import json

import numpy as np
import pytest
import torch
from tiny_processors import tiny_model
from transformers import AutoModelForImageTextToText

from moss_vllm.commands.scripts import merge, push
from moss_vllm.data.rows import Turn
from moss_vllm.evaluation.answering import answer, choose_text, prepare_prompts
from moss_vllm.evaluation.generation import GREEDY
from moss_vllm.training.optim import parameter_groups
from moss_vllm.video.clip import Clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import attach_lora, choose_rates, trained_state
from moss_vllm.vlm.base import load_base, moss_to_train
from moss_vllm.vlm.checkpoint import Loaded, load
from moss_vllm.vlm.families import VIDEO_LLM_FAMILIES
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.processor import load_processor
from moss_vllm.vlm.reload_check import model_inputs, next_logits

HOSTS = [family for family in VIDEO_LLM_FAMILIES if family.opens_stock_classes]
QUESTIONS = ["What moves?", "Which way does the circle move, and how fast?", "How often?"]


@pytest.fixture(scope="module", params=HOSTS, ids=lambda family: family.title)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    """A stock model and its processor as a release has them."""
    model, processor = tiny_model(family.config.model_type)
    folder = tmp_path_factory.mktemp(family.config.model_type)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(family, folder):
    """Six frames in which a square jumps to the right."""
    processor = load_processor(folder)
    sides = family.chat.frame_size(processor)
    height = width = sides.square_px or 2 * sides.multiple_px
    width = width if sides.square_px else 2 * width
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Clip(np.stack([np.roll(noise, 5 * n, 1) for n in range(6)]), np.arange(6) / 4)


def awake(model):
    """What is trained gets values of its own; MOSS's statistics, too."""
    torch.manual_seed(2)
    for name, value in trained_state(model).items():
        if ".moss." in name and "running_var" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5)
        elif value.is_floating_point() and value.dim() > 1 and "lora_A" not in name:
            torch.nn.init.normal_(value, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def trained(folder, moss):
    base = load_base(folder, moss=moss)
    return awake(attach_lora(base, rank=2, alpha=2, dropout=0.0))


@pytest.fixture(scope="module")
def saved(folder, trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("run") / "step-000001"
    checkpoint.save(place, trained, load_processor(folder), {"step": 1})
    return place


def test_a_new_moss_changes_no_logit(family, folder, moss):
    processor, plain = load_processor(folder), load_base(folder)
    with_moss = load_base(folder, moss=moss)
    assert family.has_moss(with_moss.config) and not family.has_moss(plain.config)
    assert torch.equal(next_logits(plain, processor), next_logits(with_moss, processor))
    layers = family.moss_model.host.layers(plain.config)
    assert moss_to_train(folder)["moss_after_layer"] == round(6 / 27 * layers)


def test_what_trains_is_moss_projector_and_lora(family, folder, moss, clip):
    base = load_base(folder, moss=moss)
    model = attach_lora(base, rank=2, alpha=2, dropout=0.0)
    groups = parameter_groups(model, choose_rates(base))
    assert {group["name"] for group in groups} == {"moss", "projector", "llm lora"}
    processor = load_processor(folder)
    rows = [[Turn("What moves?", "The circle.")], [Turn("Which way?", "It moves left.")]]
    batch = family.chat.collate(
        [family.chat.encode(processor, clip, turns) for turns in rows],
        pad_id=processor.tokenizer.pad_token_id,
    )
    AnswerLoss(model.train())(**batch).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(".moss." in name for name in with_gradient)


@pytest.mark.slow
def test_a_checkpoint_opens_to_the_same_model(family, folder, trained, saved, clip):
    processor, loaded = load_processor(folder), load(saved)
    run = json.loads((saved / "run.json").read_text())
    assert run["family"] == family.title and run["moss"]["moss_window"] == [3, 3, 3]
    state, opened = trained_state(trained), trained_state(loaded.model)
    assert state.keys() == opened.keys() and all(torch.equal(state[name], opened[name]) for name in state)
    assert torch.equal(next_logits(trained, processor), next_logits(loaded.model, loaded.processor))
    checkpoint.check_reload(saved, trained, state)


def test_a_checkpoint_without_moss_opens_too(folder, tmp_path):
    model = awake(attach_lora(load_base(folder), rank=2, alpha=2, dropout=0.0))
    processor = load_processor(folder)
    checkpoint.save(tmp_path / "step-000001", model, processor, {"step": 1})
    loaded = load(tmp_path / "step-000001")
    assert loaded.run["moss"] is None
    assert torch.equal(next_logits(model, processor), next_logits(loaded.model, processor))


@pytest.mark.slow
def test_a_merged_folder_has_moss_and_transformers_alone_refuses_it(family, trained, saved, tmp_path, moss):
    merge.main([str(saved), str(tmp_path / "merged"), "--precision", "fp32"])
    loaded = load(tmp_path / "merged")
    wanted, merged = next_logits(trained, loaded.processor), next_logits(loaded.model, loaded.processor)
    torch.testing.assert_close(merged, wanted, atol=1e-4, rtol=1e-4)
    again = load_base(tmp_path / "merged", moss=moss)  # the recipe's --model
    assert torch.equal(next_logits(again.eval(), loaded.processor), merged)
    with pytest.raises((ValueError, KeyError), match=f"moss_{family.config.model_type}"):
        AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert "moss_vllm.vlm.checkpoint import load" in (tmp_path / "merged" / "README.md").read_text()


def test_its_card_names_the_family(family, saved, tmp_path):
    push.main([str(saved), "owner/name", "--dry-run", "--out", str(tmp_path / "card")])
    card = (tmp_path / "card" / "README.md").read_text()
    assert f"A fine-tuning of {family.title} with MOSS" in card and "VideoLLaMA3" not in card
    assert 'load("owner/name")' in card
    assert "videollama3" not in card and f"Cite {family.title} as the page of the base model says" in card


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "moss"])
def loaded(request, folder, trained):
    model = trained if request.param else load_base(folder).eval()
    return Loaded(model, load_processor(folder), "tiny", {})


@pytest.mark.slow
def test_answers_are_those_of_generate(loaded, clip):
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS, compress=False)
    (answers,) = answer(loaded, [prompts], max_new_tokens=12, batch_size=8)
    alone = []
    for question in QUESTIONS:
        example = loaded.family.chat.encode(loaded.processor, clip, [Turn(question)])
        inputs = model_inputs(loaded.model, loaded.processor, example)
        with torch.inference_mode():
            ids = loaded.model.generate(**inputs, max_new_tokens=12, **GREEDY)
        new = ids[0, inputs["input_ids"].shape[1] :]
        alone.append(loaded.processor.tokenizer.decode(new, skip_special_tokens=True))
    assert answers.texts == alone and all(alone)


def test_losses_of_options_are_those_of_whole_conversations(loaded, clip):
    options = ["left", "moves right slowly"]
    prompts = prepare_prompts(loaded.processor, clip, QUESTIONS[:2], compress=False)
    prompts.choices = [options] * 2
    (answers,) = choose_text(loaded, [prompts], batch_size=8)
    for question, losses in zip(QUESTIONS, answers.scores, strict=False):
        for option in options:
            example = loaded.family.chat.encode(loaded.processor, clip, [Turn(question, option)])
            labels = example["labels"]
            inputs = model_inputs(loaded.model, loaded.processor, example)
            with torch.inference_mode():
                logits = loaded.model(**inputs).logits[0, :-1]
            chat, tokenizer = loaded.family.chat, loaded.processor.tokenizer
            end = tokenizer(chat.end_of_turn(loaded.processor), add_special_tokens=False)["input_ids"]
            said = (labels[1:] != -100).nonzero().flatten()[: -len(end)]
            loss = torch.nn.functional.cross_entropy(logits[said], labels[1:][said])
            assert losses[option] == pytest.approx(float(loss), rel=1e-4)
