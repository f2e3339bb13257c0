"""Every failure that is known, in the order in which a log is asked for them.

The more a wording says, the earlier it stands: a broad one, such as a missing module or a CUDA
error, is the last of its kind.
"""

from __future__ import annotations

from typing import Final

from emberd.engines.sglang import gpu_failures, host_failures, model_failures
from emberd.engines.sglang.failure import Failure

FAILURES: Final[tuple[Failure, ...]] = (
    *host_failures.OPTIONS,
    *host_failures.PORT,
    *host_failures.DISK,
    *model_failures.HUB,
    *model_failures.FILES,
    *model_failures.SHAPE,
    *host_failures.WARM_UP,
    *host_failures.MEMORY,
    *gpu_failures.OLD_GPU,
    *gpu_failures.GPU_MEMORY,
    *host_failures.KERNELS,
    *gpu_failures.GPU_RUNTIME,
    *host_failures.DEATHS,
)
