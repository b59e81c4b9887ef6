"""Write the headers that CuPy's runtime.pyx is compiled against: ``headers.py SOURCE FOLDER CUDA_MAJOR``.

The types are those of CuPy's own stub headers (for documentation builds), but for three structures that the stubs have
only in part: those come from CuPy's Cython declarations. The functions are declared by native/runtime.cpp.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def structure(declarations: str, name: str, marker: str) -> str:
    """The C++ of a ``ctypedef struct``: of the first variant whose fields mention `marker`."""
    pattern = rf"( *)ctypedef struct \w+ '{name}':\n((?:\1 +[^\n]*\n| *\n)+)"
    for found in re.finditer(pattern, declarations):
        if marker in found[2]:
            fields = [re.sub(r"\s*#.*", "", line).strip() for line in found[2].splitlines()]
            return f"struct {name} {{ " + " ".join(f"{field};" for field in fields if field) + " };\n"
    raise SystemExit(f"{name}: expected a structure with {marker!r} in CuPy's declarations, got none")


def main(source: Path, out: Path, major: int) -> None:
    """Write the four headers."""
    stubs = source / "cupy_backends/stub"
    types = (stubs / "cupy_cuda_common.h").read_text()
    functions = (stubs / "cupy_cuda_runtime.h").read_text()
    declarations = (source / "cupy_backends/cuda/api/_runtime_typedef.pxi").read_text()

    types = types.replace("#define CUDA_VERSION 0", f"#define CUDA_VERSION {major}000")
    types = types.replace('extern "C" {', "", 1).replace('} // extern "C"', "")
    # the first variant with such fields is the one of this version
    properties = structure(declarations, "cudaDeviceProp", f"CUDA {major}.0 field" if major > 12 else " clockRate")
    identifier = "typedef struct { char bytes[16]; } cudaUUID;\n"
    types = re.sub(r"typedef struct \{[^}]*\} cudaDeviceProp;", identifier + properties, types)
    pointer = structure(declarations, "cudaPointerAttributes", "int type")
    types = re.sub(r"struct cudaPointerAttributes\s*\{[^}]*\};", pointer, types)
    more = "\n".join(re.findall(r"^(?:enum \w+ \{\};|struct \w+ \{[^}]*\};)$", functions, re.MULTILINE))
    more = more.replace("int id;", "int id; cudaMemLocationType type;")

    out.mkdir(parents=True)
    (out / "cuda_runtime.h").write_text(f"#pragma once\n#include <stddef.h>\n{types}\n{more}\n")
    for name in ("cuda.h", "cuda_runtime_api.h", "cuda_profiler_api.h"):
        (out / name).write_text('#pragma once\n#include "cuda_runtime.h"\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
