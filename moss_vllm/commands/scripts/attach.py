"""Attach a new MOSS to a Video-LLM of transformers' own classes, and save it for `moss_vllm.load`.

    python scripts/attach.py Qwen/Qwen2.5-VL-3B-Instruct --out runs/qwen_moss
    python scripts/attach.py miniature --after-layer 3 --out runs/attached

MODEL keeps its weights where they are. OUT gets MOSS, whose output is zero until it is trained, and the
projector, which is trained with it; `moss_vllm.load(OUT)` opens both on their base, and peft's LoRA and a
training loop of your own go on from there (docs/attach.md has one). The script runs on the CPU and needs
memory for the whole model in the format that its weights are stored in.
"""

from pathlib import Path

from moss_vllm.commands import is_starting
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags, answer_help, triple
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import say, working


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder or hub id of a model in docs/attach.md, or 'miniature'")
    add("--revision", help="branch, tag or commit of a hub id")
    add("--out", type=Path, required=True, help="folder to write: a new or an empty one")
    layer = "layer of the vision tower, from 1, whose features MOSS reads (default: 6 of 27, in proportion)"
    add("--after-layer", type=FROM_ONE, metavar="N", help=layer)
    add("--orders", type=FROM_ONE, nargs="+", metavar="N", help="orders of self-similarity (paper: 1 2)")
    add("--window", type=triple, metavar="L,U,V", help="odd sizes in steps of time and cells (paper: 5,9,9)")
    return parser


if is_starting(__name__):
    answer_help(options)

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForImageTextToText, PreTrainedModel

from moss_vllm.runtime.files import is_filled, read_json
from moss_vllm.runtime.quiet import quiet
from moss_vllm.vlm.attach import VIDEO_LLM_HOSTS, attach, no_host, trained_modules
from moss_vllm.vlm.attached_folder import save_attached
from moss_vllm.vlm.places import find_file, resolve


@errors_in_one_line("nothing was written")
def main(argv: list[str] | None = None) -> None:
    """Open, attach and save; say what was attached and how it is opened."""
    args = options().parse_args(argv)
    out = args.out.expanduser()
    if is_filled(out):
        raise FileExistsError(f"{out} exists and is not empty; name a new folder")
    sizes = {name: getattr(args, name) for name in ("after_layer", "orders", "window")}
    with working("opening the model"):
        model = open_stock(args.model, args.revision)
    attach(model, **{name: value for name, value in sizes.items() if value is not None})
    save_attached(model, out)
    mib = sum(file.stat().st_size for file in out.iterdir()) / 2**20
    say(f"to be trained whole: {', '.join(trained_modules(model))}")
    say("the language model sees as many tokens as before, and the same ones until MOSS is trained")
    say(f"written to {out} ({mib:.1f} MiB, the base stays where it is); in Python:", end="\n\n")
    say("import moss_vllm", "", f"model = moss_vllm.load({str(out)!r})", sep="\n")


def open_stock(source: str, revision: str | None) -> PreTrainedModel:
    """The model of a folder or a hub id, as it is stored.

    Raises: FileNotFoundError for no model there; ValueError for one of no kind that MOSS attaches to, or
    with a config of other types.
    """
    place = resolve(source)
    file = find_file(place, "config.json", revision)
    if file is None:
        raise FileNotFoundError(f"{source} has no config.json; give a folder or hub id of a whole model")
    model_type = read_json(file, "fetch it again").get("model_type")
    if not any(model_type in host.model_types for host in VIDEO_LLM_HOSTS):
        raise no_host(f"{source}, of model_type {model_type!r}")
    try:
        with quiet():
            model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
                place, revision=revision, use_safetensors=True, dtype="auto"
            )
    except StrictDataclassError as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}; fetch it again") from error
    return model
