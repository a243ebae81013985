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
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moss_vllm.data.motion_world import write_clip
from moss_vllm.data.video import Clip, read_clip
from moss_vllm.stss_maps import (
    TOY_CELL_PX,
    TOY_WINDOW,
    Marked,
    OrderView,
    Query,
    Row,
    Sheet,
    draw_frame,
    draw_map,
    flattened_orders,
    lay_out,
    learned_orders,
    patch_pixels,
    pick_query,
    toy_clip,
    toy_similarity,
)

RAW_PATCH_PX = 14
QUERY_COLOURS = ("#e41a1c", "#ff8c00", "#d62ad0", "#00a6d6")
TOY_COLOURS = {"brown": "#a0622d", "yellow": "#e0a800"}
DOTS_PER_INCH = 150
WIDTH_IN = 1600 / DOTS_PER_INCH
LEFT_IN, RIGHT_IN, TOP_IN, GAP_IN, GROUP_IN = 1.1, 0.6, 0.68, 0.05, 0.14
ANIMATION_FPS, MP4_ROUNDS = 2, 4


def main(argv: list[str] | None = None) -> Sheet:
    """Read, compare, draw; a wrong argument or file ends it with one line."""
    args = parse(argv)
    try:
        sheet = toy(args.orders) if args.toy else video(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(sheet).savefig(args.out, dpi=DOTS_PER_INCH)
        print(f"wrote {args.out}")
        if args.animate:
            args.animate.parent.mkdir(parents=True, exist_ok=True)
            write_animation([draw_column(sheet, i) for i in range(len(sheet.titles))], args.animate)
            print(f"wrote {args.animate}")
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"error: {error}") from error
    return sheet


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked against each other."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
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
    add("--fps", type=float, help="frames read per second; default: 4, or the checkpoint's")
    add("--frames", type=int, help="at most so many, spread evenly over a longer video; default: 16")
    args = parser.parse_args(argv)

    def given(*names: str) -> list[str]:
        return ["--" + name.replace("_", "-") for name in names if getattr(args, name) is not None]

    of_vit = given("after_layer", "weights")
    of_video = given("ckpt", "encoder", "query", "window", "fps", "frames") + of_vit
    if args.toy and of_video:
        parser.error(f"{of_video[0]} goes with --video, not with --toy")
    if args.ckpt and (clash := given("encoder", "window") + of_vit):
        parser.error(f"{clash[0]} does not go with --ckpt, which has its own")
    if of_vit and args.encoder in (None, "raw"):
        parser.error(f"{of_vit[0]} goes with --encoder and the name of a timm ViT")
    if args.orders and min(args.orders) < 1:
        parser.error(f"--orders counts from 1, got {min(args.orders)}")
    for name, path, kinds in (("--out", args.out, (".png",)), ("--animate", args.animate, (".gif", ".mp4"))):
        if path and path.suffix.lower() not in kinds:
            parser.error(f"{name} takes a name that ends in {' or '.join(kinds)}, got {path}")
    return args


def triple(text: str) -> tuple[int, int, int]:
    """Three integers, comma between."""
    try:
        first, second, third = map(int, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"takes three integers such as 5,9,9, got '{text}'") from error
    return first, second, third


def toy(orders: Sequence[int] | None) -> Sheet:
    """Figs. 3 and 7, and the numbers behind them."""
    drawn = toy_clip()
    pixels = patch_pixels(drawn.clip.frames, TOY_CELL_PX)
    views = flattened_orders(pixels, TOY_WINDOW, orders or (1, 2, 3))
    marked = [Marked(f"{name} query", query, TOY_COLOURS[name]) for name, query in drawn.queries.items()]
    print("mean similarity to the query, in the other frames of its window")
    for view in views:
        for name, query, _ in marked:
            means = toy_similarity(drawn, view, query)
            print(f"order {view.order}, {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in means.items()))
    title = "Toy clip, grid 20 x 24, all of it in the window\npixels of a cell, g = flattening over (L, U, V)"
    return lay_out(drawn.clip, views, marked, title=title, strength=None, scale=(0.0, 0.6))


def video(args: argparse.Namespace) -> Sheet:
    """Figs. 5 and 9-13."""
    if args.ckpt:
        clip, views, source = from_checkpoint(args)
    else:
        clip, features, source = from_encoder(args)
        views = flattened_orders(features, args.window or (5, 9, 9), args.orders or (1, 2, 3))
    _, height, width, *window = views[0].similarity.shape
    queries = args.query or [pick_query(clip, (height, width), window[0])]
    if not args.query:
        print(f"query {','.join(map(str, queries[0]))} (t,y,x), where most moves")
    names = ["query"] if len(queries) == 1 else [f"query {i}" for i in range(1, len(queries) + 1)]
    marked = [Marked(*one) for one in zip(names, queries, cycle(QUERY_COLOURS), strict=False)]
    title = f"{args.video.name}, grid {height} x {width}, window {' x '.join(map(str, window))}\n{source}"
    return lay_out(clip, views, marked, title=title, strength="norm of M" if args.ckpt else "change over $l$")


def read(args: argparse.Namespace, fps: float, short_side_px: int) -> Clip:
    """The video, at the rate asked for or the one given."""
    fps = fps if args.fps is None else args.fps
    frames = 16 if args.frames is None else args.frames
    return read_clip(args.video, sample_fps=fps, max_frames=frames, short_side_px=short_side_px)


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
    source: dict[str, Any] = {"pretrained": weights != "random"}
    if weights not in (None, "random"):
        if not Path(weights).is_file():
            raise FileNotFoundError(f"--weights {weights}: no such file")
        source["pretrained_cfg_overlay"] = {"file": weights}
    torch.manual_seed(0)  # of random weights
    try:
        return timm.create_model(name, num_classes=0, dynamic_img_size=True, **source).eval()
    except TypeError as error:
        raise ValueError(f"encoder '{name}' is no plain ViT with a patch grid; take a vit_* model") from error
    except Exception as error:  # errors of the hub, of files and of state dicts have no class in common
        tried = f"in {weights}" if weights else "in the local cache or on the hub"
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(
            f"no weights for encoder '{name}' {tried} ({reason}); download them and give --weights FILE, or "
            "use --weights random or --encoder raw"
        ) from error


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
    from moss_vllm.core import MOSS
    from moss_vllm.data.chat import Turn, encode
    from moss_vllm.vlm.checkpoint import load
    from moss_vllm.vlm.video_llama3 import MossVideoLlama3VisionModel

    loaded = load(args.ckpt)
    tower = next((m for m in loaded.model.modules() if isinstance(m, MossVideoLlama3VisionModel)), None)
    if tower is None:
        raise ValueError(f"{args.ckpt} has no MOSS; give a checkpoint of recipes/favor_lora.py --use-moss")
    trained = loaded.run.get("protocol", {})
    clip = read(args, trained.get("sample_fps", 2.0), trained.get("short_side_px", 224))
    if len(clip.frames) < 2:
        raise ValueError(f"{args.video}: MOSS takes two frames, one was read; raise --fps or --frames")
    inputs = encode(loaded.processor, clip, [Turn("What moves?")], compress=False)
    ran: list[tuple[MOSS, Tensor]] = []
    for module in tower.modules():  # peft keeps the untrained MOSS beside the trained one; it does not run
        if isinstance(module, MOSS):
            module.register_forward_pre_hook(lambda moss, given: ran.append((moss, given[0])))
    tower(inputs["pixel_values_videos"], inputs["video_grid_thw"], inputs["video_merge_sizes"])
    moss, features = ran[0]
    said = f"{loaded.name}, MOSS after layer {tower.config.moss_after_layer}"
    return clip, learned_orders(moss.maps(features), args.orders), said


def draw_sheet(sheet: Sheet) -> Figure:
    """Rows of frames and maps, a column per frame."""
    columns, lines = len(sheet.titles), 1 + sum(map(len, sheet.groups))
    wide = min(2.3, (WIDTH_IN - LEFT_IN - RIGHT_IN + GAP_IN) / columns - GAP_IN)
    high = wide * sheet.grid[0] / sheet.grid[1]
    figure = Figure((WIDTH_IN, TOP_IN + lines * (high + GAP_IN) + len(sheet.groups) * GROUP_IN + 0.1))
    add_text(figure, 0.12, 0.3, sheet.title, size=9, weight="bold", parse_math=False)
    lefts = [LEFT_IN + i * (wide + GAP_IN) for i in range(columns + 1)]
    for i, title in enumerate(sheet.titles):
        axes = add_axes(figure, lefts[i], TOP_IN, wide, high)
        draw_frame(axes, sheet, i)
        axes.set_title(title, fontsize=8, pad=4)
    top = TOP_IN
    for rows in sheet.groups:
        top += GROUP_IN
        for row in rows:
            top += high + GAP_IN
            label, note = top + high / 2, top + high / 2 + 0.17
            add_text(figure, LEFT_IN - 0.12, label, row.label, size=9, weight="bold", ha="right")
            add_text(figure, LEFT_IN - 0.12, note, row.note, size=8, color=row.colour, ha="right")
            for i in range(columns):
                draw_map(add_axes(figure, lefts[i], top, wide, high), sheet, row, i)
            draw_bar(add_axes(figure, lefts[-1], top + 0.1 * high, 0.09, 0.8 * high), row, "vertical")
    return figure


def draw_column(sheet: Sheet, column: int) -> NDArray[np.uint8]:
    """One column as a picture of its own: a line per query, and one for the strength."""
    across, wide = 1 + len(sheet.groups[0]), 2.0
    high = wide * sheet.grid[0] / sheet.grid[1]
    step = high + 0.42
    figure = Figure((LEFT_IN + across * (wide + 0.1) + 0.1, TOP_IN + len(sheet.groups) * step), dpi=100)
    add_text(figure, 0.12, 0.3, sheet.title, size=8, weight="bold", parse_math=False)
    for line, rows in enumerate(sheet.groups):
        top = TOP_IN + line * step
        note, colour = rows[0].note, rows[0].colour
        add_text(figure, LEFT_IN - 0.12, top + high / 2, note, size=9, color=colour, ha="right")
        axes = add_axes(figure, LEFT_IN, top, wide, high)
        draw_frame(axes, sheet, column)
        axes.set_title(sheet.titles[column], fontsize=9, pad=3)
        for i, row in enumerate(rows, start=1):
            left = LEFT_IN + i * (wide + 0.1)
            axes = add_axes(figure, left, top, wide, high)
            draw_map(axes, sheet, row, column)
            axes.set_title(row.label, fontsize=9, pad=3)
            draw_bar(add_axes(figure, left, top + high + 0.05, wide, 0.06), row, "horizontal")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_bar(axes: Axes, row: Row, orientation: str) -> None:
    """The scale of a row."""
    colours = ScalarMappable(Normalize(*row.scale), row.colour_map)
    how: dict[str, Any] = {"ticks": row.scale, "format": "%.2f", "extend": "max"}
    bar = axes.figure.colorbar(colours, cax=axes, orientation=orientation, **how)
    bar.ax.tick_params(labelsize=7, length=2, pad=2)
    if orientation == "horizontal":  # neighbours' numbers would meet
        for label, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
            label.set_horizontalalignment(side)
    bar.outline.set_linewidth(0.4)


def add_axes(figure: Figure, left: float, top: float, wide: float, high: float) -> Axes:
    """Axes at a place in inches, from the left and the top."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))


def add_text(figure: Figure, left: float, top: float, text: str, **how: Any) -> None:
    """Text at a place in inches, from the left and the top."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **how)


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
