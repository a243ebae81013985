"""Owns: every documented form of an access key is found, and ordinary cards, configs and hashes have none."""

import base64
import json

import pytest

from moss_vllm.report.model_card import model_card
from moss_vllm.report.private import find_secrets, hide_secrets, without_path, without_places
from moss_vllm.vlm.places import MINIATURE

HEX = "0123456789abcdef0123456789abcdef01234567"
NETRC = f"machine api.wandb.ai\n  login user\n  password {HEX}\n"


def in_base64(text):
    return base64.b64encode(text.encode()).decode()


def wrapped(text, width=76):
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))


KEYS = [
    "hf_abcdefghijklmnopqrstuv",
    f"--wandb-key {HEX}",
    HEX,
    "AKIAABCDEFGHIJKLMNOP",
    f"ghp_{'a' * 36}",
    f"github_pat_{'a' * 40}",
    f"sk-proj-{'b' * 40}",
    "xoxb-1234567890-abcdefgh",
    f"AIza{'x' * 35}",
    "-----BEGIN OPENSSH PRIVATE KEY-----",
    "https://jane:pw@host/x.git",
    "--token abcdefgh",
    "--hub-token=abcdefgh",
    "WANDB_API_KEY=abcdefgh",
    "-----BEGIN SSH2 ENCRYPTED PRIVATE KEY-----",
    f"https://host/x?X-Amz-Signature={HEX}{HEX[:24]}",
    f"dapi{HEX[:32]}",
    "login jane password hunter2secret",
    "MYSQL_PWD=hunter2secret",
    "Authorization: Bearer abcdefgh123",
    f"xai-{'c' * 40}",
    f"hvs.{'d' * 30}",
    f"123456789:AA{'e' * 33}",
    "Cookie: session=abcdefgh123",
    "curl -u jane:hunter2secret x",
    "PASS=hunter2secret",
    "--pass hunter2secret",
    "secret_access_key: abcdefgh123",
    "https://jane%3Apw123@host/x",
    f"AC{HEX[:32]}",
    f"SK{HEX[:32]}",
    f"key-{HEX[:32]}",
    f"{HEX[:32]}-{HEX[:8]}-{HEX[8:16]}",
    in_base64('{"api_address":"https://app.neptune.ai","api_url":"x","api_key":"0a1b2c3d"}'),
    in_base64('{"api_url":"https://app.neptune.ai","api_key":"0a1b2c3d-0000-4000-8000-000000000000"}'),
    in_base64(NETRC),
    wrapped(in_base64(NETRC)),
    wrapped(in_base64(NETRC)).replace("\n", "\\n"),
    f"API key: {HEX[:32]}",
    f"the secret of comet is {HEX[:32]}",
    f'"comet_key": "{HEX[:32]}"',
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_found_and_cut_short(key):
    text = f"first line\na.py {key} --steps 3"
    found = list(find_secrets(text))
    assert found and {line for line, _ in found} == {2}
    longest = max(key.split(), key=len)
    assert not any(longest in kind for _, kind in found) and key not in hide_secrets(text)


@pytest.mark.parametrize("place", [4, 5, 6])
def test_a_key_in_base64_is_found_at_any_byte(place):
    assert list(find_secrets(in_base64("x" * place + NETRC)))


README = f"""---
license: apache-2.0
base_model: DAMO-NLP-SG/VideoLLaMA3-2B
---
# VideoLLaMA3ForConditionalGeneration, fine-tuned by supervised-instruction-tuning

Weights at [commit {HEX}](https://huggingface.co/me/moss/tree/{HEX}), code at
https://github.com/me/moss/blob/{HEX}/README.md; `pip install git+https://github.com/me/moss@{HEX}`.
sha256 {HEX}{HEX[:24]}, md5 of the tokenizer {HEX[:32]}; seed 3407.
The key to motion is the second order; answers have 32 tokens: max_new_tokens=32, top_k = 50.
See https://arxiv.org/abs/2501.13106 and Fig. 3; data from s3 or http mirrors, and/or local files.
"""
CONFIG = {
    "_commit_hash": HEX,
    "base_revision": HEX,
    "fingerprint": HEX[:16],
    "weights": f"{HEX}{HEX[:24]}",
    "etag": f"{HEX[:32]}",
    "id": "01234567-89ab-4cde-8f01-23456789abcd",
    "architectures": ["MossVideoLlama3ForConditionalGeneration"],
    "eos_token": "abcdefgh",
    "image_token": "<|image_pad|>",
    "image_token_id": 151655,
    "tokenizer_class": "Qwen2TokenizerFast",
    "model_input_names": ["pixel_values_videos", "video_compression_mask"],
    "key_value_heads": 2,
}


@pytest.mark.parametrize(
    "text",
    [
        f'"base_revision": "{HEX}"',
        f"--revision {HEX}",
        f"--data owner/name:train@{HEX}",
        "--max-tokens 4096 --compress-tokens",
        README,
        json.dumps(CONFIG),
        json.dumps(CONFIG, indent=2),
        model_card(
            "me/moss",
            {
                "base_model": "someone/base",
                "base_revision": HEX,
                "base_fingerprint": HEX[:16],
                "command": "recipes/favor_lora.py --data FAVOR --max-tokens 4096",
                "settings": {"data": "FAVOR", "lr_moss": 1e-3, "max_tokens": 4096, "seed": 0},
                "versions": {"torch": "2.12.1+cpu", "transformers": "5.23.0"},
                "moss": {"moss_window": [7, 11, 11]},
            },
            merged=False,
        ),
        *(
            file.read_text()
            for file in sorted(MINIATURE.iterdir())
            if file.suffix in (".json", ".jinja") and file.stem != "tokenizer"
        ),
    ],
)
def test_ordinary_text_has_no_key(text):
    assert list(find_secrets(text)) == []
    assert hide_secrets(text) == text


@pytest.mark.parametrize(
    "text, published",
    [
        ("/home/jane", "HOME"),
        ("/u/jane/", "HOME"),
        ("see /u/jane/ and /u/jane/runs/FAVOR", "see HOME and FAVOR"),
        ("file:///u/jane", "HOME"),
        ("C:\\Users\\jane\\FAVOR", "FAVOR"),
        ("see /mnt/jane/FAVOR and 2/3 or and/or", "see FAVOR and 2/3 or and/or"),
        ("https://files.intern/x/FAVOR", "FAVOR"),
        ("logs on http://node17:8080/ today", "logs on HOST today"),
        ("logs on http://node17:8080/runs/a?from=node17#node17", "logs on a"),
        ("tcp://10.0.0.7:29500", "HOST"),
        ("http://node17/~jane/", "HOME"),
        ("https://huggingface.co/zl2048/FAVOR", "https://huggingface.co/zl2048/FAVOR"),
        ("see https://arxiv.org/abs/2501.13106.", "see https://arxiv.org/abs/2501.13106."),
        ("mail jane@node7.intern", "mail ACCOUNT"),
        ("runs/favor_lora", "runs/favor_lora"),
    ],
)
def test_names_stand_in_place_of_places(text, published):
    assert without_places({"a": [text]}) == {"a": [published]}


def test_outside_records_only_whole_paths_are_replaced():
    kept = {"eos": "</s>", "think": "/think", "page": "https://huggingface.co/docs", "note": "see /a/b"}
    assert without_path(kept) == kept
    places = {"a": "/home/jane/base", "b": "http://node17:8080/base", "c": ["file:///u/jane/base"]}
    assert without_path(places) == {"a": "base", "b": "base", "c": ["base"]}
