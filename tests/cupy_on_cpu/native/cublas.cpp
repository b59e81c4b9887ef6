// In place of libcublas: what CuPy's products call, for float and double. build.py adds a refusal for each other symbol.
#include <cmath>
#include <cstddef>
#include <vector>

#include "addresses.h"

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum DataType { FLOAT32 = 0, FLOAT64 = 1 };
using Handle = void*;

extern "C" long long emu_products;
long long emu_products;

// The data behind an address of the device; a scalar's address may be the host's.
template <class T>
static T* data(T* address) {
  return reinterpret_cast<T*>(data_address(reinterpret_cast<uint64_t>(address)));
}

// A column-major matrix, or its transpose.
template <class T>
struct Matrix {
  const T* data;
  long long leading;
  bool transposed;
  T operator()(int row, int column) const { return transposed ? data[column + row * leading] : data[row + column * leading]; }
};

template <class T>
static void gemm(int m, int n, int k, T alpha, Matrix<T> a, Matrix<T> b, T beta, T* c, int ldc) {
  std::vector<T> left((size_t)m * k), sums(m);
  for (int p = 0; p < k; p++)
    for (int i = 0; i < m; i++) left[(size_t)p * m + i] = a(i, p);
  for (int j = 0; j < n; j++) {
    sums.assign(m, 0);
    for (int p = 0; p < k; p++) {
      const T right = b(p, j);
      const T* column = left.data() + (size_t)p * m;
      for (int i = 0; i < m; i++) sums[i] += column[i] * right;
    }
    T* to = c + (size_t)j * ldc;
    for (int i = 0; i < m; i++) to[i] = alpha * sums[i] + (beta == 0 ? 0 : beta * to[i]);
  }
}

// Many products; `at(i)` gives the three addresses of the i-th.
template <class T, class Addresses>
static int products(int ta, int tb, int m, int n, int k, const T* alpha, int lda, int ldb, const T* beta, int ldc,
                    int count, Addresses at) {
  if (m < 0 || n < 0 || k < 0 || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return INVALID_VALUE;
  emu_products++;
  for (int i = 0; i < count; i++) {
    auto [a, b, c] = at(i);
    gemm<T>(m, n, k, *data(alpha), {data(a), lda, ta != 0}, {data(b), ldb, tb != 0}, *data(beta), data(c), ldc);
  }
  return SUCCESS;
}

template <class T>
struct Addresses {
  const T *a, *b;
  T* c;
};

#define SHAPE Handle, int ta, int tb, int m, int n, int k
#define EXPORT(X, T)                                                                                                    \
  extern "C" int cublas##X##gemm_v2(SHAPE, const T* alpha, const T* a, int lda, const T* b, int ldb, const T* beta,      \
                                    T* c, int ldc) {                                                                    \
    return products<T>(ta, tb, m, n, k, alpha, lda, ldb, beta, ldc, 1, [=](int) { return Addresses<T>{a, b, c}; });     \
  }                                                                                                                     \
  extern "C" int cublas##X##gemmStridedBatched(SHAPE, const T* alpha, const T* a, int lda, long long sa, const T* b,    \
                                               int ldb, long long sb, const T* beta, T* c, int ldc, long long sc,       \
                                               int count) {                                                             \
    return products<T>(ta, tb, m, n, k, alpha, lda, ldb, beta, ldc, count,                                              \
                       [=](int i) { return Addresses<T>{a + i * sa, b + i * sb, c + i * sc}; });                        \
  }                                                                                                                     \
  extern "C" int cublas##X##gemmBatched(SHAPE, const T* alpha, const T** a, int lda, const T** b, int ldb,              \
                                        const T* beta, T** c, int ldc, int count) {                                     \
    return products<T>(ta, tb, m, n, k, alpha, lda, ldb, beta, ldc, count,                                              \
                       [=](int i) { return Addresses<T>{data(a)[i], data(b)[i], data(c)[i]}; });                        \
  }                                                                                                                     \
  extern "C" int cublas##X##geam(Handle, int ta, int tb, int m, int n, const T* alpha, const T* a, int lda,             \
                                 const T* beta, const T* b, int ldb, T* c, int ldc) {                                   \
    return geam<T>(ta, tb, m, n, *data(alpha), data(a), lda, *data(beta), data(b), ldb, data(c), ldc);                  \
  }                                                                                                                     \
  extern "C" int cublas##X##dot_v2(Handle, int n, const T* x, int stride_x, const T* y, int stride_y, T* result) {      \
    return dot<T>(n, data(x), stride_x, data(y), stride_y, data(result));                                               \
  }

template <class T>
static int geam(int ta, int tb, int m, int n, T alpha, const T* a, int lda, T beta, const T* b, int ldb, T* c, int ldc) {
  emu_products++;
  const Matrix<T> left{a, lda, ta != 0}, right{b, ldb, tb != 0};
  for (int j = 0; j < n; j++)
    for (int i = 0; i < m; i++)  // a matrix whose factor is zero is not read
      c[i + (size_t)j * ldc] = (alpha == 0 ? 0 : alpha * left(i, j)) + (beta == 0 ? 0 : beta * right(i, j));
  return SUCCESS;
}

template <class T>
static int dot(int n, const T* x, int stride_x, const T* y, int stride_y, T* result) {
  if (stride_x < 0 || stride_y < 0) return NOT_SUPPORTED;
  emu_products++;
  T sum = 0;
  for (long long i = 0; i < n; i++) sum += x[i * stride_x] * y[i * stride_y];
  *result = sum;
  return SUCCESS;
}

EXPORT(S, float)
EXPORT(D, double)

#define TYPED_OPERANDS(name, extra)                                                                              \
  SHAPE, const void *alpha, const void *a, int type_a, int lda extra(sa), const void *b, int type_b, int ldb      \
                                extra(sb), const void *beta, void *c, int type_c, int ldc extra(sc)
#define NOTHING(name)
#define STRIDE(name) , long long name
#define CALL(function, T, ...) function(nullptr, ta, tb, m, n, k, (const T*)alpha, (const T*)a, lda, __VA_ARGS__)

extern "C" int cublasGemmEx(TYPED_OPERANDS(gemm, NOTHING), int compute, int algorithm) {
  if (type_a != type_b || type_b != type_c) return NOT_SUPPORTED;
  if (type_a == FLOAT32) return CALL(cublasSgemm_v2, float, (const float*)b, ldb, (const float*)beta, (float*)c, ldc);
  if (type_a == FLOAT64) return CALL(cublasDgemm_v2, double, (const double*)b, ldb, (const double*)beta, (double*)c, ldc);
  return NOT_SUPPORTED;
}
extern "C" int cublasSgemmEx(TYPED_OPERANDS(gemm, NOTHING)) {
  return cublasGemmEx(nullptr, ta, tb, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, 0, 0);
}
extern "C" int cublasGemmStridedBatchedEx(TYPED_OPERANDS(gemm, STRIDE), int count, int compute, int algorithm) {
  if (type_a != type_b || type_b != type_c) return NOT_SUPPORTED;
  if (type_a == FLOAT32)
    return CALL(cublasSgemmStridedBatched, float, sa, (const float*)b, ldb, sb, (const float*)beta, (float*)c, ldc, sc, count);
  if (type_a == FLOAT64)
    return CALL(cublasDgemmStridedBatched, double, sa, (const double*)b, ldb, sb, (const double*)beta, (double*)c, ldc, sc, count);
  return NOT_SUPPORTED;
}

// ---- handles: one for all

static int handle, pointer_mode;
extern "C" {
int cublasCreate_v2(Handle* created) { return *created = &handle, SUCCESS; }
int cublasDestroy_v2(Handle) { return SUCCESS; }
int cublasGetVersion_v2(Handle, int* version) { return *version = CUDA_MAJOR * 10000, SUCCESS; }
int cublasGetPointerMode_v2(Handle, int* mode) { return *mode = pointer_mode, SUCCESS; }
int cublasSetPointerMode_v2(Handle, int mode) { return pointer_mode = mode, SUCCESS; }
int cublasSetStream_v2(Handle, void*) { return SUCCESS; }
int cublasGetStream_v2(Handle, void** stream) { return *stream = nullptr, SUCCESS; }
int cublasSetMathMode(Handle, int) { return SUCCESS; }
int cublasGetMathMode(Handle, int* mode) { return *mode = 0, SUCCESS; }
}
