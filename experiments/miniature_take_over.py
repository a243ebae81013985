"""The first miniature's weights in the second: a VideoLLaMA3 rewritten as a Qwen2.5-VL.

What both know of one picture is nearly the same, but for the windows that Qwen2.5-VL's attention keeps to and
the hidden units that have no room. Pre-training goes on from there.
"""

if __name__ == "__main__":
    raise SystemExit("experiments/miniature_take_over.py is a part of make_miniature.py, not a command")

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, VideoLlama3ForConditionalGeneration

SLOPE = 1.702  # gelu(x) is nearly x * sigmoid(1.702 x) = silu(1.702 x) / 1.702


@torch.no_grad()
def take_over(
    model: Qwen2_5_VLForConditionalGeneration,
    first: VideoLlama3ForConditionalGeneration,
    pictures: dict[str, Tensor],
) -> None:
    """Copy the language model, rewrite the encoder and the projector.

    RMSNorm subtracts no mean, so all that writes to the stream writes numbers of mean zero; it has no bias,
    so its reader has it. Conv3d reads the mean of two frames.

    Args:
        pictures: inputs of the first's encoder, to find out which hidden units say most.
    """
    heard = _listen(first, pictures)
    _take_language_model(model.model.language_model, first.model.language_model)
    old, new = first.model.vision_model, model.model.visual
    patches = old.embeddings.patch_embedding
    new.patch_embed.proj.weight.copy_(_centred(patches.weight).unsqueeze(2) / 2)
    for block, layer in zip(new.blocks, old.encoder.layers, strict=True):
        attention = layer.self_attn
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        weight = torch.cat([reader.weight for reader in readers])
        bias = torch.cat([reader.bias for reader in readers])
        block.norm1.weight.copy_(layer.layer_norm1.weight)
        block.attn.qkv.weight.copy_(weight)
        block.attn.qkv.bias.copy_(bias + weight @ layer.layer_norm1.bias)
        block.attn.proj.weight.copy_(_centred(attention.out_proj.weight))
        block.attn.proj.bias.copy_(_centred(attention.out_proj.bias))
        block.norm2.weight.copy_(layer.layer_norm2.weight)
        _take_mlp(block.mlp, layer.mlp, layer.layer_norm2, heard[layer.mlp.fc2])
    new.blocks[0].attn.proj.bias.add_(_centred(patches.bias))  # the patch embedding here has no bias
    _take_projector(new.merger, old.post_layernorm, first.model.projector)


def _listen(
    first: VideoLlama3ForConditionalGeneration, pictures: dict[str, Tensor]
) -> dict[nn.Module, Tensor]:
    """What the hidden units of each layer say of pictures, (tokens, hidden units), by what reads them."""
    heard: dict[nn.Module, Tensor] = {}

    def note(reader: nn.Module, inputs: tuple[Tensor]) -> None:
        heard[reader] = inputs[0]

    encoder = first.model.vision_model
    hooks = [layer.mlp.fc2.register_forward_pre_hook(note) for layer in encoder.encoder.layers]
    encoder(**pictures)
    for hook in hooks:
        hook.remove()
    return heard


def _centred(weights: Tensor) -> Tensor:
    """Without the mean over output channels."""
    return weights - weights.mean(0)


def _take_language_model(new: nn.Module, old: nn.Module) -> None:
    table = new.embed_tokens.weight
    table[: len(old.embed_tokens.weight)] = old.embed_tokens.weight
    values = old.state_dict() | {"embed_tokens.weight": table}
    new.load_state_dict(values)


def _take_mlp(new: nn.Module, old: nn.Module, norm: nn.LayerNorm, heard: Tensor) -> None:
    """The hidden units that say most, each a gate whose other factor is constant; they stand in for the rest.

    Shape:
        heard: (tokens, hidden units), what the old ones say of pictures.
    """
    says = heard.std(0) * old.fc2.weight.norm(dim=0)
    kept = says.topk(len(new.gate_proj.weight)).indices
    new.gate_proj.weight.copy_(SLOPE * old.fc1.weight[kept])
    new.gate_proj.bias.copy_(SLOPE * (old.fc1.bias + old.fc1.weight @ norm.bias)[kept])
    new.up_proj.weight.zero_()
    new.up_proj.bias.fill_(1 / SLOPE)
    mean = heard.mean(0)
    rest = torch.linalg.lstsq(heard[:, kept] - mean[kept], (heard - mean) @ old.fc2.weight.T).solution
    new.down_proj.weight.copy_(_centred(rest.T))
    new.down_proj.bias.copy_(_centred(old.fc2(mean) - rest.T @ mean[kept]))


def _take_projector(new: nn.Module, norm: nn.LayerNorm, old: nn.Module) -> None:
    """The old one reads the mean of four neighbours; the new one has them side by side, and more units."""
    enter, _, leave = old.readout
    hidden = len(enter.weight)
    new.ln_q.weight.copy_(norm.weight)
    new.mlp[0].weight[:hidden] = enter.weight.repeat(1, 4) / 4
    new.mlp[0].bias[:hidden] = enter.bias + enter.weight @ norm.bias
    new.mlp[2].weight.zero_()
    new.mlp[2].weight[:, :hidden] = leave.weight
    new.mlp[2].bias.copy_(leave.bias)
