"""Stands in for SGLang's compiled kernels on a machine without a GPU.

SGLang imports names of ``sgl_kernel`` also where it computes in plain PyTorch, and the real
package needs a driver to be imported at all. Here every name is there, and none can be used:
a kernel that is called after all raises, so that no wrong number leaves.

It is put on the path of servers on the CPU alone, and it is loaded by SGLang's interpreter: it
imports nothing of emberd.
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
    # Special names are asked for by the import system and by inspect, which take any answer for
    # the truth.
    if name.startswith("__"):
        raise AttributeError(name)
    return _Missing(name)
