"""CompLL: gradient compression algorithms in about 20 lines, compiled to fast kernels."""

from compll.codec import (
    BackendError,
    Codec,
    CompileError,
    CompileWarning,
    Info,
    Item,
    ParameterError,
    PayloadError,
    Result,
    algorithms,
    compile,
)

__all__ = [
    "BackendError",
    "Codec",
    "CompileError",
    "CompileWarning",
    "Info",
    "Item",
    "ParameterError",
    "PayloadError",
    "Result",
    "algorithms",
    "compile",
]
__version__ = "0.1.0"
