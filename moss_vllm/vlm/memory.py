"""The parts that the memory of a training step consists of; each family estimates them for its own layers."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from rich.table import Table

from moss_vllm.training.step_memory import GIB


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by part."""

    frozen_weights: int
    trained_weights: int
    gradients: int
    adam_states: int
    pixels: int
    language_model: int  # activations kept for backward, LoRA's included
    cast_weights: int  # copies in half precision that autocast makes and backward needs
    moss: int
    projector: int
    logits: int  # of answer tokens, with their gradient
    layer_at_work: int  # gradients of the layer under way, and what recomputation makes again
    encoder_at_work: int  # before anything is kept, and so not added to the others

    @property
    def kept(self) -> int:
        """Bytes that the forward pass keeps, without the logits."""
        return self.language_model + self.cast_weights + self.moss + self.projector

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        always = self.frozen_weights + self.trained_weights + self.gradients + self.adam_states + self.pixels
        return always + max(self.encoder_at_work, self.kept + self.logits + self.layer_at_work)


def memory_table(columns: Mapping[str, Memory], *, title: str) -> Table:
    """A row per part and a column per estimate, in GiB."""
    table = Table("GiB", title=title)
    for head in columns:
        table.add_column(head, justify="right")
    names = [field.name for field in fields(Memory)]
    for name in names[:-1]:
        cells = [f"{getattr(memory, name) / GIB:.2f}" for memory in columns.values()]
        table.add_row(name.replace("_", " "), *cells, end_section=name == names[-2])
    table.add_row("total", *(f"{memory.total / GIB:.2f}" for memory in columns.values()), end_section=True)
    earlier = [f"{memory.encoder_at_work / GIB:.2f}" for memory in columns.values()]
    table.add_row("earlier: encoder at work", *earlier)
    return table
