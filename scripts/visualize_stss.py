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
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.data.world.benchmarks import write_clip
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import say


def triple(text: str) -> tuple[int, int, int]:
    """Three integers, comma between."""
    try:
        first, second, third = map(int, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"takes three integers such as 5,9,9, got '{text}'") from error
    return first, second, third


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--toy", action="store_true", help="the paper's toy clip; no weights")
    what.add_argument("--video", type=Path, help="a video file or a folder of frames")
    parser.add_argument("--orders", type=int, nargs="+", help="default: 1 2 3, or the checkpoint's")
    parser.add_argument("--out", type=Path, default=Path("runs/stss.png"), help="default: %(default)s")
    parser.add_argument("--animate", type=Path, metavar="FILE", help="also a .gif or .mp4, frame by frame")

    source = parser.add_argument_group("with --video")
    add = source.add_argument
    add("--ckpt", metavar="FOLDER", help="checkpoint of recipes/favor_lora.py, trained with MOSS")
    add("--encoder", metavar="NAME", help="raw (patch pixels; the default) or a ViT of timm, by its name")
    add("--after-layer", type=int, metavar="K", help="of the timm ViT, counted from 1; default: 6")
    add("--weights", help="of the timm ViT: a file, or 'random'; default: timm's own, from cache or hub")
    where = "frame and grid cell to look from, from 0; repeat for more; default: where most moves"
    add("--query", type=lambda t: Query(*triple(t)), action="append", metavar="T,Y,X", help=where)
    add("--window", type=triple, metavar="L,U,V", help="odd sizes in frames and cells; default: 5,9,9")
    add("--sample-fps", type=float, help="frames read per second; default: 4, or the checkpoint's")
    add("--max-frames", type=int, help="thin longer videos evenly to as many frames; default: 16")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moss_vllm.data.rows import Turn
from moss_vllm.report.stss_figure import DOTS_PER_INCH, Marked, Sheet, draw_column, draw_sheet, lay_out
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

RAW_PATCH_PX = 14
QUERY_COLOURS = ("#e41a1c", "#ff8c00", "#d62ad0", "#00a6d6")
TOY_COLOURS = {"brown": "#a0622d", "yellow": "#e0a800"}
ANIMATION_FPS, MP4_ROUNDS = 2, 4


@errors_in_one_line("what is written stays")
def main(argv: list[str] | None = None) -> Sheet:
    """Read, compare, draw; a wrong argument or file ends it with one line."""
    args = parse(argv)
    sheet = toy(args.orders) if args.toy else video(args)
    with whole_file(args.out) as path:
        draw_sheet(sheet).savefig(path, dpi=DOTS_PER_INCH)
    say(f"wrote {args.out}")
    if args.animate:
        with whole_file(args.animate) as path:
            write_animation([draw_column(sheet, i) for i in range(len(sheet.titles))], path)
        say(f"wrote {args.animate}")
    return sheet


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked against each other."""
    parser = options()
    args = parser.parse_args(argv)

    def given(*names: str) -> list[str]:
        return ["--" + name.replace("_", "-") for name in names if getattr(args, name) is not None]

    of_vit = given("after_layer", "weights")
    of_video = given("ckpt", "encoder", "query", "window", "sample_fps", "max_frames") + of_vit
    if args.toy and of_video:
        parser.error(f"{of_video[0]} goes with --video, not with --toy")
    if args.ckpt is not None and (clash := given("encoder", "window") + of_vit):
        parser.error(f"{clash[0]} does not go with --ckpt, which has its own")
    if of_vit and args.encoder in (None, "raw"):
        parser.error(f"{of_vit[0]} goes with --encoder and the name of a timm ViT")
    if args.orders and min(args.orders) < 1:
        parser.error(f"--orders counts from 1, got {min(args.orders)}")
    for name, path, kinds in (("--out", args.out, (".png",)), ("--animate", args.animate, (".gif", ".mp4"))):
        if path and path.suffix.lower() not in kinds:
            parser.error(f"{name} takes a name that ends in {' or '.join(kinds)}, got {path}")
        if path and path.is_dir():
            parser.error(f"{name} takes a file, and {path} is a folder")
    return args


def toy(orders: Sequence[int] | None) -> Sheet:
    """Figs. 3 and 7, and the numbers behind them."""
    drawn = toy_clip()
    pixels = patch_pixels(drawn.clip.frames, TOY_CELL_PX)
    views = flattened_orders(pixels, TOY_WINDOW, orders or (1, 2, 3))
    marked = [Marked(f"{name} query", query, TOY_COLOURS[name]) for name, query in drawn.queries.items()]
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


def read(args: argparse.Namespace, fps: float, short_side_px: int) -> Clip:
    """The video, at the rate asked for or the one given."""
    fps = fps if args.sample_fps is None else args.sample_fps
    frames = 16 if args.max_frames is None else args.max_frames
    try:
        return read_clip(args.video, Sampling(fps, short_side_px, frames))
    except ValueError as error:
        said = str(error)
        for name, flag in (("sample_fps is", "--sample-fps is"), ("max_frames is", "--max-frames is")):
            said = flag + said.removeprefix(name) if said.startswith(name) else said
        raise ValueError(said) from error


def one_frame(args: argparse.Namespace) -> str:
    """Why one frame was read of the video, and what helps."""
    if len(read_clip(args.video, Sampling(sample_fps=100, max_frames=2)).frames) < 2:
        return "the video has one frame, and motion takes two; take another video"
    return "one frame was read, and motion takes two; raise --sample-fps or --max-frames"


def from_encoder(args: argparse.Namespace) -> tuple[Clip, Tensor, str]:
    """Clip, features less their mean (1, T, H, W, C) of patch pixels or a timm ViT, and what they are."""
    if args.encoder in (None, "raw"):
        clip, said = read(args, 4.0, 224), "patch pixels"
        features = patch_pixels(clip.frames, RAW_PATCH_PX)
    else:
        model, layer = load_vit(args.encoder, args.weights), args.after_layer
        layer = 6 if layer is None else layer
        clip, features = vit_features(model, read(args, 4.0, model.pretrained_cfg["input_size"][-1]), layer)
        said = f"{args.encoder} after layer {layer}{' (random weights)' if args.weights == 'random' else ''}"
    return clip, features - features.mean((1, 2, 3), keepdim=True), said


def load_vit(name: str, weights: str | None) -> Any:
    """A timm ViT with timm's own weights, those of a file, or random ones where asked for.

    Raises: ValueError for an unknown or unsuitable model or weights that cannot be had; FileNotFoundError.
    """
    import timm  # 5 s that the toy clip can do without

    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"encoder '{name}' is neither 'raw' nor in timm; see timm.list_models('vit*')")
    if weights not in (None, "random") and not Path(weights).is_file():
        raise FileNotFoundError(f"--weights {weights}: no such file")
    no_vit = f"encoder '{name}' is no plain ViT with a patch grid; take a vit_* model"
    how = {"num_classes": 0, "dynamic_img_size": True}
    torch.manual_seed(0)  # of random weights
    try:
        model = timm.create_model(name, pretrained=False, **how)
    except TypeError as error:
        raise ValueError(no_vit) from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"encoder '{name}' cannot be built ({first_line(error)})") from error
    embedding = getattr(model, "patch_embed", None)
    if not (hasattr(model, "blocks") and isinstance(embedding, timm.layers.PatchEmbed)):
        raise ValueError(no_vit)
    try:
        if weights is None:
            model = timm.create_model(name, pretrained=True, **how)
        elif weights != "random":
            state = vit_state(model, weights)
    except Exception as error:  # errors of the hub, of files and of state dicts have no class in common
        tried = f"in {weights}" if weights else "in the local cache or on the hub"
        raise ValueError(
            f"no weights for encoder '{name}' {tried} ({first_line(error)}); download them and give "
            "--weights FILE, or use --weights random or --encoder raw"
        ) from error
    if weights not in (None, "random"):
        take_weights(model, state, f"--weights {weights}", name)
    return model.eval()


def vit_state(model: Any, file: str) -> dict[str, Tensor]:
    """The weights in a file by the model's names; timm refuses pickles of anything but weights."""
    from timm.models import load_state_dict

    state = load_state_dict(file)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if convert is None else convert(state, model)


def take_weights(model: Any, state: dict[str, Tensor], source: str, name: str) -> None:
    """Load all of the model's weights; a head or a text tower may be left over.

    Raises: ValueError if some are missing, of another shape, or of more blocks than the model has.
    """
    own = model.state_dict()
    missing = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    deeper = sorted({key for key in state if key.startswith("blocks.")} - set(own))
    if missing or deeper:
        wrong = f"{len(missing)} of {len(own)} weights of this encoder are missing or of another shape"
        wrong = wrong if missing else f"{len(deeper)} weights of its blocks are none of this encoder's"
        raise ValueError(f"{source}: {wrong} ({(missing or deeper)[0]}, ...); take a file made for '{name}'")
    model.load_state_dict(state, strict=False)


def first_line(error: Exception) -> str:
    """What an error says, for the middle of a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


@torch.inference_mode()
def vit_features(model: Any, clip: Clip, layer: int) -> tuple[Clip, Tensor]:
    """The clip resized to whole patches, and its patch tokens after a layer (1, T, H, W, C)."""
    if not 1 <= layer <= len(model.blocks):
        raise ValueError(f"--after-layer {layer}: this encoder has layers 1 to {len(model.blocks)}")
    sides = zip(clip.frames.shape[1:3], model.patch_embed.patch_size, strict=True)
    height, width = (max(1, round(side / patch)) * patch for side, patch in sides)
    resized = [Image.fromarray(frame).resize((width, height)) for frame in clip.frames]  # bicubic
    clip = Clip(np.stack(list(map(np.asarray, resized))), clip.frame_times_s)
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    pixels = rearrange((torch.from_numpy(clip.frames) / 255 - mean) / std, "t h w c -> t 1 c h w")
    how = {"indices": [layer - 1], "intermediates_only": True, "stop_early": True}
    tokens = [model.forward_intermediates(frame, **how)[0] for frame in pixels]
    return clip, rearrange(torch.cat(tokens), "t c h w -> 1 t h w c")


@torch.inference_mode()
def from_checkpoint(args: argparse.Namespace) -> tuple[Clip, list[OrderView], str]:
    """Clip, the orders of the checkpoint's MOSS at its own tap, and what they are."""
    from moss_vllm.vlm.checkpoint import load
    from moss_vllm.vlm.video_llama3.chat import encode
    from moss_vllm.vlm.video_llama3.model import MossVideoLlama3VisionModel, VideoMOSS, blocks_to_grid

    loaded = load(args.ckpt)
    tower = next((m for m in loaded.model.modules() if isinstance(m, MossVideoLlama3VisionModel)), None)
    if tower is None:
        raise ValueError(f"{args.ckpt} has no MOSS; give a checkpoint of recipes/favor_lora.py --use-moss")
    trained = loaded.run.get("protocol", {})
    clip = read(args, trained.get("sample_fps", 2.0), trained.get("short_side_px", 224))
    if len(clip.frames) < 2:
        raise ValueError(f"{args.video}: {one_frame(args)}")
    inputs = encode(loaded.processor, clip, [Turn("What moves?")], compress=False)
    ran: list[tuple[VideoMOSS, Tensor]] = []

    def note(moss: VideoMOSS, given: tuple[Tensor, list[list[int]], list[int]]) -> None:
        tokens, grids, merges = given
        ran.append((moss, blocks_to_grid(tokens, *grids[0], merges[0])[None]))

    for module in tower.modules():  # peft keeps the untrained MOSS beside the trained one; it does not run
        if isinstance(module, VideoMOSS):
            module.register_forward_pre_hook(note)
    tower(inputs["pixel_values_videos"], inputs["video_grid_thw"], inputs["video_merge_sizes"])
    moss, features = ran[0]
    said = f"{loaded.name}, MOSS after layer {tower.config.moss_after_layer}"
    return clip, learned_orders(moss.maps(features), args.orders), said


def write_animation(pictures: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """A GIF that loops, or an MP4 that plays a few times over."""
    if path.suffix.lower() == ".gif":
        first, *rest = map(Image.fromarray, pictures)
        first.save(path, save_all=True, append_images=rest, duration=1000 // ANIMATION_FPS, loop=0)
    else:
        even = np.stack(pictures)[:, : pictures[0].shape[0] // 2 * 2, : pictures[0].shape[1] // 2 * 2]
        write_clip(np.concatenate([even] * MP4_ROUNDS), path, fps=ANIMATION_FPS)


if __name__ == "__main__":
    main()
