"""The paper's classifier: the ladder beside a frozen image encoder."""

from torch import Tensor

from moss_vllm.core.ladder import Ladder
from moss_vllm.encoders.image import ImageEncoder
from moss_vllm.recognition.hosts.classifier import VideoClassifier


class LadderClassifier(VideoClassifier):
    """The ladder beside a frozen image encoder, which sees each frame alone (Fig. 4).

    Shape:
        (B, T, 3, H', W') -> (B, classes), for any T >= 1 and any whole number of patches.

    Args:
        encoder: hands over the layers that the ladder taps.
        ladder: the part that is trained.

    Raises:
        ValueError: encoder and ladder name different layers, or patches of different sizes.
    """

    frozen = r"^encoder\."
    trained = r"^ladder\."
    head_name = "ladder.head"
    temporal_prefix = r"^ladder\.moss\d*\."
    decay_vectors = True  # as the paper's ladders are trained: biases and norms decay too

    def __init__(self, encoder: ImageEncoder, ladder: Ladder) -> None:
        super().__init__(encoder.name, encoder.mean, encoder.std, encoder.patch_size)
        side = ladder.stem.conv.kernel_size[1]
        if encoder.layers != ladder.layers or encoder.patch_size != side:
            raise ValueError(
                f"the encoder hands over layers {encoder.layers} in patches of {encoder.patch_size} pixels, "
                f"the ladder taps layers {ladder.layers} in patches of {side}"
            )
        self.encoder = encoder
        self.ladder = ladder
        self.temporal_names = {layer: f"ladder.{name}" for layer, name in ladder.temporal_names.items()}

    def set_checkpoint_blocks(self, on: bool) -> None:
        """As in the base class, for the ladder's blocks."""
        super().set_checkpoint_blocks(on)
        self.ladder.checkpoint_blocks = on

    def forward(self, video: Tensor) -> Tensor:
        """Score each class."""
        taps = self.encoder(video.flatten(0, 1))
        return self.ladder([tap.unflatten(0, video.shape[:2]) for tap in taps], video)
