// Where "device memory" lies. The address that the host holds can't be read; kernels, copies and BLAS look 2^44 above it.
#pragma once
#include <stdint.h>

#define DEVICE_BASE (1ull << 44)    // the first device's memory
#define DEVICE_SPAN (1ull << 40)    // of one device
#define DEVICE_LIMIT 4              // devices
#define DEVICE_OFFSET (1ull << 44)  // from an address to its data

static inline uint64_t data_address(uint64_t address) {
  return address - DEVICE_BASE < DEVICE_LIMIT * DEVICE_SPAN ? address + DEVICE_OFFSET : address;
}
