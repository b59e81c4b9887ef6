"""Make runtime.cpp of CuPy's runtime.pyx, as CuPy's own build does: ``cythonize_runtime.py SOURCE CUDA_MAJOR``."""

from __future__ import annotations

import os
import sys

DIRECTIVES = {
    "embedsignature": True,
    "c_api_binop_methods": True,
    "binding": False,
    "warn.deprecated.IF": False,
    "legacy_implicit_noexcept": False,
}


def main(source: str, major: int) -> None:
    """Write the file beside its source."""
    import Cython  # of the environment that build.py makes
    from Cython.Build import cythonize
    from setuptools import Extension

    os.chdir(source)
    module = Extension("cupy_backends.cuda.api.runtime", ["cupy_backends/cuda/api/runtime.pyx"], language="c++")
    constants = {
        "CUPY_USE_CUDA_PYTHON": False,
        "CUPY_CUFFT_STATIC": False,
        "CUPY_CYTHON_VERSION": Cython.__version__,
        "CUPY_CUDA_VERSION": major * 1000,
        "CUPY_HIP_VERSION": 0,
    }
    cythonize([module], language_level=3, compiler_directives=DIRECTIVES, compile_time_env=constants)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
