"""CUDA compilers that need no GPU: NVRTC from its wheel, and nvcc where a toolkit is installed."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from compll.backends.cuda import OPTIONS
from compll.emit import cuda


@dataclass(frozen=True)
class Resources:
    """What ptxas says that a kernel takes."""

    kernel: str
    registers: int
    spilled_bytes: int


def available() -> list[str]:
    return [name for name, there in (("nvrtc", nvrtc_path()), ("nvcc", shutil.which("nvcc"))) if there]


def nvrtc_path() -> Path | None:
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    return next((path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")), None)


def compile_for(compiler: str, arch: str, source: str, folder: Path) -> list[Resources]:
    """Compile generated source, as the backend does, for a GPU such as sm_90."""
    log = nvrtc(source, arch) if compiler == "nvrtc" else nvcc(source, arch, folder)
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    return [Resources(name, int(registers), int(out) + int(back)) for name, out, back, registers in found]


def nvcc(source: str, arch: str, folder: Path) -> str:
    """Compile host functions and kernels."""
    for name, text in (cuda.runtime() | {"codec.cu": source}).items():
        (folder / name).write_text(text, "utf-8")
    command = [
        "nvcc",
        *OPTIONS,
        f"-arch={arch}",
        "-Xptxas",
        "-v",
        "-Werror",
        "all-warnings",
        "-c",
        "codec.cu",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def nvrtc(source: str, arch: str) -> str:
    """Compile the kernels."""
    library = ctypes.CDLL(str(nvrtc_path()))
    program = ctypes.c_void_p()
    text = cuda.self_contained(source).encode()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text, b"codec.cu", 0, None, None) == 0
    options = [o.encode() for o in (*OPTIONS, f"-arch={arch}", "--ptxas-options=-v")]
    code = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert code == 0, log.value.decode()
    return log.value.decode()
