"""Stands in for SGLang's compiled kernels on a machine without a GPU.

SGLang imports names of ``sgl_kernel`` even where it computes in plain PyTorch, and the real package
cannot be imported without a driver. Every name exists here, and calling one raises an error, so a
server never returns a wrong vector.

Only servers on the CPU have it on their path. SGLang's interpreter loads it, so it imports nothing
of emberd.
"""

from __future__ import annotations

from typing import Any


class _Missing:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(f"the kernel sgl_kernel.{self._name} does not exist on the CPU")

    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self._name}.{name}")


def __getattr__(name: str) -> Any:
    # The import system and inspect query special names, and would use whatever is returned.
    if name.startswith("__"):
        raise AttributeError(name)
    return _Missing(name)
