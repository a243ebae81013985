"""Owns: MOSS in every Video-LLM that it attaches to - what must hold, and which models and sizes are refused.

The checks are those of `experiments/family_checks.py`, which also runs those that take long.
"""

import copy
import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import host_checks
import pytest
import torch
from host_checks import CHECKS, attach, fresh, inputs_of, logits, stock_inputs, wake, with_lora
from launching import environment
from tiny_hosts import TINY_HOSTS
from torch import nn

import moss_vllm
from moss_vllm.vlm.attach import VIDEO_LLM_HOSTS, attached, complete_sizes, find_host
from moss_vllm.vlm.hosts import by_frame, by_grid

TINY = {tiny.name: tiny for tiny in TINY_HOSTS}


def tiny_of(name):
    tiny = TINY[name]
    if reason := find_host(host_checks._built(name)).refused(host_checks._built(name)):
        pytest.skip(reason)  # this version of transformers
    return tiny


def one_clip(model, call, told):
    """All real frames of a batch."""
    return [int((call["pixel_values"] != 0).flatten(2).any(2).sum())]


@pytest.mark.slow
@pytest.mark.parametrize("check", [name for name in CHECKS if name != "compile"])
@pytest.mark.parametrize("name", TINY)
def test_every_host_passes(name, check, tmp_path):
    CHECKS[check](tiny_of(name), tmp_path)


def test_every_host_has_a_tiny_model():
    assert {model_type for host in VIDEO_LLM_HOSTS for model_type in host.model_types} == set(TINY)


@pytest.mark.parametrize(
    ("name", "check", "changes"),
    [
        ("qwen2_5_vl", "grid", {"to_raster": by_grid.blocks_to_raster}),
        ("qwen2_5_vl", "grid", {"from_raster": by_grid.raster_to_blocks}),
        ("qwen3_vl", "inverse", {"from_raster": lambda tower, raster, sizes, call: raster}),
        ("qwen2_5_vl", "frozen", {"trained_after": ()}),
        ("internvl", "generate", {"tells": {"forward": by_frame.frames_in_text}}),
        ("smolvlm", "batch", {"tells": {"get_image_features": one_clip}}),
        ("glm4v", "identity", {"tells": {}}),
    ],
)
def test_a_wrong_entry_is_noticed(name, check, changes, monkeypatch, tmp_path):
    tiny = tiny_of(name)
    if check == "generate" and not hasattr(
        host_checks._built(name), "_prepare_multimodal_encoder_kwargs_for_generation"
    ):
        pytest.skip("generate() of transformers 5.17 encodes frames in forward, so this entry is right")
    wrong = tuple(dataclasses.replace(h, **changes) if name in h.model_types else h for h in VIDEO_LLM_HOSTS)
    monkeypatch.setattr(sys.modules["moss_vllm.vlm.attach"], "VIDEO_LLM_HOSTS", wrong)
    with pytest.raises(AssertionError):
        CHECKS[check](tiny, tmp_path)


def test_attaching_says_where_moss_is_and_how_large(capsys):
    model = moss_vllm.attach(fresh(TINY["qwen2_5_vl"]))
    numbers = sum(weight.numel() for weight in attached(model)[1].moss.parameters()) / 1e6
    line = f"Qwen2.5-VL: MOSS after layer 1 of 4, {numbers:.1f} M parameters, one step = 2 frames\n"
    assert capsys.readouterr().out == line and 8 < numbers < 12


@pytest.mark.parametrize(("layers", "after"), [(32, 7), (27, 6), (24, 5), (12, 3), (47, 10), (1, 1)])
def test_moss_is_after_the_papers_layer_in_proportion(layers, after):
    tower = SimpleNamespace(get_submodule=lambda name: [None] * layers)
    assert complete_sizes(tower, VIDEO_LLM_HOSTS[0], {})["after_layer"] == after


@pytest.mark.parametrize("after", [1, 2, 4])
def test_any_layer_can_be_tapped(after):
    tiny = TINY["qwen3_vl"]
    model, seen = attach(fresh(tiny), after_layer=after), []
    host, tower = attached(model)
    tower.get_submodule(host.blocks)[after - 1].register_forward_hook(lambda *call: seen.append(call[2]))
    tower.moss.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    logits(model, inputs_of(tiny))
    stream, raster = seen
    assert torch.equal(by_grid.raster_to_blocks(tower, raster, [tiny.sizes[0]], {}), stream)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"after_layer": 0}, "after_layer=0, but the vision tower of this Qwen3-VL has layers 1 to 4"),
        ({"after_layer": 5}, "after_layer=5.*the paper's 6 of 27 is 1 here"),
        ({"after_layer": True}, "after_layer=True"),
        ({"layer": 3}, "unknown sizes layer of MOSS; known are after_layer, orders, window"),
        ({"window": (2, 3, 3)}, r"no MOSS can be made of .*2, 3, 3"),
        ({"orders": ()}, "no MOSS can be made of .*different orders"),
        ({"d_hidden": "many"}, "no MOSS can be made of .*'many'"),
    ],
)
def test_wrong_sizes_are_refused_and_the_model_stays_stock(sizes, message):
    model = fresh(TINY["qwen3_vl"])
    with pytest.raises(ValueError, match=message):
        moss_vllm.attach(model, **sizes)
    assert not hasattr(model.model.visual, "moss") and type(model.model.visual).__dict__.get("host") is None


def other_tower(model):
    tower = model.model.visual
    tower.__class__ = type("OtherTower", (type(tower),), {})


def dispatched(model):
    model.model.visual.forward = model.model.visual.forward


REFUSED = [
    (
        other_tower,
        "the vision tower of this Qwen3-VL is a OtherTower; MOSS is tried with a Qwen3VLVisionModel",
    ),
    (dispatched, "dispatched by accelerate .* on one device, attach MOSS, then dispatch_model"),
    (attach, r"this Qwen3-VL has MOSS already; moss_vllm.detach\(model\) takes it off"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_model_that_moss_cannot_see_through_is_refused(change, message):
    model = fresh(TINY["qwen3_vl"])
    change(model)
    with pytest.raises(ValueError, match=message):
        moss_vllm.attach(model)


def test_peft_comes_after_moss():
    model = fresh(TINY["qwen3_vl"])
    with_moss = with_lora(attach(model))
    with pytest.raises(ValueError, match=r"get_peft_model\(moss_vllm.attach\(model\), config\)"):
        moss_vllm.attach(with_moss)
    with pytest.raises(ValueError, match=r"take peft's adapters off first, by model.unload\(\)"):
        moss_vllm.detach(with_moss)


def test_models_of_no_family_are_refused_with_the_families_there_are():
    other = nn.Linear(1, 1)
    other.config = SimpleNamespace(model_type="gemma3")
    for model in (other, "Qwen/Qwen2.5-VL-3B-Instruct", fresh(TINY["smolvlm"]).model):
        with pytest.raises(
            ValueError, match=r"an opened .*ForConditionalGeneration of Qwen2.5-VL \(qwen2_5_vl\)"
        ):
            moss_vllm.attach(model)
    for function in (moss_vllm.detach, moss_vllm.trained_modules):
        with pytest.raises(ValueError, match=r"has no MOSS; moss_vllm.attach\(model\) gives it one"):
            function(fresh(TINY["smolvlm"]))


def test_versions_and_configs_on_which_a_check_fails_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(by_frame, "transformers_version", "5.20.2")
    with pytest.raises(
        ValueError, match="MOSS cannot be attached to this SmolVLM2: transformers 5.20.2 takes"
    ):
        moss_vllm.attach(fresh(TINY["smolvlm"]))
    model = fresh(TINY["internvl"])
    model.config.vision_feature_layer = -2
    with pytest.raises(
        ValueError, match="this InternVL3: vision_feature_layer=-2 in its config is not tried"
    ):
        moss_vllm.attach(model)
    model = fresh(TINY["perception_lm"])
    model.model.vision_tower.timm_model.num_prefix_tokens = 5
    with pytest.raises(ValueError, match="this Perception-LM: its timm model Eva is no ViT"):
        moss_vllm.attach(model)


def two_clips_in_a_row(tiny):
    """The inputs of one question about two clips, and of a question about each."""
    generator = torch.Generator().manual_seed(1)
    both = tiny.make_inputs(tiny.sizes, generator)
    generator.manual_seed(1)
    alone = [tiny.make_inputs([size], generator) for size in tiny.sizes]
    words = {name: torch.cat([one[name] for one in alone], 1) for name in ("input_ids", "attention_mask")}
    pixels = torch.cat([one[tiny.pixels].reshape(-1, 3, 16, 16) for one in alone])
    pixels = pixels[None] if both[tiny.pixels].dim() == 5 else pixels
    return {**words, tiny.pixels: pixels}, alone


@torch.no_grad()
def projected(model, inputs):
    """What the projector gives, of all calls."""
    host, found = attached(model)[0], []
    name = host.projector.replace("\\", "")
    model.get_submodule(name).register_forward_hook(lambda *call: found.append(call[2]))
    model(**inputs)
    return torch.cat(found)


@pytest.mark.parametrize("name", ["internvl", "smolvlm", "perception_lm"])
def test_two_clips_in_one_question_are_told_apart_by_frames_per_clip(name):
    tiny = tiny_of(name)
    model = wake(attach(fresh(tiny)))
    together, alone = two_clips_in_a_row(tiny)
    frames = [size[0] for size in tiny.sizes]
    singles = torch.cat([projected(copy.deepcopy(model), one) for one in alone])
    for told in (frames, torch.tensor(frames)):
        given = projected(copy.deepcopy(model), {**together, "frames_per_clip": told})
        torch.testing.assert_close(given, singles, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(projected(copy.deepcopy(model), together), singles, atol=1e-2)
    images = logits(model, {**together, "frames_per_clip": [1] * sum(frames)})
    assert torch.equal(images, logits(host_checks._built(name), together))
    with pytest.raises(
        ValueError, match=r"frames_per_clip=\[2\] are 2 frames, and the vision tower was given 8"
    ):
        model(**together, frames_per_clip=[2])
    with pytest.raises(ValueError, match=r"frames_per_clip=\[0, 8\] is not a whole number from 1"):
        model.generate(**together, frames_per_clip=[0, 8], max_new_tokens=1)


def test_an_image_of_several_tiles_is_no_clip():
    tiny = TINY["internvl"]
    inputs = inputs_of(tiny, (4, 4, 4))
    ids = [5, 58, *[60] * 12, 59, 7, 58, *[60] * 4, 59, 8]  # an image of three tiles, then one of one
    inputs |= {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    model = wake(attach(fresh(tiny)))
    assert torch.equal(logits(model, inputs), logits(host_checks._built("internvl"), inputs))
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="finds the clips among the frames in input_ids, and there are none"):
        model(**inputs, inputs_embeds=embeddings)


def test_an_image_beside_a_video_stays_as_it_was():
    tiny = TINY["perception_lm"]
    video, image = inputs_of(tiny), torch.randn(1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    model, seen = wake(attach(fresh(tiny))), []
    attached(model)[1].moss.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    words = {name: video[name] for name in ("input_ids", "attention_mask")}
    picture = torch.full((1, 4), 60)
    words = {"input_ids": torch.cat([picture, words["input_ids"]], 1)}
    logits(model, {**words, "pixel_values": image, tiny.pixels: video[tiny.pixels]})
    assert seen == [[(1, 4, 4)], [(3, 4, 4)]]


def test_a_trainer_trains_moss_projector_and_lora_alone_as_the_page_says(tmp_path):
    from transformers import Trainer, TrainingArguments

    tiny = TINY["qwen2_5_vl"]
    model = with_lora(attach(fresh(tiny).to(torch.bfloat16)))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = {**inputs_of(tiny), "labels": inputs_of(tiny)["input_ids"]}
    settings = TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-2, bf16=True, use_cpu=True, remove_unused_columns=False
    )
    settings.report_to, settings.disable_tqdm, settings.save_strategy = [], True, "no"
    Trainer(model, settings, train_dataset=[example] * 2, data_collator=lambda rows: rows[0]).train()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parts = (".moss.modules_to_save.", ".merger.modules_to_save.", ".lora_")
    assert all(any(part in name for name in moved) for part in parts)
    assert all(any(part in name for part in parts) for name in moved)


def test_the_package_imports_transformers_at_the_first_use():
    code = "import sys, moss_vllm; assert 'attach' in dir(moss_vllm); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.stdout == "False\n", done.stderr
    with pytest.raises(AttributeError, match="module 'moss_vllm' has no attribute 'attatch'"):
        _ = moss_vllm.attatch


def test_stock_inputs_are_what_a_model_without_moss_takes():
    tiny = TINY["perception_lm"]
    assert "frames_per_clip" in inputs_of(tiny, *tiny.sizes)
    assert "frames_per_clip" not in stock_inputs(inputs_of(tiny, *tiny.sizes))
