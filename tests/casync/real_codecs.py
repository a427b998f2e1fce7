"""The shipped algorithms, beside the small NumPy codecs of `tests/reference`."""

from __future__ import annotations

import compll

REAL = (
    compll.compile("onebit", backend="interp"),
    compll.compile("terngrad", backend="interp"),
    compll.compile("terngrad", backend="interp", bitwidth=4, error_feedback=True),
)
