"""The one check that vectors have length one. Imports no numpy: verification runs without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NORM_TOLERANCE: Final = 1e-2
"""How far from one a norm may be: normalising in bfloat16 is off by up to 6e-4, rounding to float16
by 5e-4."""


@overload
def is_unit(norms: float) -> bool: ...
@overload
def is_unit(norms: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]: ...
def is_unit(norms: float | npt.NDArray[np.floating]) -> bool | npt.NDArray[np.bool_]:
    """Return whether a norm, or each of an array of norms, is one; NaN is not."""
    distance: Any = abs(norms - 1)
    return distance <= NORM_TOLERANCE  # type: ignore[no-any-return]
