// Barriers, votes, shuffles and atomics: the driver runs the threads of a block as coroutines on one thread of the host.
#pragma once

extern "C" {
void emu_block_barrier(void);
void emu_warp_barrier(unsigned mask);
uint64_t emu_exchange(unsigned mask, uint64_t value, int from_lane);
unsigned emu_ballot(unsigned mask, int predicate);
int emu_block_count(int predicate);
int emu_lane(void);
}

inline void __syncthreads() { emu_block_barrier(); }
inline int __syncthreads_count(int predicate) { return emu_block_count(predicate); }
inline int __syncthreads_or(int predicate) { return emu_block_count(predicate) != 0; }
inline int __syncthreads_and(int predicate) { return emu_block_count(!predicate) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { emu_warp_barrier(mask); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emu_ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return emu_ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emu_ballot(mask, !predicate) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// A lane reads its own value where the other lane is outside its segment of `width` lanes.
template <class T>
inline T emu_shuffle(unsigned mask, T value, int from, bool inside) {
  static_assert(sizeof(T) <= 8, "shuffles are of at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = emu_exchange(mask, bits, inside ? from : emu_lane());
  memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return emu_shuffle(mask, value, (emu_lane() & -width) | (lane & (width - 1)), true);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int from = emu_lane() - (int)delta;
  return emu_shuffle(mask, value, from, from >= (emu_lane() & -width));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int from = emu_lane() + (int)delta;
  return emu_shuffle(mask, value, from, from < (emu_lane() & -width) + width);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int from = emu_lane() ^ lanes;
  return emu_shuffle(mask, value, from, from < (emu_lane() & -width) + width);
}

// Threads of a grid never run at the same time, so that an atomic operation is an ordinary one.
#define EMU_ATOMIC(name, expression)                                            \
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>         \
  inline T name(T* address, std::common_type_t<T> value) {                      \
    const T old = *address;                                                     \
    *address = expression;                                                      \
    return old;                                                                 \
  }
EMU_ATOMIC(atomicAdd, old + value)
EMU_ATOMIC(atomicSub, old - value)
EMU_ATOMIC(atomicExch, value)
EMU_ATOMIC(atomicMax, value > old ? value : old)
EMU_ATOMIC(atomicMin, value < old ? value : old)
EMU_ATOMIC(atomicAnd, old & value)
EMU_ATOMIC(atomicOr, old | value)
EMU_ATOMIC(atomicXor, old ^ value)
EMU_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
EMU_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
template <class T>
inline T atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}
