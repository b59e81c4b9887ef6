"""What a maintainer runs: ``nox -l`` lists it, ``nox -s quick`` is the loop while working.

Each session makes its environment once and keeps it; ``nox -R`` does not look for newer packages. In an environment
of your own that has everything, run ``nox --no-venv --no-install -s quick``. What follows ``--`` goes to the command.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["quick"]
nox.options.reuse_venv = "yes"

LIBRARIES = ("-r", ".ci/requirements.txt")
# Test processes share the cores: a thread pool in each would only get in the way.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "agg"}


# What changes most is tested first: cells, layers, training, how a step runs, and the layout of the package.
QUICK = (
    *("bad_data", "bad_input", "composite", "contract", "data", "execution", "execution_cells", "gradients", "imports"),
    *("initializers", "losses", "model", "more_cells", "namespace", "optimizers", "options", "package", "sequences"),
)


@nox.session
def quick(session: nox.Session) -> None:
    """Under a minute, once the environment is there: lint, and the fast tests on NumPy."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    files = [f"tests/test_{name}.py" for name in QUICK]
    options = ["-q", "-n", "auto", "-m", "not slow", "--backend", "numpy"]
    session.run("pytest", *options, *(session.posargs or files), env=ONE_THREAD)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format, strict types."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """What the README's test command runs: NumPy and array-api-strict, everything that needs no other library."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-n", "auto", "--durations=15", *session.posargs, env=ONE_THREAD)


@nox.session
@nox.parametrize("column", ["numpy", "jax", "jax-jit", "torch", "dpnp", "array_api_strict"])
def matrix(session: nox.Session, column: str) -> None:
    """One column of the matrix on its array library, as in ``nox -s "matrix(column='jax')"``."""
    session.install("-e", ".[dev]", *LIBRARIES)
    session.run("pytest", "-n", "auto", "-m", "matrix", "--backend", column, *session.posargs, env=ONE_THREAD)


@nox.session
def cupy(session: nox.Session) -> None:
    """CuPy's columns of the matrix on a CPU, as tests/cupy_on_cpu/README.md says."""
    session.install("-e", ".[dev]", *LIBRARIES)
    session.run("bash", ".ci/cupy_on_cpu", external=True)


@nox.session
def compiled(session: nox.Session) -> None:
    """The NumPy column and all that takes no array library, with compiled time loops and every library installed."""
    session.install("-e", ".[dev]", *LIBRARIES)
    environment = {**ONE_THREAD, "PORTABLE_RNN_COMPILE": "1"}
    session.run("pytest", "-n", "auto", "--durations=15", "--backend", "numpy", *session.posargs, env=environment)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, where a broken link is an error; it lies in site/."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Training steps and predictions beside PyTorch's, on this machine."""
    session.install(".[fast,plot]", "torch")
    session.run("portable-rnn", "bench", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Forty small faults planted one by one: the tests have to see them (a quarter of an hour)."""
    session.install("-e", ".[dev]")
    session.run("python", "tests/mutation.py", *session.posargs, env=ONE_THREAD)
