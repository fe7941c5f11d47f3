"""Arrow's arrays as numpy's, and its functions where type checkers do not look for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

compute: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them


def as_numpy(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Numbers without nulls as a view of Arrow's memory, read-only; copied where they lie in several chunks."""
    return np.from_dlpack(array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array)
