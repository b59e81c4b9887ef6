// In place of libcuda.so.1. A module's image is the text that nvrtc.c handed out; `compile_hook` (compiler.py) gives the
// path of the shared library that was made of it. A launch is a loop over blocks.
#define _GNU_SOURCE
#include "driver.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "addresses.h"

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  NO_BINARY = 209,
  NOT_FOUND = 500,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
};
enum { MAX_SHARED = 163840, MAX_PARAMETERS = 512, MAX_GRID_YZ = 65535, RUBBISH = 0xCD };
#define NUMBER (1u << 31)  // EMU_NUMBER

THREAD_LOCAL uint3 threadIdx, blockIdx, blockDim, gridDim;
THREAD_LOCAL char* emu_dynamic_shared;
int emu_reverse;

typedef struct {
  void* library;
} Module;
typedef struct Function {
  const Kernel* kernel;
  char* name;
  long long launches;
  struct Function* next;
} Function;

static int (*compile_hook)(const char* image, char* path, size_t room);
static Function* functions;  // every one that was asked for
static pthread_mutex_t functions_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;  // shared variables are static: one launch at a time
void (*emu_launch_hook)(const char* name);

void emu_set_compile_hook(int (*hook)(const char*, char*, size_t), int reverse) {
  compile_hook = hook;
  emu_reverse = reverse;
}
void emu_each_function(void (*visit)(const char* name, long long launches)) {
  for (Function* f = functions; f; f = f->next) visit(f->name, f->launches);
}

// ---- modules

int cuModuleLoadData(Module** module, const char* image) {
  char path[4096];
  if (strncmp(image, "// cupy_on_cpu ", 15)) {
    fprintf(stderr, "cupy_on_cpu: expected the text of its own NVRTC, got another image\n");
    return NO_BINARY;
  }
  if (compile_hook(image, path, sizeof path)) return NO_BINARY;
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "cupy_on_cpu: %s\n", dlerror());
    return NO_BINARY;
  }
  *module = malloc(sizeof **module);
  (*module)->library = library;
  return SUCCESS;
}
int cuModuleLoad(Module** module, const char* file) { return NOT_SUPPORTED; }
int cuModuleUnload(Module* module) { return SUCCESS; }  // it stays loaded: a function may be in use

int cuModuleGetFunction(Function** function, Module* module, const char* name) {
  char symbol[4096];
  snprintf(symbol, sizeof symbol, "emu_kernel_%s", name);
  const Kernel* kernel = dlsym(module->library, symbol);
  if (!kernel) return NOT_FOUND;
  pthread_mutex_lock(&functions_lock);
  Function* f = functions;
  while (f && f->kernel != kernel) f = f->next;
  if (!f) {
    f = malloc(sizeof *f);
    *f = (Function){kernel, strdup(name), 0, functions};
    functions = f;
  }
  pthread_mutex_unlock(&functions_lock);
  *function = f;
  return SUCCESS;
}

// Variables of modules: copies to and from them are allowed (runtime.cpp asks).
static struct {
  char* at;
  size_t size;
} variables[1024];
static int variable_count;

int emu_is_variable(const char* at, size_t size) {
  for (int i = 0; i < variable_count; i++)
    if (at >= variables[i].at && at + size <= variables[i].at + variables[i].size) return 1;
  return 0;
}
int cuModuleGetGlobal_v2(void** at, size_t* size, Module* module, const char* name) {
  Dl_info info;
  const ElfW(Sym)* symbol;
  void* found = dlsym(module->library, name);
  if (!found || !dladdr1(found, &info, (void**)&symbol, RTLD_DL_SYMENT) || !symbol || variable_count == 1024)
    return NOT_FOUND;
  *at = variables[variable_count].at = found;
  *size = variables[variable_count++].size = symbol->st_size;
  return SUCCESS;
}

// ---- launches

// Copies of the parameters, with the addresses of data where the host gave addresses of the device.
static char* copy_parameters(const Kernel* kernel, void** given, void** parameters) {
  size_t size = 64;
  for (int i = 0; i < kernel->parameters; i++) size += ((kernel->sizes[i] & ~NUMBER) + 63) / 64 * 64;
  char *buffer = aligned_alloc(64, size), *at = buffer;
  for (int i = 0; i < kernel->parameters; i++) {
    const uint32_t bytes = kernel->sizes[i] & ~NUMBER;
    parameters[i] = memcpy(at, given[i], bytes);
    if (!(kernel->sizes[i] & NUMBER))
      for (uint32_t word = 0; word + 8 <= bytes; word += 8) {
        uint64_t* address = (uint64_t*)(at + word);
        *address = data_address(*address);
      }
    at += (bytes + 63) / 64 * 64;
  }
  return buffer;
}

int cuLaunchKernel(Function* f, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, uint32_t bz,
                   uint32_t dynamic, void* stream, void** given, void** extra) {
  const Kernel* kernel = f->kernel;
  const size_t fixed = kernel->shared_to - kernel->shared_from;
  if (!gx || !gy || !gz || !bx || !by || !bz || (uint64_t)bx * by * bz > MAX_THREADS) return INVALID_VALUE;
  if (gy > MAX_GRID_YZ || gz > MAX_GRID_YZ || fixed + dynamic > MAX_SHARED) return INVALID_VALUE;
  if (kernel->parameters > MAX_PARAMETERS) return INVALID_VALUE;
  __atomic_add_fetch(&f->launches, 1, __ATOMIC_RELAXED);
  if (emu_launch_hook) emu_launch_hook(f->name);

  void* parameters[MAX_PARAMETERS];
  char* buffer = copy_parameters(kernel, given, parameters);
  emu_dynamic_shared = dynamic ? aligned_alloc(128, (dynamic + 127) / 128 * 128) : NULL;
  blockDim = (uint3){bx, by, bz};
  gridDim = (uint3){gx, gy, gz};
  if (fixed) pthread_mutex_lock(&shared_lock);
  int failed = 0;
  for (uint32_t z = 0; z < gz && !failed; z++)
    for (uint32_t y = 0; y < gy && !failed; y++)
      for (uint32_t x = 0; x < gx && !failed; x++) {
        blockIdx = emu_reverse ? (uint3){gx - 1 - x, gy - 1 - y, gz - 1 - z} : (uint3){x, y, z};
        if (fixed) memset(kernel->shared_from, RUBBISH, fixed);
        if (dynamic) memset(emu_dynamic_shared, RUBBISH, dynamic);
        if (kernel->thread)
          failed = run_cooperating_block(kernel, parameters);
        else
          kernel->block(parameters);
      }
  if (fixed) pthread_mutex_unlock(&shared_lock);
  free(buffer);
  free(emu_dynamic_shared);
  return failed ? LAUNCH_FAILED : SUCCESS;
}
int cuLaunchCooperativeKernel() { return NOT_SUPPORTED; }

int cuFuncGetAttribute(int* value, int attribute, Function* f) {
  enum { MAX_THREADS_PER_BLOCK, SHARED_SIZE };
  *value = attribute == MAX_THREADS_PER_BLOCK ? MAX_THREADS
           : attribute == SHARED_SIZE         ? (int)(f->kernel->shared_to - f->kernel->shared_from)
                                              : 0;
  return SUCCESS;
}
int cuFuncSetAttribute(Function* f, int attribute, int value) { return SUCCESS; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* f, int block, size_t shared) {
  *blocks = 2;
  return SUCCESS;
}
int cuOccupancyMaxPotentialBlockSize(int* grid, int* block, Function* f, void* shared_of, size_t shared, int limit) {
  *grid = 4;
  *block = limit && limit < 128 ? limit : 128;
  return SUCCESS;
}

// ---- contexts: there is one; linking: there is nothing to link

static int context;
int cuCtxGetCurrent(void** current) { return *current = &context, SUCCESS; }
int cuCtxSetCurrent(void* current) { return SUCCESS; }
int cuCtxCreate_v2(void** created, unsigned flags, int device) { return *created = &context, SUCCESS; }
int cuCtxDestroy_v2(void* destroyed) { return SUCCESS; }
int cuCtxGetDevice(int* device) { return *device = 0, SUCCESS; }
int cuStreamGetCtx(void* stream, void** current) { return *current = &context, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
int cuLinkCreate_v2() { return NOT_SUPPORTED; }
int cuLinkAddData_v2() { return NOT_SUPPORTED; }
int cuLinkAddFile_v2() { return NOT_SUPPORTED; }
int cuLinkComplete() { return NOT_SUPPORTED; }
int cuLinkDestroy() { return NOT_SUPPORTED; }

int cuGetErrorName(int error, const char** name) {
  *name = error == NOT_SUPPORTED   ? "CUDA_ERROR_NOT_SUPPORTED"
          : error == NO_BINARY     ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
          : error == NOT_FOUND     ? "CUDA_ERROR_NOT_FOUND"
          : error == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED"
                                   : "CUDA_ERROR_INVALID_VALUE";
  return SUCCESS;
}
int cuGetErrorString(int error, const char** text) { return *text = "refused by cupy_on_cpu", SUCCESS; }
