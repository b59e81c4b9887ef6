// In place of libnvrtc. A program's "PTX" is a text with its options and its CUDA C++ source, made by `compile_hook`
// (compiler.py), which compiles it at once, so that the log has the compiler's messages.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_INPUT = 3, COMPILATION = 6, NAME_NOT_VALID = 10 };
enum { MAX_NAMES = 64 };
typedef struct {
  char *source, *options, *names;  // options and names: one a line
  const char *image, *log;         // set by the hook, which owns them
  int count;
  char* name[MAX_NAMES];
  char lowered[MAX_NAMES][24];
} Program;

static int (*compile_hook)(Program*);
void emu_set_program_hook(int (*hook)(Program*)) { compile_hook = hook; }

static char* lines(int count, char* const* parts) {
  size_t size = 1;
  for (int i = 0; i < count; i++) size += strlen(parts[i]) + 1;
  char *text = calloc(size, 1), *at = text;
  for (int i = 0; i < count; i++) at += sprintf(at, i ? "\n%s" : "%s", parts[i]);
  return text;
}

int nvrtcVersion(int* major, int* minor) { return *major = CUDA_MAJOR, *minor = 0, SUCCESS; }
int nvrtcGetNumSupportedArchs(int* count) { return *count = 1, SUCCESS; }
int nvrtcGetSupportedArchs(int* architectures) { return *architectures = 80, SUCCESS; }

int nvrtcCreateProgram(Program** program, const char* source, const char* name, int headers, const char** texts,
                       const char** paths) {
  if (headers) return INVALID_INPUT;
  *program = calloc(1, sizeof **program);
  (*program)->source = strdup(source);
  return SUCCESS;
}
int nvrtcDestroyProgram(Program** program) {
  Program* p = *program;
  for (int i = 0; i < p->count; i++) free(p->name[i]);
  free(p->source);
  free(p->options);
  free(p->names);
  free(p);
  *program = NULL;
  return SUCCESS;
}
int nvrtcAddNameExpression(Program* p, const char* name) {
  if (p->count == MAX_NAMES) return INVALID_INPUT;
  sprintf(p->lowered[p->count], "name_%d", p->count);
  p->name[p->count++] = strdup(name);
  return SUCCESS;
}
int nvrtcGetLoweredName(Program* p, const char* name, const char** lowered) {
  for (int i = 0; i < p->count; i++)
    if (!strcmp(name, p->name[i])) return *lowered = p->lowered[i], SUCCESS;
  return NAME_NOT_VALID;
}
int nvrtcCompileProgram(Program* p, int count, char* const* options) {
  p->options = lines(count, options);
  p->names = lines(p->count, p->name);
  return compile_hook(p) ? COMPILATION : SUCCESS;
}

int nvrtcGetPTXSize(Program* p, size_t* size) { return *size = p->image ? strlen(p->image) + 1 : 0, SUCCESS; }
int nvrtcGetPTX(Program* p, char* text) { return strcpy(text, p->image), SUCCESS; }
int nvrtcGetProgramLogSize(Program* p, size_t* size) { return *size = p->log ? strlen(p->log) + 1 : 0, SUCCESS; }
int nvrtcGetProgramLog(Program* p, char* text) { return strcpy(text, p->log), SUCCESS; }
int nvrtcGetCUBINSize(Program* p, size_t* size) { return *size = 0, SUCCESS; }
int nvrtcGetCUBIN(Program* p, char* data) { return INVALID_INPUT; }
int nvrtcGetLTOIRSize(Program* p, size_t* size) { return *size = 0, SUCCESS; }
int nvrtcGetLTOIR(Program* p, char* data) { return INVALID_INPUT; }

const char* nvrtcGetErrorString(int error) {
  return error == COMPILATION      ? "NVRTC_ERROR_COMPILATION"
         : error == NAME_NOT_VALID ? "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID"
         : error                   ? "NVRTC_ERROR_INVALID_INPUT"
                                   : "NVRTC_SUCCESS";
}
