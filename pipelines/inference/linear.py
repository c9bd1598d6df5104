"""Linear layers laid out once for the processor, and what their matrix products alone cost. Imports torch.

oneDNN multiplies by a weight in blocks of its own; given a plain matrix it rearranges, or multiplies slower, at
every call. (What torch.compile's inductor does to frozen weights, without compiling anything.)
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

# oneDNN, and torch's layer over it, each keep what they made ready for the last 1,024 shapes of matrices, about 1 MB a
# shape in bf16: rows of all lengths fill that with over 1 GB. A batch has some 100 shapes, which its layers share. They
# read this when first used; what the user has set stays.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "128")


class PackedLinear(nn.Module):
    """What `layer` computes, of a weight in oneDNN's own layout. Raises where this processor or torch has none."""

    def __init__(self, layer: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.bias = layer.bias
        # Opaque, so neither parameter nor buffer: nothing may convert, move or save it.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), tokens)
        self(layer.weight.new_zeros(1, self.in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


def prepack(network: nn.Module, tokens: int) -> bool:
    """Replace the linear layers by `PackedLinear`, for batches of about `tokens`; False where that is refused.

    Nothing is replaced then. Subclasses of nn.Linear are left as they are: others may read their weights.
    """
    made: dict[int, PackedLinear] = {}
    places = [(name, m) for name, m in network.named_modules(remove_duplicate=False) if type(m) is nn.Linear]
    try:
        with torch.inference_mode():
            for _, layer in places:
                if layer.weight.device.type != "cpu":
                    return False
                if id(layer) not in made:
                    made[id(layer)] = PackedLinear(layer, tokens)
    except (AttributeError, RuntimeError):  # torch has no such operator; oneDNN has no kernel for this processor
        return False
    for name, layer in places:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, made[id(layer)])
    return bool(made)


def bare_seconds(network: nn.Module, run: Callable[[], object], rounds: int = 3) -> float:
    """Seconds that the matrix products alone take which `run`, a call of the network, asks of its linear layers.

    Every product of another shape is timed by itself, over inputs of its own; the least of `rounds` counts.
    """
    calls: Counter[tuple[nn.Module, torch.Size, torch.dtype]] = Counter()

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[layer, inputs[0].shape, inputs[0].dtype] += 1

    linear = [m for m in network.modules() if isinstance(m, nn.Linear | PackedLinear)]
    hooks = [m.register_forward_pre_hook(note) for m in linear]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    seconds: dict[tuple[object, ...], float] = {}
    total = 0.0
    for (layer, shape, dtype), times in calls.items():
        x = torch.randn(shape).to(next(network.parameters()).device, dtype)
        with torch.inference_mode():
            kind = (tuple(shape), layer(x).shape[-1])
            if kind not in seconds:
                seconds[kind] = min(_seconds(layer, x) for _ in range(rounds))
        total += times * seconds[kind]
    return total


def _seconds(layer: nn.Module, x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    layer(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
