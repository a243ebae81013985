"""Draw the paper's pictures of self-similarity: its toy clip (Figs. 3, 7), or any video (Figs. 5, 9-13).

    python scripts/visualize_stss.py --toy --animate runs/stss_toy.gif
    python scripts/visualize_stss.py --video clip.mp4 --animate runs/stss.mp4
    python scripts/visualize_stss.py --video clip.mp4 --query 4,6,9 --query 4,11,3 --orders 1 2
    python scripts/visualize_stss.py --video clip.mp4 --encoder vit_base_patch16_clip_quickgelu_224.openai
    python scripts/visualize_stss.py --video clip.mp4 --ckpt runs/favor_lora/step-000360

Columns are the frames of the query's temporal window. The first row shows them, with the query (in its own
frame) and the region it is compared with (green). Then come the similarity of the query to that region, a row
per order, and for whole frames what each order makes of them: the L2 norm of M^(n).

With --ckpt, tap, window, orders and encoders are the trained MOSS's own. Otherwise nothing is learned: the
features are the pixels of 14 x 14 patches or an encoder's tokens, less their mean over the clip (the toy's:
pixels on black); g is flattening over (L, U, V); and the last rows show the standard deviation of each
position's map over the frames of its window, because its norm is largest where everything looks alike.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.commands import is_starting
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.flags import Flags, answer_help, triple
from moss_vllm.runtime.ranges import FPS, FROM_ONE
from moss_vllm.runtime.screen import say
from moss_vllm.video.write import write_clip


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--toy", action="store_true", help="the paper's toy clip; no weights")
    what.add_argument("--video", type=Path, help="a video file or a folder of frames")
    parser.add_argument("--orders", type=FROM_ONE, nargs="+", help="(default: 1 2 3, or the checkpoint's)")
    out = "default: runs/stss.png; runs/stss_VIDEO.png with --video; runs/stss_VIDEO_CKPT.png with --ckpt"
    parser.add_argument("--out", type=Path, metavar="FILE", help=out)
    parser.add_argument("--animate", type=Path, metavar="FILE", help="also a .gif or .mp4, frame by frame")

    source = parser.add_argument_group("with --video")
    add = source.add_argument
    add("--ckpt", metavar="FOLDER", help="checkpoint of recipes/favor_lora.py, trained with MOSS")
    add("--encoder", metavar="NAME", help="raw (patch pixels; the default) or a ViT of timm, by its name")
    add("--after-layer", type=FROM_ONE, metavar="K", help="layer of the timm ViT (default: 6)")
    add("--weights", help="weights of the timm ViT: a file, or 'random'; default: timm's own")
    where = "frame and grid cell to look from, from 0; repeat for more; default: where most moves"
    add("--query", type=lambda t: Query(*triple(t)), action="append", metavar="T,Y,X", help=where)
    add("--window", type=triple, metavar="L,U,V", help="odd sizes in frames and cells (default: 5,9,9)")
    add("--sample-fps", type=FPS, help="frames read per second (default: 4, or the checkpoint's)")
    add("--max-frames", type=FROM_ONE, help="thin longer videos evenly to this many frames (default: 16)")
    return parser


if is_starting(__name__):
    answer_help(options)

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moss_vllm.report.plots import DOTS_PER_INCH
from moss_vllm.report.stss_features import load_vit, vit_features
from moss_vllm.report.stss_figure import Marked, Sheet, draw_column, draw_sheet, lay_out
from moss_vllm.report.stss_maps import (
    TOY_CELL_PX,
    TOY_WINDOW,
    OrderView,
    Query,
    flattened_orders,
    largest_window,
    learned_orders,
    patch_pixels,
    pick_query,
    toy_clip,
    toy_similarity,
)
from moss_vllm.video.clip import Clip, Sampling, read_clip
from moss_vllm.video.frames import ANY_SIDES, FrameSize

RAW_PATCH_PX = 14
QUERY_COLOURS = ("#e41a1c", "#ff8c00", "#d62ad0", "#00a6d6")
TOY_QUERY_COLOURS = {"brown": "#a0622d", "yellow": "#e0a800"}
ANIMATION_FPS, MP4_ROUNDS = 2, 4


@errors_in_one_line("what is written stays")
def main(argv: list[str] | None = None) -> Sheet:
    """Read, compare, draw; a wrong argument or file ends the script with one line."""
    args = parse(argv)
    sheet = toy(args.orders) if args.toy else video(args)
    with announced(args.out) as path:
        draw_sheet(sheet).savefig(path, dpi=DOTS_PER_INCH)
    if args.animate:
        with announced(args.animate) as path:
            write_animation([draw_column(sheet, i) for i in range(len(sheet.titles))], path)
    return sheet


@contextmanager
def announced(file: Path) -> Iterator[Path]:
    """`whole_file`, and a line that says whether it replaced an earlier file."""
    replaced = ", in place of an earlier one" * file.exists()
    with whole_file(file) as part:
        yield part
    say(f"wrote {file}{replaced}")


def default_out(args: argparse.Namespace) -> Path:
    """Where the picture goes without --out: a name for each video and checkpoint."""
    names = ["stss"]
    if args.video is not None:
        names.append(args.video.absolute().stem)
    if args.ckpt is not None:
        names.append("-".join(Path(args.ckpt).absolute().parts[-2:]))
    return Path("runs", "_".join(names) + ".png")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked against each other."""
    parser = options()
    args = parser.parse_args(argv)

    def flags_set(*names: str) -> list[str]:
        return ["--" + name.replace("_", "-") for name in names if getattr(args, name) is not None]

    of_vit = flags_set("after_layer", "weights")
    of_video = flags_set("ckpt", "encoder", "query", "window", "sample_fps", "max_frames") + of_vit
    if args.toy and of_video:
        parser.error(f"{of_video[0]} goes with --video, not with --toy")
    if args.ckpt is not None and (clash := flags_set("encoder", "window") + of_vit):
        parser.error(f"{clash[0]} does not go with --ckpt, which has its own")
    if of_vit and args.encoder in (None, "raw"):
        parser.error(f"{of_vit[0]} goes with --encoder and the name of a timm ViT")
    for name, path, kinds in (("--out", args.out, (".png",)), ("--animate", args.animate, (".gif", ".mp4"))):
        if path and path.suffix.lower() not in kinds:
            parser.error(f"{name} takes a name that ends in {' or '.join(kinds)}, got {path}")
        if path and path.is_dir():
            parser.error(f"{name} takes a file, and {path} is a folder")
    args.out = args.out or default_out(args)
    return args


def toy(orders: Sequence[int] | None) -> Sheet:
    """Figs. 3 and 7, and the numbers behind them."""
    drawn = toy_clip()
    pixels = patch_pixels(drawn.clip.frames, TOY_CELL_PX)
    views = flattened_orders(pixels, TOY_WINDOW, orders or (1, 2, 3))
    marked = [
        Marked(f"{name} query", query, TOY_QUERY_COLOURS[name]) for name, query in drawn.queries.items()
    ]
    say("mean similarity to the query, in the other frames of its window")
    for view in views:
        for name, query, _ in marked:
            means = toy_similarity(drawn, view, query)
            say(f"order {view.order}, {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in means.items()))
    title = "Toy clip, grid 20 x 24, all of it in the window\npixels of a cell, g = flattening over (L, U, V)"
    return lay_out(drawn.clip, views, marked, title=title, strength=None, scale=(0.0, 0.6))


def video(args: argparse.Namespace) -> Sheet:
    """Figs. 5 and 9-13."""
    if args.ckpt is not None:
        clip, views, source = from_checkpoint(args)
    else:
        clip, features, source = from_encoder(args)
        window = args.window or tuple(map(min, (5, 9, 9), largest_window(features)))
        views = flattened_orders(features, window, args.orders or (1, 2, 3))
    for view in views:
        if not (view.similarity.isfinite().all() and view.strength.isfinite().all()):
            raise ValueError(f"{source}: order {view.order} is not finite (NaN or inf); check the weights")
    _, height, width, *sides = views[0].similarity.shape
    if not args.query and len(clip.frames) < 2:
        raise ValueError(f"{args.video}: {one_frame(args)}; or give --query")
    queries = args.query or [pick_query(clip, (height, width), sides[0])]
    if not args.query:
        say(f"query {','.join(map(str, queries[0]))} (t,y,x), where most moves")
    names = ["query"] if len(queries) == 1 else [f"query {i}" for i in range(1, len(queries) + 1)]
    marked = [Marked(*one) for one in zip(names, queries, cycle(QUERY_COLOURS), strict=False)]
    strength = "change over $l$" if args.ckpt is None else "norm of M"
    title = f"{args.video.name}, grid {height} x {width}, window {' x '.join(map(str, sides))}\n{source}"
    return lay_out(clip, views, marked, title=title, strength=strength)


def read(args: argparse.Namespace, fps: float, short_side_px: int, sides: FrameSize = ANY_SIDES) -> Clip:
    """The video at --sample-fps, or at `fps` without it."""
    fps = fps if args.sample_fps is None else args.sample_fps
    frames = 16 if args.max_frames is None else args.max_frames
    return read_clip(args.video, Sampling(fps, short_side_px, frames, sides))


def one_frame(args: argparse.Namespace) -> str:
    """Why only one frame of the video was read, and what helps."""
    if len(read_clip(args.video, Sampling(sample_fps=100, max_frames=2)).frames) < 2:
        return "the video has one frame, and motion takes two; take another video"
    return "one frame was read, and motion takes two; raise --sample-fps or --max-frames"


def from_encoder(args: argparse.Namespace) -> tuple[Clip, Tensor, str]:
    """Clip, features of patch pixels or a timm ViT less their mean (1, T, H, W, C), and their name."""
    if args.encoder in (None, "raw"):
        clip, name = read(args, 4.0, 224), "patch pixels"
        features = patch_pixels(clip.frames, RAW_PATCH_PX)
    else:
        model, layer = load_vit(args.encoder, args.weights), args.after_layer
        layer = 6 if layer is None else layer
        clip, features = vit_features(model, read(args, 4.0, model.pretrained_cfg["input_size"][-1]), layer)
        name = f"{args.encoder} after layer {layer}{' (random weights)' if args.weights == 'random' else ''}"
    return clip, features - features.mean((1, 2, 3), keepdim=True), name


@torch.inference_mode()
def from_checkpoint(args: argparse.Namespace) -> tuple[Clip, list[OrderView], str]:
    """Clip, the orders of the checkpoint's MOSS at its own tap, and their name."""
    from moss_vllm.data.rows import Turn
    from moss_vllm.vlm.checkpoint import load
    from moss_vllm.vlm.hosts.clips import VideoMOSS
    from moss_vllm.vlm.hosts.host import Size
    from moss_vllm.vlm.processor import fit_clip_settings
    from moss_vllm.vlm.reload_check import model_inputs

    loaded = load(args.ckpt)
    model: Any = loaded.model
    settings, chat = loaded.family.moss_settings(model.config), loaded.family.chat
    if settings is None:
        raise ValueError(f"{args.ckpt} has no MOSS; give a checkpoint of recipes/favor_lora.py --use-moss")
    trained = fit_clip_settings(loaded.processor, {"short_side_px": 224, **loaded.run.get("protocol", {})})
    sides = chat.frame_size(loaded.processor)
    clip = read(args, trained.get("sample_fps", 2.0), trained["short_side_px"], sides)
    if len(clip.frames) < 2:
        raise ValueError(f"{args.video}: {one_frame(args)}")
    example = chat.encode(loaded.processor, clip, [Turn("What moves?")], compress=False)
    ran: list[tuple[VideoMOSS, Tensor]] = []

    def note(moss: VideoMOSS, inputs: tuple[Tensor, list[Size]]) -> None:
        tokens, sizes = inputs
        ran.append((moss, tokens.view(1, *sizes[0], -1)))

    for module in model.modules():  # peft keeps the untrained MOSS beside the trained one; it does not run
        if isinstance(module, VideoMOSS):
            module.register_forward_pre_hook(note)
    model(**model_inputs(model, loaded.processor, example))
    moss, features = ran[0]
    name = f"{loaded.name}, MOSS after layer {settings['moss_after_layer']}"
    shown = slice(None, None, chat.frames_per_step(loaded.processor))  # the first frame of each step
    clip = Clip(clip.frames[shown], clip.frame_times_s[shown])
    return clip, learned_orders(moss.maps(features), args.orders), name


def write_animation(pictures: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """A GIF that loops, or an MP4 that plays a few times over."""
    if path.suffix.lower() == ".gif":
        first, *rest = map(Image.fromarray, pictures)
        first.save(path, save_all=True, append_images=rest, duration=1000 // ANIMATION_FPS, loop=0)
    else:
        even = np.stack(pictures)[:, : pictures[0].shape[0] // 2 * 2, : pictures[0].shape[1] // 2 * 2]
        write_clip(np.concatenate([even] * MP4_ROUNDS), path, fps=ANIMATION_FPS)
