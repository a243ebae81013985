"""Merge a checkpoint into one full model: LoRA added to the weights, trained projector and MOSS in place.

    python scripts/merge.py runs/favor_lora/step-000360 runs/merged
    python scripts/merge.py CKPT OUT --precision fp32

OUT has safetensors (shards of 4 GB), processor, generation config, the run's record (merged.json), and
README.md with the code that opens it. `AutoModelForImageTextToText.from_pretrained(OUT)` opens a model
without MOSS in plain transformers, and a VideoLLaMA3 with MOSS after `import moss_vllm.vlm`; other families
with MOSS are opened by `moss_vllm.vlm.checkpoint.load(OUT)`, as transformers would drop MOSS. The evaluations
and `scripts/ask.py` take it as `--ckpt`, the recipe as `--model`.

The folder is reloaded and its logits are compared with the checkpoint's before it gets its name. The script
runs on the CPU in float32, in 4 bytes of memory per parameter. A checkpoint trained on a 4-bit base is merged
into the base in full; the answers then differ a little from those in training.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from moss_vllm.commands import is_starting
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import PRECISIONS, Flags, answer_help
from moss_vllm.runtime.screen import say, working
from moss_vllm.runtime.spelling import command


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="a step-NNNNNN folder of a run")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write: a new or an empty one")
    precision = "number format of the weights written"
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help=precision)
    return parser


if is_starting(__name__):
    answer_help(options)

from moss_vllm.report.model_card import loading_code, merged_readme
from moss_vllm.runtime.files import is_filled, read_json, readable, write_whole
from moss_vllm.runtime.precision import DTYPES
from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.runtime.quiet import quiet
from moss_vllm.vlm.base import TO_TRAIN
from moss_vllm.vlm.checkpoint import load
from moss_vllm.vlm.families import family_of
from moss_vllm.vlm.places import MERGED_FILE, base_record
from moss_vllm.vlm.reload_check import next_logits

SHARD = "4GB"
# Largest difference of a logit that rounding the weights explains, as a share of the largest logit.
ALLOWED = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1}


@errors_in_one_line()
def main(argv: list[str] | None = None) -> float:
    """Merge, compare, rename; returns the largest difference of a logit."""
    args = options().parse_args(argv)
    folder, out = args.checkpoint.expanduser(), args.out.expanduser()
    if not (folder / RUN_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {RUN_FILE}, so there is nothing to merge; give a step-NNNNNN folder of a run"
        )
    if is_filled(out):
        raise FileExistsError(f"{out} exists and is not empty; name a new folder")

    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        record, expected = write_merged(folder, part, args.precision)
        (part / "README.md").write_text(merged_readme(out.name, record))
        with working("comparing it with the checkpoint"):
            reloaded = load(part)
            difference = float((next_logits(reloaded.model, reloaded.processor) - expected).abs().max())
        largest = float(expected.abs().max())
        say(f"logits differ by at most {difference:.2g}; the largest is {largest:.3g}")
        if not difference <= ALLOWED[args.precision] * largest:
            raise ValueError(
                f"{folder} merged in {args.precision} does not answer like the checkpoint: a difference of "
                f"{ALLOWED[args.precision] * largest:.2g} is allowed; nothing is written, try --precision "
                "fp32"
            )
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    ask = command("scripts/ask.py", "VIDEO", "--ckpt", out)
    say(f"written to {out}; ask it: {ask}, or in Python:", end="\n\n")
    say(*loading_code(str(out), record, merged=True).split("\n"), sep="\n")
    return difference


def write_merged(folder: Path, part: Path, dtype: str) -> tuple[dict[str, Any], Any]:
    """Write the merged model of the checkpoint `folder`; returns its record, and the checkpoint's logits."""
    with working("opening the checkpoint"):
        loaded = load(folder)
        expected = next_logits(loaded.model, loaded.processor)
    with working("merging and writing"):
        peft_model: Any = loaded.model
        model = peft_model.merge_and_unload().to(DTYPES[dtype])
        with quiet():
            model.save_pretrained(part, max_shard_size=SHARD)
        family = family_of(model.config)
        if family.opens_stock_classes and family.has_moss(model.config):
            config = {**read_json(part / "config.json"), "model_type": family.model_types[1]}
            write_whole(part / "config.json", json.dumps(config, indent=2) + "\n")
        readable(*part.glob("*.safetensors"))
        loaded.processor.save_pretrained(part)
        record = {**loaded.run, "merged_from": loaded.name}
        of_base = base_record(loaded.run["base_model"], loaded.run["base_revision"])
        if record["moss"] is None and (sizes := of_base.get(TO_TRAIN) or of_base.get("moss")):
            record[TO_TRAIN] = sizes  # the base names them for training with MOSS later
        (part / MERGED_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return record, expected
