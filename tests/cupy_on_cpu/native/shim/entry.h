// What the driver finds in a compiled kernel: `emu_kernel_NAME`.
#pragma once

// A kernel that reads an address from memory casts it from an integer: it then means the data, as parameters do.
template <class To, class From>
inline To emu_reinterpret(From&& x) {
  if constexpr (std::is_pointer_v<To> && std::is_integral_v<std::remove_reference_t<From>>)
    return reinterpret_cast<To>(data_address((uint64_t)x));
  else
    return reinterpret_cast<To>(x);
}
#define reinterpret_cast emu_reinterpret

struct EmuKernel {
  void (*block)(void** parameters);   // all threads of a block, one after the other; or
  void (*thread)(void** parameters);  // one thread, for the driver to run as a coroutine
  int parameters;
  const unsigned* sizes;  // in bytes; EMU_NUMBER: a number, never an address
  char *shared_from, *shared_to;
};
enum : unsigned { EMU_NUMBER = 1u << 31 };
#define EMU_SECTION_END __attribute__((weak, visibility("hidden")))
extern char __start_emu_shared[] EMU_SECTION_END, __stop_emu_shared[] EMU_SECTION_END;

template <auto kernel>
struct EmuEntry;
template <class... Parameters, void (*kernel)(Parameters...)>
struct EmuEntry<kernel> {
  static constexpr unsigned sizes[] = {sizeof(Parameters) | (std::is_arithmetic_v<Parameters> ? EMU_NUMBER : 0)..., 0};
  static constexpr int count = sizeof...(Parameters);

  static void block(void** parameters) { loop(parameters, std::index_sequence_for<Parameters...>()); }
  static void thread(void** parameters) { call(parameters, std::index_sequence_for<Parameters...>()); }

 private:
  template <size_t... i>
  static void call(void** p, std::index_sequence<i...>) {
    kernel(*(std::remove_const_t<Parameters>*)p[i]...);
  }
  template <size_t... i>
  static void loop(void** p, std::index_sequence<i...>) {
    threads(*(std::remove_const_t<Parameters>*)p[i]...);
  }
  static inline void threads(std::remove_const_t<Parameters>... parameters) {
    const unsigned nx = blockDim.x, ny = blockDim.y, nz = blockDim.z;
    const bool reverse = emu_reverse;
    for (unsigned z = 0; z < nz; z++)
      for (unsigned y = 0; y < ny; y++)
        for (unsigned x = 0; x < nx; x++) {
          threadIdx = reverse ? uint3{nx - 1 - x, ny - 1 - y, nz - 1 - z} : uint3{x, y, z};
          kernel(parameters...);
        }
  }
};

// Written after the source by compiler.py, once a kernel.
#define EMU_EXPORT(name, block, thread, ...)                                                   \
  extern "C" __attribute__((visibility("default"))) const EmuKernel emu_kernel_##name = {       \
      block, thread, EmuEntry<__VA_ARGS__>::count, EmuEntry<__VA_ARGS__>::sizes, __start_emu_shared, __stop_emu_shared};
#define EMU_INDEPENDENT(name, ...) EMU_EXPORT(name, (EmuEntry<__VA_ARGS__>::block), nullptr, __VA_ARGS__)
#define EMU_COOPERATING(name, ...) EMU_EXPORT(name, nullptr, (EmuEntry<__VA_ARGS__>::thread), __VA_ARGS__)
