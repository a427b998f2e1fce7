"""Shipped algorithms, beside the small NumPy codecs of `tests/reference`."""

from __future__ import annotations

import compll

REAL = (
    compll.compile("onebit"),
    compll.compile("terngrad"),
    compll.compile("terngrad", bitwidth=4, error_feedback=True),
)
SPARSE = (
    compll.compile("dgc", ratio=0.05),
    compll.compile("topk", ratio=0.05, error_feedback=True),
)
SUMMABLE = (
    compll.compile("fp16"),
    compll.compile("randomk", ratio=0.05, error_feedback=True),
)
