"""Convert the authors' release of VideoLLaMA3 (remote code) to transformers' own format, which is used here.

    hf download DAMO-NLP-SG/VideoLLaMA3-2B --local-dir VideoLLaMA3-2B
    python scripts/convert_videollama3.py VideoLLaMA3-2B VideoLLaMA3-2B-native

It reads json and safetensors; no Python file of the release is run. Every weight must have a place and every
place a weight: otherwise the error names all of them and nothing is written. Weights keep the type they are
stored in. The chat template written is this project's: the authors' layout without their optional system
prompt. `--model`, `moss_vllm.vlm.checkpoint.load` and transformers' Auto classes open the folder written.
"""

import shlex
from pathlib import Path

from rich.table import Table

from moss_vllm.commands import is_starting
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.runtime.spelling import spelled


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("source", type=Path, help="folder of the downloaded release")
    parser.add_argument("out", type=Path, help="folder to write: a new or an empty one")
    return parser


if is_starting(__name__):
    answer_help(options)

from moss_vllm.vlm.video_llama3.convert import Conversion, convert


@errors_in_one_line("nothing was written")
def main(argv: list[str] | None = None) -> Conversion:
    """Convert, and print what was written; a wrong folder or file ends the script with one line."""
    args = options().parse_args(argv)
    done = convert(args.source.expanduser(), args.out.expanduser())
    show(done, args.out)
    return done


def show(done: Conversion, out: Path) -> None:
    """Print the parts, what was added or left out, and the next command."""
    table = Table("part", "tensors", "parameters", box=None, pad_edge=False)
    table.columns[1].justify = table.columns[2].justify = "right"
    for part, tensors in done.tensors.items():
        table.add_row(part, f"{tensors:,}", f"{done.parameters[part]:,}")
    table.add_row("all", f"{sum(done.tensors.values()):,}", f"{sum(done.parameters.values()):,}")
    Screen().print(table)
    say("stored as", ", ".join(f"{dtype} ({count:,})" for dtype, count in done.dtypes.items()))
    say("head:", "tied to the embedding" if done.tied else "weights of its own")
    if done.added_tokens:
        say(f"tokenizer: added {' and '.join(done.added_tokens)}; embedding: {done.new_rows} new rows")
    if done.not_carried:
        count, names = len(done.not_carried), ", ".join(done.not_carried)
        say(f"settings without a place in the native format ({count}): {names}")
    config = "recipes/configs/favor_videollama3_2b.yaml"
    data = "FAVOR/prepared/kept.json"
    launch = "accelerate launch recipes/favor_lora.py"
    say(spelled(f"next: {launch} --config {config} --data {data} --model {shlex.quote(str(out))}"))
