"""Random steps for a time loop: graphs of the operations that `execution.graph` knows, with data to run them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

ROWS = (1, 2, 3, 4, 6)
BINARY = ("add", "subtract", "multiply", "maximum", "minimum")
UNARY = ("tanh", "negative", "abs", "damped", "root", "logarithm")


@dataclass(frozen=True)
class Step:
    """A step as a list of instructions, each on the values before it: hashable, as the cells' steps are."""

    instructions: tuple[tuple[Any, ...], ...]
    carry: tuple[int, ...]
    outputs: tuple[int, ...]

    def __call__(self, xp: Any, shared: Any, carry: Any, inputs: Any) -> tuple[Any, Any]:
        values = [*carry, *inputs, *shared]
        for op, *operands in self.instructions:
            values.append(_computed(xp, op, values, operands))
        return tuple(values[k] for k in self.carry), tuple(values[k] for k in self.outputs)


@dataclass(frozen=True)
class Program:
    """A step and the arrays it runs over, in float64."""

    step: Step
    carry: tuple[np.ndarray, ...]
    xs: tuple[np.ndarray, ...]
    shared: tuple[np.ndarray, ...]
    reverse: bool
    donate: bool

    def __repr__(self) -> str:
        shapes = {name: [a.shape for a in getattr(self, name)] for name in ("carry", "xs", "shared")}
        return f"Program({self.step}, {shapes}, reverse={self.reverse}, donate={self.donate})"


def _computed(xp: Any, op: str, values: list[Any], operands: list[Any]) -> Any:
    if op == "rows":
        k, start, stop = operands
        return values[k][start:stop, ...]
    if op == "number":
        name, k, number, swapped = operands
        if name == "divide":
            return number / (2 + abs(values[k])) if swapped else values[k] / number
        return getattr(xp, name)(values[k], number) if name in ("maximum", "minimum") else values[k] * number + number
    if op == "full":
        k, number = operands
        return xp.zeros_like(values[k]) if number == 0 else xp.full_like(values[k], number)
    found = [values[k] for k in operands]
    if op == "matmul":
        return found[0] @ found[1]
    if op == "transpose":
        return found[0].T
    if op == "concat":
        return xp.concat(found, axis=0)
    if op in ("sum", "mean"):
        return getattr(xp, op)(found[0], axis=0, keepdims=True)
    if op == "damped":
        return found[0] / (1 + found[0] ** 2)
    if op == "root":
        return xp.sqrt(abs(found[0]) + 0.5)
    if op == "logarithm":
        return xp.log1p(xp.exp(xp.tanh(found[0])))
    if op == "threshold":  # away from what the operations give exactly, which rounding would decide
        return found[0] > 0.1234567
    if op == "float":
        return xp.astype(found[0], values[0].dtype)
    return getattr(xp, op)(*found)


class _Builder:
    """Draws instructions whose shapes fit."""

    def __init__(self, pick: Any, batch: int) -> None:
        self.pick, self.batch = pick, batch
        self.shapes: list[tuple[int, int]] = []
        self.boolean: list[bool] = []
        self.tame: list[bool] = []  # not larger than the inputs
        self.instructions: list[tuple[Any, ...]] = []

    def one(self, options: Any) -> Any:
        options = list(options)
        return options[self.pick(len(options))]

    def add(self, shape: tuple[int, int], boolean: bool = False, tame: bool = True, *instruction: Any) -> int:
        self.shapes.append(shape)
        self.boolean.append(boolean)
        self.tame.append(tame)
        if instruction:
            self.instructions.append(instruction)
        return len(self.shapes) - 1

    def some(self, test: Any) -> list[int]:
        return [k for k in range(len(self.shapes)) if test(k)]

    def any_floating(self) -> int:
        return int(self.one(self.some(lambda k: not self.boolean[k])))

    def fitting(self, k: int, *, boolean: bool = False) -> int | None:
        def fits(other: int) -> bool:
            pairs = zip(self.shapes[k], self.shapes[other], strict=True)
            return self.boolean[other] == boolean and all(a == b or 1 in (a, b) for a, b in pairs)

        found = self.some(fits)
        return self.one(found) if found else None

    def broadcast(self, *numbers: int) -> tuple[int, int]:
        shapes = [self.shapes[k] for k in numbers]
        return max(s[0] for s in shapes), max(s[1] for s in shapes)

    def grow(self) -> None:
        """One more instruction; none where the drawn kind finds nothing that fits."""
        kind = self.one(
            ["binary", "binary", "binary", "unary", "unary", "number", "rows", "rows", "concat", "concat", "matmul"]
            if self.pick(2)
            else ["matmul", "transpose", "sum", "full", "threshold", "where", "where", "logical", "float", "equal"]
        )
        k = self.any_floating()
        tame = self.tame[k]
        if kind == "binary":
            other, op = self.fitting(k), self.one(BINARY)
            assert other is not None
            both = tame and self.tame[other]
            pair = (k, other) if self.pick(2) else (other, k)
            self.add(self.broadcast(k, other), False, both and op in ("maximum", "minimum"), op, *pair)
        elif kind == "unary":
            op = self.one(UNARY)
            self.add(self.shapes[k], False, op in ("tanh", "damped") or (tame and op in ("negative", "abs")), op, k)
        elif kind == "number":
            name = self.one(["maximum", "divide", "affine"])
            number = self.one([-1.5, 0.25, 2, 0.7])
            self.add(self.shapes[k], False, name == "maximum" and tame, "number", name, k, number, bool(self.pick(2)))
        elif kind == "rows":
            k = self.pick(len(self.shapes))
            rows = self.shapes[k][0]
            start = self.pick(rows)
            stop = start + 1 + self.pick(rows - start)
            self.add((stop - start, self.shapes[k][1]), self.boolean[k], self.tame[k], "rows", k, start, stop)
        elif kind == "concat":
            columns = self.shapes[k][1]
            fits = self.some(lambda o: self.shapes[o][1] == columns and not self.boolean[o])
            parts = [k, *(self.one(fits) for _ in range(1 + self.pick(2)))]
            rows = sum(self.shapes[part][0] for part in parts)
            if rows <= 12:
                self.add((rows, columns), False, all(self.tame[part] for part in parts), "concat", *parts)
        elif kind == "matmul":
            fits = self.some(lambda o: self.shapes[o][1] == self.shapes[k][0] and not self.boolean[o])
            if fits:
                left = self.one(fits)
                self.add((self.shapes[left][0], self.shapes[k][1]), False, False, "matmul", left, k)
        elif kind == "transpose":
            self.add(self.shapes[k][::-1], False, tame, "transpose", k)
        elif kind == "sum":
            self.add((1, self.shapes[k][1]), False, False, self.one(["sum", "mean"]), k)
        elif kind == "full":
            self.add(self.shapes[k], False, True, "full", k, self.one([0, 0, 1.0, -0.3]))
        elif kind == "threshold":
            self.add(self.shapes[k], True, True, "threshold", k)
        elif kind in ("where", "float"):
            condition = self.fitting(k, boolean=True)
            if condition is None:
                return
            if kind == "float":
                self.add(self.shapes[condition], False, True, "float", condition)
                return
            fits = self.some(lambda o: self.shapes[o] == self.shapes[k] and not self.boolean[o])
            other = self.one(fits)
            shape = self.broadcast(condition, k)
            self.add(shape, False, tame and self.tame[other], "where", condition, k, other)
        elif kind in ("logical", "equal"):
            booleans = self.some(lambda o: self.boolean[o])
            if booleans:
                first = self.one(booleans)
                other = self.fitting(first, boolean=True)
                op = self.one(["logical_and", "logical_or"] if kind == "logical" else ["equal", "not_equal"])
                if self.pick(3) == 0:
                    self.add(self.shapes[first], True, True, "logical_not", first)
                else:
                    self.add(self.broadcast(first, other), True, True, op, first, other)

    def step(self, carried: list[tuple[int, int]]) -> Step:
        """The step: any carry of the right form that doesn't grow, any outputs."""
        new = []
        for shape in carried:
            fits = self.some(lambda k, s=shape: self.shapes[k] == s and not self.boolean[k])
            k = self.one(fits[-3:] if self.pick(2) else fits)
            new.append(k if self.tame[k] else self.add(shape, False, True, "tanh", k))
        recent: Any = range(max(len(self.shapes) - 6, 0), len(self.shapes))
        everything: Any = range(len(self.shapes))
        if self.pick(2):  # what a compiled loop takes: no inputs, all as wide as the carry
            inputs = len(self.shapes) - len(self.instructions)
            recent = [k for k in everything if k >= inputs and self.shapes[k][1] == self.batch] or recent
            everything = recent
        outputs = [self.one(recent if self.pick(3) else everything) for _ in range(1 + self.pick(4))]
        return Step(tuple(self.instructions), tuple(new), tuple(outputs))


def build(pick: Any) -> Program:
    """A program; ``pick(n)`` gives a number below n."""
    batch = (1, 3, 3, 4)[pick(4)]
    builder = _Builder(pick, batch)
    carried = [(builder.one(ROWS), batch) for _ in range(1 + pick(3))]
    inputs = [(builder.one(ROWS), batch) for _ in range(1 + pick(3))]
    boolean = [False] + [pick(3) == 0 for _ in inputs[1:]]
    shared = [(builder.one(ROWS), builder.one((*ROWS, 1, batch))) for _ in range(pick(4))]
    shared_boolean = [pick(5) == 0 for _ in shared]
    flags = [*(False for _ in carried), *boolean, *shared_boolean]
    for shape, flag in zip([*carried, *inputs, *shared], flags, strict=True):
        builder.add(shape, flag)
    for _ in range(pick(12)):
        builder.grow()
    step = builder.step(carried)
    rng = np.random.default_rng(pick(1 << 16))
    steps = 1 + pick(4)

    def values(shape: tuple[int, ...], flag: bool) -> np.ndarray:
        return rng.random(shape) < 0.5 if flag else rng.standard_normal(shape)

    return Program(
        step,
        tuple(values(shape, False) for shape in carried),
        tuple(values((steps, *shape), flag) for shape, flag in zip(inputs, boolean, strict=True)),
        tuple(values(shape, flag) for shape, flag in zip(shared, shared_boolean, strict=True)),
        bool(pick(2)),
        bool(pick(2)),
    )


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Any program."""
    return build(lambda n: draw(st.integers(0, n - 1)))
