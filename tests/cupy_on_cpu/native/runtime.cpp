// A CUDA runtime over this machine's memory: what CuPy's runtime.pyx calls. It is compiled before CuPy's own runtime.cpp, in
// one translation unit, and so declares the functions that file calls; their types come from headers.py.
#include <cuda_runtime.h>
#include <stdio.h>
#include <time.h>

#include "memory.h"

enum : int { INVALID_DEVICE = 101, NOT_SUPPORTED = 801 };
enum CopyKind { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, ANY_TO_ANY, SET, COPY_KINDS };
enum { MEMORY_OF_NOBODY = 0, MEMORY_OF_DEVICE = 2, PEER_ACCESS_UNSUPPORTED = 217 };

// Counters and options, for __init__.py.
#define VISIBLE extern "C" __attribute__((visibility("default")))
VISIBLE long long emu_copies[COPY_KINDS], emu_allocations;
VISIBLE void (*emu_copy_hook)(int kind, size_t bytes);
VISIBLE int emu_devices, emu_peer_access;
long long emu_copies[COPY_KINDS], emu_allocations;
void (*emu_copy_hook)(int, size_t);
int emu_devices = 1, emu_peer_access;

extern "C" int emu_is_variable(const char* address, size_t size);  // of driver.c

static DeviceMemory memory;
static thread_local int current_device;
static thread_local cudaError_t last_error = cudaSuccess;

static cudaError_t fail(int error) { return last_error = (cudaError_t)error; }
static bool exists(int device) { return device >= 0 && device < emu_devices; }

#define SUCCEEDS(name)       \
  template <class... A>      \
  static cudaError_t name(A...) { return cudaSuccess; }
#define REFUSES(name)        \
  template <class... A>      \
  static cudaError_t name(A...) { return fail(NOT_SUPPORTED); }

// ---- errors and versions

static const char* cudaGetErrorName(cudaError_t error) {
  switch ((int)error) {
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case INVALID_DEVICE: return "cudaErrorInvalidDevice";
    case PEER_ACCESS_UNSUPPORTED: return "cudaErrorPeerAccessUnsupported";
    case NOT_SUPPORTED: return "cudaErrorNotSupported";
    default: return "cudaErrorUnknown";
  }
}
static const char* cudaGetErrorString(cudaError_t error) {
  switch ((int)error) {
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case INVALID_DEVICE: return "invalid device ordinal";
    default: return "refused by cupy_on_cpu";
  }
}
static cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
static cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDA_VERSION, cudaSuccess; }
static cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDA_VERSION, cudaSuccess; }

// ---- devices

static cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
static cudaError_t cudaGetDeviceCount(int* count) { return *count = emu_devices, cudaSuccess; }
static cudaError_t cudaSetDevice(int device) {
  if (!exists(device)) return fail(INVALID_DEVICE);
  current_device = device;
  return cudaSuccess;
}

static const struct {
  int attribute, value;
} attributes[] = {
    {1, 1024},        // threads of a block
    {2, 1024},        // ... along x
    {3, 1024},        // ... along y
    {4, 64},          // ... along z
    {5, 2147483647},  // blocks along x
    {6, 65535},       // ... along y
    {7, 65535},       // ... along z
    {8, 49152},       // shared memory of a block
    {10, 32},         // threads of a warp
    {16, 4},          // multiprocessors
    {41, 1},          // unified addresses
    {75, 8},          // compute capability, major
    {76, 0},          // ... minor
};
static int attribute(int wanted) {
  for (const auto& known : attributes)
    if (known.attribute == wanted) return known.value;
  return 0;
}
static cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr wanted, int device) {
  if (!exists(device)) return fail(INVALID_DEVICE);
  *value = attribute((int)wanted);
  return cudaSuccess;
}
static cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (!exists(device)) return fail(INVALID_DEVICE);
  memset(properties, 0, sizeof *properties);
  strcpy(properties->name, "CPU that runs CUDA C++ source");
  properties->totalGlobalMem = DeviceMemory::TOTAL;
  properties->maxThreadsPerBlock = attribute(1);
  for (int i = 0; i < 3; i++) {
    properties->maxThreadsDim[i] = attribute(2 + i);
    properties->maxGridSize[i] = attribute(5 + i);
  }
  properties->sharedMemPerBlock = attribute(8);
  properties->warpSize = attribute(10);
  properties->multiProcessorCount = attribute(16);
  properties->major = attribute(75);
  properties->minor = attribute(76);
  properties->unifiedAddressing = 1;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->sharedMemPerMultiprocessor = 167936;
  properties->textureAlignment = 512;
  return cudaSuccess;
}
static cudaError_t cudaDeviceGetByPCIBusId(int* device, const char*) { return *device = 0, cudaSuccess; }
static cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int device) {
  snprintf(id, size, "0000:%02x:00.0", device);
  return cudaSuccess;
}
static cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = emu_peer_access, cudaSuccess; }
static cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
  return emu_peer_access ? cudaSuccess : fail(PEER_ACCESS_UNSUPPORTED);
}
static cudaError_t cudaDeviceGetLimit(size_t* value, cudaLimit) { return *value = 0, cudaSuccess; }
SUCCEEDS(cudaDeviceSynchronize)
SUCCEEDS(cudaDeviceSetLimit)
REFUSES(cudaDeviceDisablePeerAccess)

// ---- memory

static cudaError_t cudaMalloc(void** address, size_t size) {
  *address = memory.allocate(current_device, size);
  if (!*address) return fail(cudaErrorMemoryAllocation);
  __atomic_add_fetch(&emu_allocations, 1, __ATOMIC_RELAXED);
  return cudaSuccess;
}
static cudaError_t cudaFree(void* address) {
  return !address || memory.free(address) ? cudaSuccess : fail(cudaErrorInvalidValue);
}
static cudaError_t cudaMallocManaged(void** address, size_t size, unsigned) { return cudaMalloc(address, size); }
static cudaError_t cudaMallocAsync(void** address, size_t size, cudaStream_t) { return cudaMalloc(address, size); }
static cudaError_t cudaFreeAsync(void* address, cudaStream_t) { return cudaFree(address); }
static cudaError_t cudaHostAlloc(void** address, size_t size, unsigned) {
  return posix_memalign(address, 512, size ? size : 1) ? fail(cudaErrorMemoryAllocation) : cudaSuccess;
}
static cudaError_t cudaFreeHost(void* address) { return free(address), cudaSuccess; }
static cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *total = DeviceMemory::TOTAL;
  *available = DeviceMemory::TOTAL - memory.used();
  return cudaSuccess;
}
static cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  const bool ours = memory.contains(address, 1);
  memset(found, 0, sizeof *found);
  found->type = ours ? MEMORY_OF_DEVICE : MEMORY_OF_NOBODY;
  found->device = ours ? DeviceMemory::device_of(address) : -2;
  (ours ? found->devicePointer : found->hostPointer) = (void*)address;
  return cudaSuccess;
}
SUCCEEDS(cudaHostRegister)
SUCCEEDS(cudaHostUnregister)
SUCCEEDS(cudaMemPrefetchAsync)
SUCCEEDS(cudaMemAdvise)
REFUSES(cudaMalloc3DArray)
REFUSES(cudaMallocArray)
REFUSES(cudaFreeArray)
REFUSES(cudaMallocFromPoolAsync)
REFUSES(cudaDeviceGetDefaultMemPool)
REFUSES(cudaDeviceGetMemPool)
REFUSES(cudaDeviceSetMemPool)
REFUSES(cudaMemPoolCreate)
REFUSES(cudaMemPoolDestroy)
REFUSES(cudaMemPoolTrimTo)
REFUSES(cudaMemPoolGetAttribute)
REFUSES(cudaMemPoolSetAttribute)
REFUSES(cudaIpcCloseMemHandle)
REFUSES(cudaIpcGetEventHandle)
REFUSES(cudaIpcGetMemHandle)
REFUSES(cudaIpcOpenEventHandle)
REFUSES(cudaIpcOpenMemHandle)

// ---- copies

static bool on_device(const void* address, size_t size) {
  return memory.contains(address, size) || emu_is_variable((const char*)address, size);
}
static void count(CopyKind kind, size_t size) {
  __atomic_add_fetch(&emu_copies[kind], 1, __ATOMIC_RELAXED);
  if (emu_copy_hook) emu_copy_hook(kind, size);
}
static cudaError_t copy(void* to, const void* from, size_t size, int kind) {
  if (!size) return cudaSuccess;
  const bool to_device = kind == HOST_TO_DEVICE || kind == DEVICE_TO_DEVICE;
  const bool from_device = kind == DEVICE_TO_HOST || kind == DEVICE_TO_DEVICE;
  if ((to_device && !on_device(to, size)) || (from_device && !on_device(from, size))) return fail(cudaErrorInvalidValue);
  count((CopyKind)kind, size);
  memmove(DeviceMemory::data(to), DeviceMemory::data(from), size);
  return cudaSuccess;
}
static cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  return copy(to, from, size, kind);
}
static cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind kind, cudaStream_t) {
  return copy(to, from, size, kind);
}
static cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t size) {
  return copy(to, from, size, DEVICE_TO_DEVICE);
}
static cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t) {
  return copy(to, from, size, DEVICE_TO_DEVICE);
}
static cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                size_t height, cudaMemcpyKind kind) {
  count((CopyKind)kind, width * height);
  for (size_t row = 0; row < height; row++)
    memmove(DeviceMemory::data((char*)to + row * to_pitch), DeviceMemory::data((char*)from + row * from_pitch), width);
  return cudaSuccess;
}
static cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}
static cudaError_t cudaMemset(void* address, int value, size_t size) {
  if (size && !on_device(address, size)) return fail(cudaErrorInvalidValue);
  count(SET, size);
  memset(DeviceMemory::data(address), value, size);
  return cudaSuccess;
}
static cudaError_t cudaMemsetAsync(void* address, int value, size_t size, cudaStream_t) {
  return cudaMemset(address, value, size);
}
REFUSES(cudaMemcpy2DFromArray)
REFUSES(cudaMemcpy2DFromArrayAsync)
REFUSES(cudaMemcpy2DToArray)
REFUSES(cudaMemcpy2DToArrayAsync)
REFUSES(cudaMemcpy3D)
REFUSES(cudaMemcpy3DAsync)

// ---- streams and events: all that is asked for is done at once

template <class Handle>
static cudaError_t make_handle(Handle* made) {
  static long long handles;
  *made = (Handle)(size_t)(0x1000 + 16 * __atomic_add_fetch(&handles, 1, __ATOMIC_RELAXED));  // 0 to 2 have a meaning
  return cudaSuccess;
}
static cudaError_t cudaStreamCreate(cudaStream_t* stream) { return make_handle(stream); }
static cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return make_handle(stream); }
static cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return make_handle(stream); }
static cudaError_t cudaStreamGetFlags(cudaStream_t, unsigned* flags) { return *flags = 0, cudaSuccess; }
static cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
static cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *(int*)status = 0, cudaSuccess;
}
static cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data, unsigned) {
  return callback(stream, cudaSuccess, data), cudaSuccess;
}
static cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  return function(data), cudaSuccess;
}
SUCCEEDS(cudaStreamDestroy)
SUCCEEDS(cudaStreamSynchronize)
SUCCEEDS(cudaStreamQuery)
SUCCEEDS(cudaStreamWaitEvent)
REFUSES(cudaStreamBeginCapture)
REFUSES(cudaStreamEndCapture)

// An event is the time in milliseconds at which it was recorded.
static cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = (cudaEvent_t)calloc(1, sizeof(double));
  return cudaSuccess;
}
static cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
static cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
static cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  *(double*)event = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
  return cudaSuccess;
}
static cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  *milliseconds = *(double*)stop - *(double*)start;
  return cudaSuccess;
}
SUCCEEDS(cudaEventQuery)
SUCCEEDS(cudaEventSynchronize)

// ---- what is not there

REFUSES(cudaCreateTextureObject)
REFUSES(cudaDestroyTextureObject)
REFUSES(cudaGetChannelDesc)
REFUSES(cudaGetTextureObjectResourceDesc)
REFUSES(cudaGetTextureObjectTextureDesc)
REFUSES(cudaCreateSurfaceObject)
REFUSES(cudaDestroySurfaceObject)
REFUSES(cudaGraphDestroy)
REFUSES(cudaGraphExecDestroy)
REFUSES(cudaGraphInstantiate)
REFUSES(cudaGraphLaunch)
REFUSES(cudaGraphUpload)
REFUSES(cudaGraphDebugDotPrint)
SUCCEEDS(cudaProfilerStart)
SUCCEEDS(cudaProfilerStop)
static cudaExtent make_cudaExtent(size_t w, size_t h, size_t d) { return {w, h, d}; }
static cudaPos make_cudaPos(size_t x, size_t y, size_t z) { return {x, y, z}; }
static cudaPitchedPtr make_cudaPitchedPtr(void* p, size_t pitch, size_t x, size_t y) { return {pitch, p, x, y}; }
