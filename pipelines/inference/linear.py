"""Linear layers laid out once for the processor; what their bare products cost. Imports torch, transformers.

oneDNN multiplies by a weight in blocks of its own; given a plain matrix it rearranges, or multiplies slower, at
every call. (What torch.compile's inductor does to frozen weights, without compiling anything.)
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from transformers.activations import ACT2FN

# oneDNN, and torch's layer over it, each keep what they made ready for the last 1,024 shapes of matrices, about 1 MB a
# shape in bf16: rows of all lengths fill that with over 1 GB. A batch has some 100 shapes, which its layers share. They
# read this when first used; what the user has set stays.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "128")

# What oneDNN can do to a product, as its operator takes it: which of its functions, scalars, which form of it.
Pointwise = tuple[str, list[float], str]
_NOTHING: Pointwise = ("none", [], "")
_GELU, _TANH_GELU, _SILU = ("gelu", [], "none"), ("gelu", [], "tanh"), ("swish", [], "")
_BY_NAME = {"gelu": _GELU, "gelu_new": _TANH_GELU, "gelu_pytorch_tanh": _TANH_GELU, "silu": _SILU, "swish": _SILU}
_ACTIVATIONS: dict[type, Pointwise] = {type(ACT2FN[name]): function for name, function in _BY_NAME.items()}


class PackedLinear(nn.Module):
    """What `layer` computes, of a weight in oneDNN's own layout. Raises where this processor or torch has none."""

    def __init__(self, layer: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.in_features = layer.in_features
        self.bias = layer.bias
        self.then = _NOTHING  # is done to every output, while it is still in the processor's cache
        # Opaque, so neither parameter nor buffer: nothing may convert, move or save it.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), tokens)
        self(layer.weight.new_zeros(1, self.in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *self.then)
        return y

    def product(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, *_NOTHING)
        return y


def prepack(network: nn.Module, tokens: int) -> bool:
    """Replace the linear layers by `PackedLinear`, for batches of about `tokens`; False where that is refused.

    Nothing is replaced then. Subclasses of nn.Linear are left as they are: others may read their weights.
    """
    layers = [m for m in network.modules() if type(m) is nn.Linear]
    if any(layer.weight.device.type != "cpu" for layer in layers):
        return False
    try:
        with torch.inference_mode():
            made: dict[nn.Module, nn.Module] = {layer: PackedLinear(layer, tokens) for layer in layers}
    except (AttributeError, RuntimeError):  # torch has no such operator; oneDNN has no kernel for this processor
        return False
    _replace(network, made)
    return bool(made)


def _replace(network: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put others in the places, one or more, of modules of the network."""
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in others:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, others[module])


def fuse_activations(network: nn.Module, run: Callable[[], np.ndarray]) -> None:
    """Have each `PackedLinear` whose output goes to a GELU or SiLU, and always to the same, apply that itself.

    Faster, and exact: torch's own SiLU and tanh GELU of fp32 round otherwise in a tensor's last elements, those that
    do not fill a vector. run: a call of the network. It shows which output goes where; that nothing else reads an
    output before its activation is seen in that the results stay what they were, else nothing is fused.
    """
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    watched = [m for m in network.modules() if isinstance(m, PackedLinear) or _pointwise(m)]
    hooks = [m.register_forward_hook(lambda m, inputs, output: calls.append((m, inputs[0], output))) for m in watched]
    try:
        before = run()
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(module for module, _, _ in calls)
    followed = Counter((a, b) for (a, _, made), (b, given, _) in pairwise(calls) if given is made and _pointwise(b))
    fused = [(a, b) for (a, b), n in followed.items() if isinstance(a, PackedLinear) and times[a] == n == times[b]]
    identities = {activation: nn.Identity() for _, activation in fused}
    for layer, activation in fused:
        layer.then = _pointwise(activation)
    _replace(network, identities)
    nearly = 16 * torch.finfo(next(network.parameters()).dtype).eps
    if not np.linalg.norm(run() - before) <= nearly * np.linalg.norm(before):
        for layer, _ in fused:
            layer.then = _NOTHING
        _replace(network, {identity: activation for activation, identity in identities.items()})


def _pointwise(module: nn.Module) -> Pointwise | None:
    """What oneDNN does in the place of an activation, if it can."""
    if isinstance(module, nn.GELU):
        return _GELU if module.approximate == "none" else _TANH_GELU
    return _ACTIVATIONS.get(type(module))


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
            product = layer.product if isinstance(layer, PackedLinear) else layer
            kind = (tuple(shape), product(x).shape[-1])
            if kind not in seconds:
                seconds[kind] = min(_seconds(product, x) for _ in range(rounds))
        total += times * seconds[kind]
    return total


def _seconds(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    product(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
