// The functions that C++ overloads for float, double and integers.
#pragma once

template <class T>
using emu_if_integer = std::enable_if_t<std::is_integral_v<T>, double>;
template <class A, class B>
using emu_if_mixed = std::enable_if_t<
    std::is_arithmetic_v<A> && std::is_arithmetic_v<B> && !(std::is_same_v<A, B> && std::is_floating_point_v<A>), double>;

#define EMU_UNARY(name)                            \
  inline float name(float x) { return name##f(x); } \
  template <class T>                               \
  inline emu_if_integer<T> name(T x) { return name((double)x); }
#define EMU_BINARY(name)                                        \
  inline float name(float x, float y) { return name##f(x, y); } \
  template <class A, class B>                                   \
  inline emu_if_mixed<A, B> name(A x, B y) { return name((double)x, (double)y); }

EMU_UNARY(exp) EMU_UNARY(exp2) EMU_UNARY(expm1)
EMU_UNARY(log) EMU_UNARY(log2) EMU_UNARY(log10) EMU_UNARY(log1p) EMU_UNARY(logb)
EMU_UNARY(sqrt) EMU_UNARY(cbrt)
EMU_UNARY(sin) EMU_UNARY(cos) EMU_UNARY(tan) EMU_UNARY(asin) EMU_UNARY(acos) EMU_UNARY(atan)
EMU_UNARY(sinh) EMU_UNARY(cosh) EMU_UNARY(tanh) EMU_UNARY(asinh) EMU_UNARY(acosh) EMU_UNARY(atanh)
EMU_UNARY(erf) EMU_UNARY(erfc) EMU_UNARY(tgamma) EMU_UNARY(lgamma)
EMU_UNARY(floor) EMU_UNARY(ceil) EMU_UNARY(trunc) EMU_UNARY(round) EMU_UNARY(rint) EMU_UNARY(nearbyint)
EMU_UNARY(fabs)
EMU_BINARY(pow) EMU_BINARY(atan2) EMU_BINARY(hypot)
EMU_BINARY(fmod) EMU_BINARY(remainder) EMU_BINARY(fdim)
EMU_BINARY(fmax) EMU_BINARY(fmin) EMU_BINARY(copysign) EMU_BINARY(nextafter)

inline float exp10(float x) { return exp10f(x); }
inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
inline float ldexp(float x, int exponent) { return ldexpf(x, exponent); }
inline float scalbn(float x, int exponent) { return scalbnf(x, exponent); }
inline float frexp(float x, int* exponent) { return frexpf(x, exponent); }
inline float modf(float x, float* whole) { return modff(x, whole); }
inline int ilogb(float x) { return ilogbf(x); }
inline long lrint(float x) { return lrintf(x); }
inline long lround(float x) { return lroundf(x); }
inline long long llrint(float x) { return llrintf(x); }
inline long long llround(float x) { return llroundf(x); }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }
inline long abs(long x) { return labs(x); }
inline long long abs(long long x) { return llabs(x); }

#undef isnan
#undef isinf
#undef isfinite
#undef signbit
#define EMU_CLASSIFY(name)                                    \
  inline bool name(float x) { return __builtin_##name(x); }   \
  inline bool name(double x) { return __builtin_##name(x); }  \
  template <class T>                                          \
  inline std::enable_if_t<std::is_integral_v<T>, bool> name(T x) { return __builtin_##name((double)x); }
EMU_CLASSIFY(isnan) EMU_CLASSIFY(isinf) EMU_CLASSIFY(isfinite) EMU_CLASSIFY(signbit)

// As in CUDA, the minimum of a number and a NaN is the number.
template <class A, class B>
inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmin((T)a, (T)b);
  else return (T)a < (T)b ? (T)a : (T)b;
}
template <class A, class B>
inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmax((T)a, (T)b);
  else return (T)a > (T)b ? (T)a : (T)b;
}

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rcbrt(float x) { return 1 / cbrtf(x); }
inline double rcbrt(double x) { return 1 / cbrt(x); }
inline double sinpi(double x) { return sin(M_PI * x); }
inline double cospi(double x) { return cos(M_PI * x); }
inline float sinpif(float x) { return (float)sinpi((double)x); }
inline float cospif(float x) { return (float)cospi((double)x); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
inline float normcdff(float x) { return (float)normcdf((double)x); }
