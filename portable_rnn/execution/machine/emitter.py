"""Write machine code as LLVM's intermediate representation: vector code is written as such, not hoped for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeAlias

from .compiler import NUMBER_BYTES, machine

if TYPE_CHECKING:
    from llvmlite import ir

__all__ = ["Emitter", "Word"]

Word: TypeAlias = "ir.Value | int"  # a number that the code computes, or one that is known when it is written

_TINY_AS_ZERO = 0x8040  # of mxcsr: as results (15) and as operands (6)
_TURNS = 1 << 12  # of waiting, after which another thread may have the processor


class Emitter:
    """Writes one function, whose arguments are machine words: numbers, and addresses of arrays of `dtype`.

    Parameters
    ----------
    module : llvmlite.ir.Module
    name : str
    arguments : sequence of str
    dtype : "float32" or "float64"
    lanes : int
        Numbers in a vector.
    """

    def __init__(
        self, module: ir.Module, name: str, arguments: list[str], dtype: str = "float64", lanes: int = 1
    ) -> None:
        from llvmlite import ir

        self.ir, self.module, self.dtype, self.lanes = ir, module, dtype, lanes
        self.word, self.bit, self.byte = ir.IntType(64), ir.IntType(1), ir.IntType(8)
        self.number = ir.FloatType() if dtype == "float32" else ir.DoubleType()
        self.number_bytes = NUMBER_BYTES[dtype]
        self.pointer = ir.PointerType()
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [self.word] * len(arguments)), name)
        self.arguments = dict(zip(arguments, self.function.args, strict=True))
        self.builder = ir.IRBuilder(self.function.append_basic_block())

    # ------------------------------------------------------------------ whole numbers

    def integer(self, value: ir.Value) -> Word:
        return self.word(value) if isinstance(value, int) else value

    def plus(self, a: Word, b: Word) -> Word:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(b, int) and b == 0:
            return a
        return self.builder.add(self.integer(a), self.integer(b))

    def minus(self, a: Word, b: Word) -> Word:
        return self.builder.sub(self.integer(a), self.integer(b))

    def times(self, a: Word, b: Word) -> Word:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if 1 in (a, b):
            return b if a == 1 else a
        if 0 in (a, b):
            return 0
        return self.builder.mul(self.integer(a), self.integer(b))

    def rounded_down(self, a: Word, to: int) -> Word:
        """The largest multiple of `to`, a power of 2, up to `a`."""
        return self.builder.and_(self.integer(a), self.word(-to))

    def less(self, a: Word, b: Word) -> ir.Value:
        return self.builder.icmp_signed("<", self.integer(a), self.integer(b))

    def is_set(self, a: Word) -> ir.Value:
        """Whether a word is not 0."""
        return self.builder.icmp_signed("!=", self.integer(a), self.word(0))

    def equal(self, a: Word, b: Word) -> ir.Value:
        return self.builder.icmp_signed("==", self.integer(a), self.integer(b))

    def smaller(self, a: Word, b: Word) -> Word:
        return self.builder.select(self.less(a, b), self.integer(a), self.integer(b))

    # ------------------------------------------------------------------ control

    @contextmanager
    def loop(
        self, start: Word, stop: Word, step: Word = 1, **carried: ir.Value
    ) -> Iterator[tuple[ir.Value, SimpleNamespace]]:
        """``for k in range(start, stop, step)``: gives k, and `carried`, values that the body may set anew.

        After the loop, `carried` holds the last ones.
        """
        b = self.builder
        before = b.block
        head, body, after = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        k = b.phi(self.word)
        k.add_incoming(self.integer(start), before)
        phis = {}
        for name, value in carried.items():
            phis[name] = b.phi(value.type)
            phis[name].add_incoming(value, before)
        b.cbranch(self.less(k, stop), body, after)
        b.position_at_end(body)
        values = SimpleNamespace(**phis)
        yield k, values
        k.add_incoming(self.plus(k, step), b.block)
        for name, phi in phis.items():
            phi.add_incoming(getattr(values, name), b.block)
        b.branch(head)
        b.position_at_end(after)
        vars(values).update(phis)

    @contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        with self.builder.if_then(condition):
            yield

    @contextmanager
    def tiny_as_zero(self) -> Iterator[None]:
        """Where numbers too small to be normal cost many times the others, take them as zero.

        They come with gradients that vanish over time, and with what stands by chance in memory that nobody uses.
        """
        if not machine().has_control_word:
            yield
            return
        b, word = self.builder, self.ir.IntType(32)
        before, place = b.alloca(word), b.alloca(word)
        kind = (self.ir.VoidType(), [self.pointer])
        load, store = (self.declared(f"llvm.x86.sse.{name}mxcsr", *kind) for name in ("ld", "st"))
        pointers = [b.bitcast(slot, self.pointer) for slot in (before, place)]
        b.call(store, pointers[:1])
        changed = b.or_(b.load(pointers[0], typ=word, align=4), word(_TINY_AS_ZERO))
        b.store(changed, pointers[1], align=4)
        b.call(load, pointers[1:])
        yield
        b.call(load, pointers[:1])

    def wait_for_others(self, counter: Word, target: Word) -> None:
        """Count this thread at an address, and go on when as many as `target` were counted."""
        self.builder.atomic_rmw("add", self._at(counter), self.word(1), "acq_rel")
        self.wait_while(lambda: self.less(self.load_shared(counter), target))

    def wait_while(self, condition: Callable[[], ir.Value]) -> None:
        """Look at a condition again and again, which other threads change."""
        b = self.builder
        head, again, after = (b.append_basic_block() for _ in range(3))
        before = b.block
        b.branch(head)
        b.position_at_end(head)
        turns = b.phi(self.word)
        turns.add_incoming(self.word(0), before)
        b.cbranch(condition(), again, after)
        b.position_at_end(again)
        self.give_way_every(_TURNS, turns)
        turns.add_incoming(b.add(turns, self.word(1)), b.block)
        b.branch(head)
        b.position_at_end(after)

    def give_way_every(self, most: int, turns: Word) -> None:
        """Let other threads have this processor, once in so many turns: a power of 2."""
        if not hasattr(os, "sched_yield"):
            return
        b = self.builder
        long = b.icmp_signed("==", b.and_(turns, self.word(most - 1)), self.word(most - 1))
        with b.if_then(long, likely=False):
            b.call(self.declared("sched_yield", self.ir.IntType(32), []), [])

    def finish(self) -> None:
        self.builder.ret_void()

    def call(self, name: str, *words: Word) -> None:
        """A function of another module."""
        function = self.declared(name, self.ir.VoidType(), [self.word] * len(words))
        self.builder.call(function, [self.integer(word) for word in words])

    def call_at(self, address: Word, *words: Word) -> ir.Value:
        """The word that a function at an address returns; of one that returns nothing it means nothing."""
        kind = self.ir.FunctionType(self.word, [self.word] * len(words))
        return self.builder.call(_function_at(self.ir, self._at(address), kind), [self.integer(word) for word in words])

    # ------------------------------------------------------------------ memory

    def local(self, count: int) -> ir.Value:
        """The address of memory for so many numbers, while the function runs; asked for where it begins."""
        place = self.builder.alloca(self.number, self.word(count))
        place.align = 64
        return self.builder.ptrtoint(place, self.word)

    def address(self, base: Word, index: Word, size: int | None = None) -> Word:
        """Of element `index` of an array at `base`."""
        return self.plus(base, self.times(index, size or self.number_bytes))

    def _at(self, address: Word) -> ir.Value:
        return self.builder.inttoptr(self.integer(address), self.pointer)

    def vector(self, kind: ir.Type, lanes: int | None = None) -> ir.Value:
        return self.ir.VectorType(kind, lanes or self.lanes)

    def load_word(self, address: Word) -> ir.Value:
        return self.builder.load(self._at(address), typ=self.word)

    def store_word(self, value: ir.Value, address: Word) -> None:
        self.builder.store(self.integer(value), self._at(address))

    def load_shared(self, address: Word) -> ir.Value:
        """A word that other threads write, and with it what they wrote before."""
        return self.builder.load_atomic(self._at(address), "acquire", 8, typ=self.word)

    def store_shared(self, value: ir.Value, address: Word) -> None:
        """A word that other threads read."""
        self.builder.atomic_rmw("xchg", self._at(address), self.integer(value), "acq_rel")

    def exchange(self, address: Word, expected: int, value: int) -> ir.Value:
        """Set a word that other threads read, if it is as expected; whether it was."""
        found = self.builder.cmpxchg(self._at(address), self.word(expected), self.word(value), "acq_rel", "acquire")
        return self.builder.extract_value(found, 1)

    def load_number(self, address: Word, kind: ir.Type | None = None) -> ir.Value:
        """One number (or one of `kind`)."""
        size = self.number_bytes if kind is None else 1
        return self.builder.load(self._at(address), typ=kind or self.number, align=size)

    def store_number(self, value: ir.Value, address: Word) -> None:
        self.builder.store(value, self._at(address), align=self.number_bytes)

    def load(
        self, address: Word, mask: ir.Value | None = None, kind: ir.Type | None = None, lanes: int | None = None
    ) -> ir.Value:
        """A vector of numbers (or of `kind`), zero where the mask is not set."""
        kind = kind or self.number
        size = self.number_bytes if kind is self.number else 1
        form = self.vector(kind, lanes)
        if mask is None:
            return self.builder.load(self._at(address), typ=form, align=size)
        word = self.ir.IntType(32)
        name = f"llvm.masked.load.v{form.count}{_short(kind)}.p0"
        function = self.declared(name, form, [self.pointer, word, mask.type, form])
        return self.builder.call(function, [self._at(address), word(size), mask, form(None)])

    def store(self, value: ir.Value, address: Word, mask: ir.Value | None = None) -> None:
        form = value.type
        size = self.number_bytes if form.element == self.number else 1
        if mask is None:
            self.builder.store(value, self._at(address), align=size)
            return
        word = self.ir.IntType(32)
        name = f"llvm.masked.store.v{form.count}{_short(form.element)}.p0"
        function = self.declared(name, self.ir.VoidType(), [form, self.pointer, word, mask.type])
        self.builder.call(function, [value, self._at(address), word(size), mask])

    def mask(self, count: Word) -> ir.Value:
        """The first `count` lanes."""
        numbers = self.ir.Constant(self.vector(self.word), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.spread(self.integer(count)))

    def spread(self, value: ir.Value, lanes: int | None = None) -> ir.Value:
        """A value in every lane."""
        form, index = self.vector(value.type, lanes), self.ir.IntType(32)
        undefined = self.ir.Constant(form, self.ir.Undefined)
        one = self.builder.insert_element(undefined, value, index(0))
        return self.builder.shuffle_vector(one, undefined, self.ir.Constant(self.vector(index, lanes), None))

    def constant(self, value: float, lanes: int | None = None) -> ir.Value:
        """A number in every lane."""
        form = self.vector(self.number, lanes)
        return self.ir.Constant(form, [float(value)] * form.count)

    # ------------------------------------------------------------------ vectors of numbers

    def declared(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Value:
        found = self.module.globals.get(name)
        return found or self.ir.Function(self.module, self.ir.FunctionType(result, arguments), name)

    def intrinsic(self, name: str, *values: ir.Value) -> ir.Value:
        form = values[0].type
        full = f"llvm.{name}.v{form.count}{_short(form.element)}"
        return self.builder.call(self.declared(full, form, [v.type for v in values]), values)

    def multiply_add(self, a: Word, b: Word, c: ir.Value) -> ir.Value:
        """``a * b + c``, rounded once where the processor can."""
        return self.intrinsic("fmuladd", a, b, c)

    def total(self, value: ir.Value) -> ir.Value:
        """The sum of the lanes."""
        form = value.type
        name = f"llvm.vector.reduce.fadd.v{form.count}{_short(form.element)}"
        function = self.declared(name, self.number, [self.number, form])
        return self.builder.call(function, [self.number(0.0), value], fastmath=("reassoc",))


def _function_at(ir: ir.Value, pointer: ir.Value, kind: ir.Type) -> ir.Value:
    """What llvmlite takes for a function: a pointer that knows its kind."""

    class Function(ir.Value):  # type: ignore[misc]
        type, function_type = pointer.type, kind

        def get_reference(self) -> ir.Value:
            return pointer.get_reference()

    return Function()


def _short(kind: ir.Type) -> str:
    return {"float": "f32", "double": "f64"}.get(str(kind), str(kind))
