"""Owns: a converted release is the authors' model, weight for weight and value for value; or is refused."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2Config, Qwen2ForCausalLM

from moss_vllm.commands.scripts import convert_videollama3
from moss_vllm.data.rows import Turn
from moss_vllm.video.clip import Clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.processor import load_processor
from moss_vllm.vlm.video_llama3 import convert
from moss_vllm.vlm.video_llama3.chat import collate, conversation_text, encode
from moss_vllm.vlm.video_llama3.miniature import build_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "videollama3_original.safetensors"
PREFIX = "model.vision_encoder."
NORM = "model.norm.weight"
LANGUAGE = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    "max_window_layers": 1,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VISION = {
    "model_type": "videollama3_vision_encoder",
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 14,
}
TRAP = "import pathlib\n(pathlib.Path(__file__).parents[1] / 'executed').touch()\n"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory):
    """Qwen2's kind of tokenizer, with the three tokens that VideoLLaMA3's training adds."""
    tokenizer = build_tokenizer(["Time 0.5s:", "What moves?", "The red circle moves left.\n"], 300)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<image>", "<|stream_start|>", "<|stream_end|>"]},
        replace_extra_special_tokens=False,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return (folder / "tokenizer.json").read_text()


@pytest.fixture
def release(tmp_path, golden, tokenizer_json):
    """A function that writes a release in the authors' layout and returns its folder and language model."""

    def write(
        name="release", *, tied=True, spare_rows=9, dtype=torch.float32, vision=PREFIX, placeholders=True
    ):
        folder = tmp_path / name
        folder.mkdir()
        text = tokenizer_json
        if not placeholders:
            text = text.replace("<|image_pad|>", "<|spare_a|>").replace("<|video_pad|>", "<|spare_b|>")
        (folder / "tokenizer.json").write_text(text)
        tokenizer = Tokenizer.from_str(text)
        rows = tokenizer.get_vocab_size() + spare_rows
        torch.manual_seed(0)
        language = Qwen2ForCausalLM(Qwen2Config(vocab_size=rows, tie_word_embeddings=tied, **LANGUAGE)).eval()
        for weight in language.parameters():
            weight.data.normal_(float(weight.dim() == 1), 0.2)
        weights = {key: value for key, value in language.state_dict().items() if key != "lm_head.weight"}
        if not tied:
            weights["lm_head.weight"] = language.lm_head.weight.data
        for key, value in golden.items():
            if key.startswith("model."):
                weights[key.replace(PREFIX, vision)] = value
        weights = {key: value.to(dtype) for key, value in weights.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        files = {
            "config": {
                **LANGUAGE,
                "model_type": "videollama3_qwen2",
                "architectures": ["Videollama3Qwen2ForCausalLM"],
                "auto_map": {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"},
                "vocab_size": rows,
                "tie_word_embeddings": tied,
                "torch_dtype": str(dtype).removeprefix("torch."),
                "image_token_index": tokenizer.token_to_id("<image>"),
                "mm_projector_type": "mlp2x_gelu",
                "use_token_compression": True,
                "vision_encoder": None,
                "vision_encoder_config": VISION,
                "vision_encoder_lr": 2e-06,
            },
            "tokenizer_config": {
                "tokenizer_class": "Qwen2Tokenizer",
                "auto_map": {"AutoTokenizer": ["trap.Tokenizer", None]},
                "eos_token": {"content": "<|im_end|>", "lstrip": False, "__type": "AddedToken"},
                "pad_token": "<|endoftext|>",
                "bos_token": None,
                "model_max_length": 1234,
                "padding_side": "right",
            },
            "preprocessor_config": {
                "auto_map": {"AutoImageProcessor": "trap.ImageProcessor", "AutoProcessor": "trap.Processor"},
                "image_processor_type": "Videollama3ImageProcessor",
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
                "min_tokens": 16,
                "max_tokens": 16384,
                "patch_size": 14,
                "resample": 3,
                "rescale_factor": 1 / 255,
            },
            "processor_config": {"image_merge_size": 1, "video_merge_size": 2, "fps": 1, "max_frames": 180},
            "generation_config": {
                "do_sample": True,
                "temperature": 0.7,
                "top_k": 20,
                "repetition_penalty": 1.05,
                "eos_token_id": [2, 0],
                "pad_token_id": 0,
                "transformers_version": "4.46.3",
            },
        }
        for file, content in files.items():
            (folder / f"{file}.json").write_text(json.dumps(content))
        (folder / "trap.py").write_text(TRAP)
        return folder, language

    return write


@pytest.fixture
def folder(release):
    """A small release with tied weights."""
    return release()[0]


def change(folder, file, **values):
    """Set fields of one of the json files; None removes them."""
    content = {**json.loads((folder / file).read_text()), **values}
    (folder / file).write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )


def shard(folder, count=3):
    """Split the weights over files with an index, as large releases are."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {key: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, key in enumerate(weights)}
    for file in set(files.values()):
        save_file(
            {key: weights[key] for key in weights if files[key] == file}, folder / file, {"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def edit(folder, action):
    """Change the weights of a release in one file."""
    weights = load_file(folder / "model.safetensors")
    action(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def run(folder, name="native"):
    out = folder.parent / name
    convert_videollama3.main([str(folder), str(out)])
    return out


def refused(folder, message, out=None):
    """Converting ends with one line that has `message` in it, and writes nothing."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(SystemExit, match=message) as stopped:
        convert_videollama3.main([str(folder), str(out or folder.parent / "native")])
    assert "\n" not in str(stopped.value) and sorted(folder.parent.rglob("*")) == before
    return str(stopped.value)


def one_frame(golden):
    return Clip(golden["frame"].numpy()[None], np.zeros(1))


# ---- the same model


@pytest.mark.parametrize("merge", [1, 2])
def test_features_of_a_frame_equal_those_of_the_authors_code(folder, golden, merge):
    out = run(folder)
    model, processor = load_base(out).eval(), load_processor(out)
    pixels = processor.video_processor(
        [golden["frame"].numpy()[None]], do_resize=False, merge_size=merge, return_tensors="pt"
    )
    with torch.no_grad():
        found = model.model.get_video_features(
            pixels["pixel_values_videos"], pixels["video_grid_thw"], pixels["video_merge_sizes"]
        ).pooler_output[0]
    torch.testing.assert_close(found, golden[f"features_merge_{merge}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_the_original_language_model(release, golden, tied):
    folder, language = release(tied=tied)
    out = run(folder)
    model, processor = load_base(out).eval(), load_processor(out)
    inputs = collate(
        [encode(processor, one_frame(golden), [Turn("What moves?", "The red circle.")])], pad_id=0
    )
    del inputs["labels"]
    # The authors put features in the place of <image> and hand the embeddings to Qwen2.
    seen = inputs["input_ids"] == model.config.video_token_id
    with torch.no_grad():
        embedded = language.model.embed_tokens(inputs["input_ids"].masked_fill(seen, 0))
        embedded[seen] = golden["features_merge_2"]
        expected = language(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).logits
        found = model(**inputs).logits
    assert seen.sum() == 6 and expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_tied_exactly_when_the_release_says_so(release, tied):
    out = run(release(tied=tied)[0])
    model = load_base(out)
    embedding = model.get_input_embeddings().weight
    assert (model.lm_head.weight is embedding) == tied
    assert torch.equal(model.lm_head.weight, embedding) == tied
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) == (not tied)
    assert (model.config.tie_word_embeddings, model.config.text_config.tie_word_embeddings) == (tied, tied)


def test_a_stored_head_that_equals_the_embedding_is_accepted(folder):
    edit(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in load_file(run(folder) / "model.safetensors")


@pytest.mark.parametrize("vision", [PREFIX, "model.vision_encoder.vision_encoder."])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_weight_is_carried_bit_for_bit(release, monkeypatch, vision, sharded):
    folder, _ = release(tied=False, dtype=torch.bfloat16, vision=vision)
    before = load_file(folder / "model.safetensors")
    if sharded:
        shard(folder)
        monkeypatch.setattr(convert, "FILE_BYTES", 40_000)
    out = run(folder)
    after = {}
    for file in sorted(out.glob("*.safetensors")):
        assert not after.keys() & load_file(file).keys()
        after |= load_file(file)
    files = len(list(out.glob("*.safetensors")))
    assert (files > 2 and (out / "model.safetensors.index.json").is_file()) if sharded else files == 1
    assert len(before) == len(after)
    for name, value in before.items():
        assert after[convert.native_name(name)].dtype == torch.bfloat16
        assert torch.equal(after[convert.native_name(name)], value), name
    model, info = AutoModelForImageTextToText.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.bfloat16
    assert all(torch.equal(value, after[name]) for name, value in model.state_dict().items())


def test_types_may_differ_between_weights(release):
    folder, _ = release(dtype=torch.bfloat16)
    edit(folder, lambda w: w.update({NORM: w[NORM].float()}))
    done = convert.convert(folder, folder.parent / "native")
    assert done.dtypes == {"bfloat16": 81, "float32": 1}
    weights = load_file(folder.parent / "native" / "model.safetensors")
    assert weights["model.language_model.norm.weight"].dtype == torch.float32


def test_no_file_of_the_release_is_executed(folder):
    out = run(folder)
    checkpoint.load(out)
    assert not (folder / "executed").exists()
    assert not [
        file for file in out.rglob("*") if file.suffix == ".py" or "auto_map" in file.read_text("latin1")
    ]


# ---- settings, tokenizer, processor


def test_settings_are_carried(folder):
    out = run(folder)
    model = load_base(out)
    text = model.config.text_config
    for name, value in LANGUAGE.items():
        if not name.startswith("rope_"):
            assert getattr(text, name) == value, name
    assert text.rope_parameters == {"rope_theta": 1000000.0, "rope_type": "default"}
    written = json.loads((out / "config.json").read_text())["vision_config"]
    assert {name: written[name] for name in VISION} == {**VISION, "model_type": "video_llama_3_vision"}
    assert (written["hidden_act"], written["layer_norm_eps"]) == ("gelu_pytorch_tanh", 1e-6)
    generation = model.generation_config
    assert (generation.eos_token_id, generation.pad_token_id, generation.bos_token_id) == ([2, 0], 0, 0)
    assert (generation.temperature, generation.top_k, generation.repetition_penalty) == (0.7, 20, 1.05)


def test_rope_scaling_and_missing_generation_settings(folder):
    change(folder, "config.json", rope_scaling={"type": "linear", "factor": 2.0}, pad_token_id=0)
    (folder / "generation_config.json").unlink()
    model = load_base(run(folder))
    expected = {"rope_theta": 1000000.0, "rope_type": "linear", "factor": 2.0}
    assert model.config.text_config.rope_parameters == expected
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 0)


def test_processor_values_are_the_release_s(folder):
    change(folder, "preprocessor_config.json", image_std=[0.4, 0.5, 0.6], min_tokens=8)
    change(folder, "config.json", use_token_compression=False)
    processor = AutoProcessor.from_pretrained(run(folder))
    images, videos = processor.image_processor, processor.video_processor
    for part in (images, videos):
        assert list(part.image_mean) == [0.5, 0.5, 0.5] and list(part.image_std) == [0.4, 0.5, 0.6]
        assert part.patch_size == 14 and part.rescale_factor == 1 / 255
    assert (images.merge_size, videos.merge_size) == (1, 2)
    # As in the native release of the same model, for min_tokens=16 twice the first.
    assert dict(images.size) == {"shortest_edge": 1568, "longest_edge": 3211264}
    assert dict(videos.size) == {"shortest_edge": 6272, "longest_edge": 12845056}
    assert (videos.max_frames, videos.fps, videos.use_token_compression) == (180, 1, False)


def test_what_the_authors_files_leave_out_has_the_authors_default(folder):
    nothing = dict.fromkeys(("image_mean", "image_std", "min_tokens", "max_tokens", "patch_size"))
    change(folder, "preprocessor_config.json", **nothing)
    (folder / "processor_config.json").unlink()
    processor = AutoProcessor.from_pretrained(run(folder))
    assert list(processor.image_processor.image_mean) == [0.48145466, 0.4578275, 0.40821073]
    assert dict(processor.image_processor.size) == {"shortest_edge": 3136, "longest_edge": 3211264}
    assert (processor.video_processor.max_frames, processor.video_processor.merge_size) == (128, 2)


def test_the_tokenizer_splits_and_numbers_text_as_before(folder):
    before = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = load_processor(run(folder)).tokenizer
    assert tokenizer.get_vocab() == before.get_vocab()
    text = "<|im_start|>user\nTime 0.5s:<image>,What moves in 2024?\n\nÜber <|stream_end|><|im_end|>\n"
    assert tokenizer(text)["input_ids"] == before.encode(text).ids
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (1234, "right")


@pytest.mark.parametrize("spare, rows", [(9, 0), (1, 1), (0, 2)])
@pytest.mark.parametrize("tied", [True, False])
def test_placeholders_that_the_tokenizer_lacks_take_spare_rows_or_new_ones(release, spare, rows, tied):
    folder, _ = release(placeholders=False, spare_rows=spare, tied=tied)
    before = load_file(folder / "model.safetensors")
    image = json.loads((folder / "config.json").read_text())["image_token_index"]
    done = convert.convert(folder, folder.parent / "native")
    assert done.added_tokens == ["<|image_pad|>", "<|video_pad|>"] and done.new_rows == rows
    loaded = checkpoint.load(folder.parent / "native")
    config, tokenizer = loaded.model.config, loaded.processor.tokenizer
    first = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    assert (config.image_token_id, config.video_token_id) == (first, first + 1)
    both = [config.image_token_id, config.video_token_id]
    assert tokenizer.decode(both) == "<|image_pad|><|video_pad|>"
    assert tokenizer.decode(both, skip_special_tokens=True) == ""
    pairs = [("model.embed_tokens.weight", loaded.model.get_input_embeddings().weight)]
    pairs += [] if tied else [("lm_head.weight", loaded.model.lm_head.weight)]
    for name, after in pairs:
        assert len(after) == config.text_config.vocab_size == first + max(spare, 2)
        assert torch.equal(after[: first + spare], before[name])
        assert torch.equal(after[first + spare :], before[name][image].expand(rows, -1))


def test_the_chat_template_is_our_layout(folder):
    processor = load_processor(run(folder))
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]},
        {"role": "assistant", "content": "The red circle."},
        {"role": "user", "content": [{"type": "text", "text": "Where to?"}]},
    ]
    turns = [Turn("What moves?", "The red circle."), Turn("Where to?")]
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == conversation_text(turns, video_token=processor.video_token)


def test_a_clip_is_encoded_answered_and_trained_on_with_moss(folder, noise_clip, moss):
    out = run(folder)
    loaded = checkpoint.load(out)
    example = encode(loaded.processor, noise_clip(), [Turn("What moves?")])
    placeholders = example["input_ids"] == loaded.model.config.video_token_id
    assert placeholders.sum() == example["video_compression_mask"].sum() == 4 * 4
    batch = collate([example], pad_id=loaded.processor.tokenizer.pad_token_id, left=True)
    del batch["labels"]
    answer = loaded.model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] <= batch["input_ids"].shape[1] + 3
    with_moss = load_base(out, moss={**moss, "moss_after_layer": 2}).eval()
    with torch.no_grad():
        assert torch.equal(with_moss(**batch).logits, loaded.model(**batch).logits)


def test_the_script_says_what_it_did(release, capsys):
    folder, _ = release(dtype=torch.bfloat16, tied=False, placeholders=False, spare_rows=0)
    out = run(folder)
    said = capsys.readouterr().out
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in said.splitlines()[1:5]}
    sizes = {key: value.numel() for key, value in load_file(out / "model.safetensors").items()}
    vision = [size for key, size in sizes.items() if key.startswith("model.vision_model.")]
    assert rows["vision encoder"] == [str(len(vision)), f"{sum(vision):,}"] == ["52", "42,984"]
    assert rows["projector"] == ["4", f"{32 * 48 + 48 + 48 * 48 + 48:,}"]
    assert rows["all"] == [str(len(sizes)), f"{sum(sizes.values()):,}"]
    assert "stored as bfloat16 (83)\nhead: weights of its own\n" in said
    assert "added <|image_pad|> and <|video_pad|>; embedding: 2 new rows" in said
    assert "settings without a place in the native format (1): vision_encoder_lr\n" in said
    assert said.endswith(f" --data FAVOR/prepared/kept.json --model {out}\n")


# ---- what is refused


def test_weights_that_do_not_fit_are_all_named(folder):
    def spoil(weights):
        weights["model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(2, 48)
        weights["base_model.extra"] = torch.zeros(1)
        del weights["model.mm_projector.readout.2.bias"]
        del weights["model.vision_encoder.encoder.layers.2.mlp.fc1.weight"]
        weights[NORM] = torch.zeros(47)
        twice = weights["model.vision_encoder.post_layernorm.bias"].clone()
        weights["model.vision_encoder.vision_encoder.post_layernorm.bias"] = twice

    edit(folder, spoil)
    said = refused(folder, "6 weights do not fit config.json: .* Merge adapters")
    for offender in (
        "model.layers.0.self_attn.q_proj.lora_A.weight has no place",
        "base_model.extra has no place",
        "model.projector.readout.2.bias is missing",
        "model.vision_model.encoder.layers.2.mlp.fc1.weight is missing",
        r"model.norm.weight is (47,) instead of (48,)",
        "model.vision_encoder.vision_encoder.post_layernorm.bias is the same as "
        "model.vision_encoder.post_layernorm.bias",
    ):
        assert offender in said


def test_a_head_that_is_missing_or_not_the_embedding_it_is_tied_to_is_refused(release):
    folder, _ = release(tied=False)
    change(folder, "config.json", tie_word_embeddings=True)
    refused(folder, "tie_word_embeddings is true in config.json, but lm_head.weight is not the embedding")
    change(folder, "config.json", tie_word_embeddings=False)
    edit(folder, lambda weights: weights.pop("lm_head.weight"))
    refused(folder, "1 weights do not fit config.json: lm_head.weight is missing")


def test_quantised_pickled_and_lora_weights_are_refused_unopened(folder):
    edit(folder, lambda weights: weights.update({NORM: weights[NORM].to(torch.int8)}))
    refused(folder, r"weights can be F64, F32, F16, BF16, not model.norm.weight \(I8\)")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, r"the weights are pickled \(pytorch_model.bin\).* use a release with safetensors")
    for name in ("adapter_config.json", "non_lora_trainables.bin"):
        (folder / name).touch()
        refused(folder, f"{name} belongs to a LoRA run; merge it")
        (folder / name).unlink()


def test_missing_and_stray_files_are_refused(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").rename(folder / "other.safetensors")
    refused(folder, "model-00002-of-00003.safetensors not there; download the release again")
    shutil.copy(folder / "other.safetensors", folder / "model-00002-of-00003.safetensors")
    refused(folder, "other.safetensors not named by model.safetensors.index.json")


@pytest.mark.parametrize("kept", [-100, 2000, 5, 0])
def test_a_file_cut_short_is_refused(folder, kept):
    shard(folder)
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, "model-00003-of-00003.safetensors: cannot be read as safetensors .* download it again")


def test_a_missing_or_broken_json_file_is_refused(folder):
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[:-3])
        refused(folder, f"{name}: cannot be read as JSON .* download it again")
        (folder / name).unlink()
        refused(folder, f"{name} is not there; the release is incomplete")
        (folder / name).write_text(text)
    (folder / "tokenizer.json").unlink()
    refused(folder, "tokenizer.json: cannot be read .* download it again")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model_type": "qwen2"}, "model 'qwen2' with encoder .* is not VideoLLaMA3"),
        ({"mm_projector_type": "linear"}, "projector 'linear' is not VideoLLaMA3, which has"),
        ({"vision_encoder_config": {**VISION, "model_type": "siglip"}}, "encoder 'siglip' and projector"),
        (
            {"vision_encoder_config": None, "vision_encoder": "OWNER/SigLIP"},
            "vision_encoder='OWNER/SigLIP' and no vision_encoder_config, as a training run saves it; put",
        ),
        (
            {"hidden_size": None, "image_token_index": None},
            "config.json has no hidden_size, image_token_index",
        ),
        ({"image_token_index": 7}, "image_token_index 7, the tokenizer .* has <image> at 287; take both"),
        ({"vocab_size": 289}, "config.json has 289 tokens .* the tokenizer counts to 289 and"),
        (
            {"vision_encoder_config": {**VISION, "patch_size": 16}},
            "patch_size is 14 in preprocessor_config.json",
        ),
    ],
)
def test_another_model_is_refused(folder, values, message):
    change(folder, "config.json", **values)
    refused(folder, message)


def test_settings_of_the_encoder_are_found_under_either_name(folder):
    change(folder, "config.json", vision_encoder_config=None, vision_encoder=VISION)
    assert load_base(run(folder)).config.vision_config.num_attention_heads == 2


def test_a_tokenizer_without_the_layout_s_tokens_is_refused(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|other|>"))
    refused(folder, r"the tokenizer has no <\|im_end\|>; it is not VideoLLaMA3's")


def test_nothing_is_overwritten(folder):
    refused(folder, "is the release itself; give another folder", out=folder)
    out = folder.parent / "native"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused(folder, "native: exists and is not an empty folder; give another, or remove it")
    (out / "notes.txt").unlink()
    part = folder.parent / ".native.part"
    part.mkdir()
    refused(folder, "belongs to a conversion that was killed or is running; remove it if none is running")
    part.rmdir()
    load_base(run(folder))  # an empty folder is taken


def test_a_conversion_that_fails_leaves_nothing_behind(folder, monkeypatch, capsys):
    monkeypatch.setattr(convert, "FILE_BYTES", 40_000)

    def stop(file):
        raise OSError("disk full")

    monkeypatch.setattr(convert, "readable", stop)  # after the first file
    with pytest.raises(OSError, match="disk full"):
        convert.convert(folder, folder.parent / "native")
    assert [file.name for file in folder.parent.iterdir()] == ["release"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    monkeypatch.setattr(convert, "save_file", lambda *_: signal.raise_signal(signal.SIGINT))
    refused(folder, "130")
    assert capsys.readouterr().err.endswith("stopped; nothing was written\n")
