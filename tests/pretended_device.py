"""A graphics processor that is only pretended: tensors that lie on the CPU but say they do not, and refuse to meet those that do.

With it a machine without a graphics processor finds what a real one would object to: tensors of two devices in one operation, an
index or a compiled kernel that cannot reach the other side. Numbers are those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("cuda")
MAY_MEET = {"__getitem__", "__setitem__", "copy_"}
"""Operations that take an index or a source from the CPU."""

OF_THE_TENSOR_ITSELF = {"__set__", "grad", "backward", "requires_grad_"}
"""Operations that a copy cannot stand in for."""


class Elsewhere(Tensor):
    """A tensor that says it is on the graphics processor."""

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation in which such a tensor takes part."""
        return _operated(function, args, kwargs or {})


class _Pretence(TorchFunctionMode):
    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operated(function, args, kwargs or {})


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Gives a device that tensors and modules can be moved to."""
    with _Pretence(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "to", _moved_module)
        yield ELSEWHERE


def _moved_module(module: nn.Module, device: torch.device) -> nn.Module:
    """Parameters stay leaves, and those of a module that is moved within a device the same ones."""
    with torch._C.DisableTorchFunction():
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None and isinstance(value, Elsewhere) != (device == ELSEWHERE):
                    moved = _moved(value.detach(), [device]).requires_grad_(value.requires_grad)
                    part._parameters[name] = moved  # type: ignore[assignment]
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else _moved(buffer, [device])
    return module


def _operated(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    name = getattr(function, "__name__", "")
    with torch._C.DisableTorchFunction():
        if name == "__get__":
            return _attribute(function, args[0])
        if name == "to":
            return _moved(args[0], [*args[1:], *kwargs.values()])
        if name == "cpu":
            return _plain(args[0]).clone()
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        there = [one for one in tensors if isinstance(one, Elsewhere)]
        if name in OF_THE_TENSOR_ITSELF:
            result = function(*args, **kwargs)
            return tree_map(_marked, result) if there else result
        if there:
            _check(name, args, [one for one in tensors if not isinstance(one, Elsewhere) and one.ndim])
        wanted = kwargs.get("device")
        result = function(*tree_map(_plain, args), **tree_map(_plain, {**kwargs, **_here(wanted)}))
        is_there = wanted == ELSEWHERE or (there and not name.startswith("is_"))
        return tree_map(_marked, result) if is_there else result


def _check(name: str, args: Any, here: list[Tensor]) -> None:
    if name == "numpy":
        raise RuntimeError("a tensor elsewhere has no array")
    if here and name not in MAY_MEET:
        raise RuntimeError(f"{name}: tensors on two devices, of shapes {[tuple(one.shape) for one in here]} here")
    if name in ("__getitem__", "__setitem__") and not isinstance(args[0], Elsewhere):
        raise RuntimeError(f"{name}: a tensor here meets an index or values elsewhere")


def _here(wanted: torch.device | None) -> dict[str, torch.device]:
    return {"device": torch.device("cpu")} if wanted == ELSEWHERE else {}


def _attribute(getter: Any, tensor: Tensor) -> Any:
    if not isinstance(tensor, Elsewhere):
        return getter(tensor)
    return ELSEWHERE if getter.__self__.__name__ == "device" else _marked(getter(tensor))


def _moved(tensor: Tensor, wanted: list[Any]) -> Tensor:
    device, result = tensor.device, _plain(tensor)
    if isinstance(tensor, Elsewhere):
        device = ELSEWHERE
    for one in wanted:
        if isinstance(one, Tensor):
            device, result = (ELSEWHERE if isinstance(one, Elsewhere) else one.device), result.to(one.dtype)
        elif isinstance(one, torch.dtype):
            result = result.to(one)
        elif isinstance(one, torch.device):
            device = one
    return _marked(result.clone()) if device == ELSEWHERE else result.clone()


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Elsewhere) else value


def _marked(value: Any) -> Any:
    return value.as_subclass(Elsewhere) if isinstance(value, Tensor) and not isinstance(value, Elsewhere) else value
