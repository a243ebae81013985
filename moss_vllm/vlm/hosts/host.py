"""What `attach` needs to know of a kind of Video-LLM, and what several of them share.

The blocks of a vision tower hand on a stream of tokens. MOSS wants the same tokens frame by frame and row by
row ("raster"), with the size of each clip; what it gives goes back the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Call = Mapping[str, Any]  # the arguments of a call by name
Size = tuple[int, int, int]  # frames (steps of time), rows and columns of a clip; an image has t = 1
FRAMES_PER_CLIP = "frames_per_clip"


@dataclass(frozen=True, eq=False)
class Host:
    """A kind of Video-LLM. Names of modules begin at the ...ForConditionalGeneration, or at the tower.

    Args:
        title: its name in messages.
        model_types: of its config.json.
        tower: name of the vision tower.
        tower_class: the class of the tower that these entries were written for.
        blocks: name of the list of the tower's blocks.
        norm: name of the norm that reads the last block. What it gives is added to.
        projector: pattern of the names of all modules between tower and language model.
        trained_after: beginnings of the names of the tower's parameters behind its blocks.
        width: tower -> channels of its stream.
        sizes: tower and the arguments of its call -> the size of every clip, in order.
        to_raster, from_raster: tower, tokens, sizes, arguments -> tokens; stream -> (P, C) and back.
        layers: config -> blocks of the tower.
        frames_per_step: config -> frames that the tower makes one step of time of.
        tells: method of the model -> what it knows of the clips that the tower's call does not: a function of
            the model that has the method, its arguments and what is known already. Where there is None, a
            call's frames are images.
        takes_frames_per_clip: whether forward and generate accept `frames_per_clip`.
        adds_to_hidden_state: the projector reads `hidden_states[vision_feature_layer]`, which is added to in
            place of the norm's output.
        refused: model -> why MOSS cannot be attached to it; None if it can.
    """

    title: str
    model_types: tuple[str, ...]
    tower: str
    tower_class: str
    blocks: str
    norm: str
    projector: str
    trained_after: tuple[str, ...]
    width: Callable[[Any], int]
    sizes: Callable[[Any, Call], list[Size]]
    to_raster: Callable[[Any, Tensor, list[Size], Call], Tensor]
    from_raster: Callable[[Any, Tensor, list[Size], Call], Tensor]
    layers: Callable[[Any], int] = lambda config: int(config.vision_config.num_hidden_layers)
    frames_per_step: Callable[[Any], int] = lambda config: 1
    tells: Mapping[str, Callable[[Any, Call, Any], Any]] = field(default_factory=dict)
    takes_frames_per_clip: bool = False
    adds_to_hidden_state: bool = False
    refused: Callable[[nn.Module], str | None] = lambda model: None

    def tower_of(self, model: nn.Module) -> Any:
        """The vision tower of a model, or of the model without its language-model head."""
        inner = self.tower.partition(".")[2]
        return model.get_submodule(self.tower if hasattr(model, self.tower.partition(".")[0]) else inner)


def two_sides(value: Any) -> tuple[int, int]:
    """A size that a config has as one number or as two."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def frame_sizes(tower: Any, frames: int, rows: int, columns: int) -> list[Size]:
    """Sizes of the clips of a call with frames in a row, of which the model told how many belong together.

    Raises:
        ValueError: it told of another number of frames.
    """
    told = [1] * frames if tower.told is None else counts(tower.told)
    if sum(told) != frames:
        raise ValueError(
            f"{FRAMES_PER_CLIP}={told} are {sum(told)} frames, and the vision tower was given {frames}; give "
            "the frames of every clip of the batch in order, and 1 for an image or a tile of one"
        )
    return [(t, rows, columns) for t in told]


def counts(frames_per_clip: Sequence[int] | Tensor) -> list[int]:
    """The numbers of frames as a list.

    Raises:
        ValueError: one is not a whole number from 1.
    """
    told = (
        frames_per_clip.flatten().tolist() if isinstance(frames_per_clip, Tensor) else list(frames_per_clip)
    )
    if not all(type(number) is int and number >= 1 for number in told):
        raise ValueError(f"{FRAMES_PER_CLIP}={told} is not a whole number from 1 for each clip")
    return told


def without_first(tower: Any, stream: Tensor, sizes: list[Size], call: Call) -> Tensor:
    """Frames of tokens in raster order, behind what each frame has first (a class token).

    Shape:
        (F, 1 + H*W, C) or (F, H*W, C) -> (F*H*W, C).
    """
    _, rows, columns = sizes[0]
    return stream[:, stream.shape[1] - rows * columns :].flatten(0, 1)


def with_first(tower: Any, raster: Tensor, sizes: list[Size], call: Call, first: int) -> Tensor:
    """The inverse of `without_first`, with zeros for the first tokens of each frame.

    Shape:
        (F*H*W, C) -> (F, first + H*W, C).
    """
    _, rows, columns = sizes[0]
    frames = raster.unflatten(0, (-1, rows * columns))
    return (
        frames if not first else torch.cat([frames.new_zeros(len(frames), first, frames.shape[2]), frames], 1)
    )
