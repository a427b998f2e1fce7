"""The shipped algorithms, beside the small NumPy codecs of `tests/reference`."""

from __future__ import annotations

import compll

REAL = (
    compll.compile("onebit"),
    compll.compile("terngrad"),
    compll.compile("terngrad", bitwidth=4, error_feedback=True),
)
