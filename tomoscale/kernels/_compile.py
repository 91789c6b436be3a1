"""
The one place for compiler options, and for where compiled kernels are kept.

Every version of a kernel (function, types of arguments, CPU, sources and where they lie) has a folder of its own below
NUMBA_CACHE_DIR or ~/.cache/tomoscale, which may be deleted at any time. With Numba's usual single index per
function, two processes that compile different versions at once can file one's code under the other's types;
and it does not see that a function in another file has changed. Here all writers of a folder write the same,
and a damaged folder is compiled again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numba
import numpy as np
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

from tomoscale.kernels._apart import ApartError, compile_apart

# No fast-math and no threads: results are bit for bit, and one block is one thread.
_OPTIONS: dict[str, Any] = {"nogil": True, "no_cfunc_wrapper": True}
_LOCK = threading.Lock()
TRIED = "0.68."
"""Versions of Numba whose code libraries are known."""
config: Any = numba.config
njit: Any = numba.njit


class _PartLibrary(JITCodeLibrary):
    """
    Code of a part as it was lowered, neither optimised nor turned into machine code: its kernels are, with all parts.

    By itself Numba does both for every function together with all that it calls; the innermost of five levels would
    be compiled five times.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        # The engine gets nothing but what Numba looks up there: the place of the function's environment.
        names = [g.name for g in self._final_module.global_variables if g.name.startswith("_ZN08NumbaEnv")]
        places = "".join(f'@"{name}" = common global ptr null\n' for name in names)
        self._codegen._add_module(llvmlite.binding.parse_assembly(places))
        self._finalize_specific()
        self._finalized = True


class _CalledLibrary(_PartLibrary):
    """The same, that stays a function of its own."""

    def _optimize_functions(self, module: Any) -> None:
        for function in module.functions:
            if not function.is_declaration:
                function.add_function_attribute("noinline")
        super()._optimize_functions(module)


class _PartCompiler(Compiler):
    library: type[_PartLibrary] = _PartLibrary

    def compile_extra(self, function: Any) -> Any:
        # This reaches into Numba. With a version that was not tried, it compiles parts its own way: twice as long.
        if numba.__version__.startswith(TRIED):
            self.state.library = self.library(self.state.targetctx.codegen(), function.__qualname__)
        return super().compile_extra(function)


class _CalledCompiler(_PartCompiler):
    library = _CalledLibrary


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a part of a kernel for compiled code to call: without an entry for Python that takes half the time."""
    return njit(no_cpython_wrapper=True, pipeline_class=_PartCompiler, **_OPTIONS)(function)


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a part once, however often it is called: for long loops, which take the compiler most of its time."""
    return njit(no_cpython_wrapper=True, pipeline_class=_CalledCompiler, **_OPTIONS)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a part into its caller, where it knows the sizes of arrays: for loops over many of them."""
    return njit(no_cpython_wrapper=True, forceinline=True, pipeline_class=_PartCompiler, **_OPTIONS)(function)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a kernel that Python calls: when first called with arguments of a type, or loaded from the cache."""
    versions: dict[tuple[Any, ...], Callable[..., Any]] = {}
    known: dict[tuple[Any, ...], Callable[..., Any]] = {}
    locks: dict[int, threading.RLock] = {}

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        kinds = tuple([(a.dtype, a.ndim, a.flags.num) if type(a) is np.ndarray else _kind(a) for a in args])
        if kinds not in known:
            types = tuple(map(numba.typeof, args))
            with locks.setdefault(os.getpid(), threading.RLock()):  # that of a parent may be held for ever
                if types not in versions:
                    versions[types] = _version(function, types)
                known[kinds] = versions[types]
        return known[kinds](*args)

    return call


def _kind(value: Any) -> Any:
    """Tell types apart as `numba.typeof` does: 11 µs instead of 270 for the work space of a median."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.ndim, value.flags.num
    if isinstance(value, tuple):
        return (type(value), *map(_kind, value))
    return value if isinstance(value, type) else type(value)


def _version(function: Callable[..., Any], types: tuple[Any, ...]) -> Callable[..., Any]:
    """Load the compiled function for these types, after it was compiled if need be."""
    folder = _folder(function, types)
    wrong: Exception | None = None
    for _ in range(0 if folder is None else 2):  # again if what was kept is damaged
        assert folder is not None
        is_kept, problem = any(folder.rglob("*.nbc")), ""
        try:
            if not is_kept:
                compile_apart(folder, function, types)
        except ApartError as error:
            problem = f": {error}"
        except OSError as error:
            wrong = error
            if isinstance(error, FileNotFoundError):
                continue  # another process cleared away what it found damaged
            break
        try:
            kernel = compile_below(folder, function, types)
        except (OSError, MemoryError) as error:
            wrong = error
            break
        except Exception as error:
            # Machines that lose power leave truncated files, and unpickling those raises almost anything.
            wrong = error
            shutil.rmtree(folder, ignore_errors=True)
            continue
        if not kernel.stats.cache_hits:
            warnings.warn(f"kernels are compiled in this process, which then holds some 90 MB more{problem}")
        return kernel
    kernel = njit(**_OPTIONS)(function)
    kernel.compile(types)
    if isinstance(wrong, OSError):
        _say_uncached(wrong)
    elif wrong is not None:
        warnings.warn(f"a kernel is compiled in this process, as it cannot be loaded: {wrong}")
    return kernel


def _say_uncached(error: BaseException) -> None:
    warnings.warn(
        f"kernels are compiled in every process, as nothing can be cached: {error}; set NUMBA_CACHE_DIR"
    )


def compile_below(folder: Path, function: Callable[..., Any], types: tuple[Any, ...]) -> Any:
    """Load a version from its folder, or compile it into that."""
    with _LOCK:
        before = config.CACHE_DIR
        try:
            config.CACHE_DIR = str(folder)
            kernel = njit(cache=True, **_OPTIONS)(function)
        finally:
            config.CACHE_DIR = before
    kernel.compile(types)
    return kernel


def _folder(function: Callable[..., Any], types: tuple[Any, ...]) -> Path | None:
    """Name and make the folder of a version; None where nothing can be written."""
    base = _cache()
    return None if base is None else base / name_of(function, types)


def name_of(function: Callable[..., Any], types: tuple[Any, ...]) -> str:
    """Name a version by all that its code depends on, and by what Numba makes sure of when it loads it."""
    file = Path(
        function.__code__.co_filename
    )  # Numba takes no code of another, or of one that was copied since
    what = (
        _sources(), str(file), file.stat().st_mtime, sys.implementation.cache_tag, sys.flags.optimize, _cpu(),
        numba.__version__, function.__qualname__, str(types),
    )  # fmt: skip
    return f"{function.__name__.strip('_')}-{hashlib.sha256(repr(what).encode()).hexdigest()[:24]}"


@functools.cache
def _cache() -> Path | None:
    """Find a folder that can be written, once per process."""
    try:
        Path(__file__).stat()  # where a package lies in an archive, Numba keeps nothing here
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        base = Path(config.CACHE_DIR or Path(home, "tomoscale"))
        base.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=base).close()
    except (OSError, RuntimeError) as error:
        _say_uncached(error)
        return None
    return base


@functools.cache
def _sources() -> str:
    """Digest of this package: a kernel holds code of several files."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _cpu() -> tuple[str, str]:
    name, features = config.CPU_NAME, config.CPU_FEATURES
    return (
        name or llvmlite.binding.get_host_cpu_name(),
        features if features is not None else llvmlite.binding.get_host_cpu_features().flatten(),
    )
