// The devices' memory, as the CUDA runtime hands it out. Each allocation has pages of its own that end where it ends, with
// unreadable ones behind it; freed pages become unreadable. What the host holds is an address 2^44 below the data.
#pragma once
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <map>
#include <mutex>

#include "addresses.h"

class DeviceMemory {
 public:
  static constexpr size_t TOTAL = 8ull << 30;  // of all devices together
  static constexpr int NOT_A_NUMBER = 0xFF;    // fresh memory: NaN in every floating dtype

  DeviceMemory() {
    reserve(DEVICE_BASE);
    reserve(DEVICE_BASE + DEVICE_OFFSET);
  }

  // The address for the host, or null.
  char* allocate(int device, size_t size) {
    std::lock_guard<std::mutex> guard(lock);
    const size_t pages = whole_pages(size);
    if (size > TOTAL - used_) return nullptr;
    if (next[device] + pages + PAGE > DEVICE_SPAN) next[device] = 0;  // the first ones are long gone
    char* first = (char*)(DEVICE_BASE + device * DEVICE_SPAN + next[device]);
    if (mprotect(data(first), pages, PROT_READ | PROT_WRITE)) return nullptr;
    next[device] += pages + PAGE;
    char* address = first + (pages - size) / ALIGNMENT * ALIGNMENT;
    memset(data(address), NOT_A_NUMBER, size);
    sizes[address] = size;
    used_ += size;
    return address;
  }

  bool free(void* address) {
    std::lock_guard<std::mutex> guard(lock);
    const auto found = sizes.find((char*)address);
    if (found == sizes.end()) return false;
    char* first = (char*)((size_t)address / PAGE * PAGE);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    mmap(data(first), whole_pages(found->second), PROT_NONE, flags, -1, 0);
    used_ -= found->second;
    sizes.erase(found);
    return true;
  }

  // Whether all of it lies in one allocation.
  bool contains(const void* address, size_t size) {
    std::lock_guard<std::mutex> guard(lock);
    auto after = sizes.upper_bound((char*)address);
    if (after == sizes.begin()) return false;
    --after;
    return (char*)address + size <= after->first + after->second;
  }

  size_t used() const { return used_; }
  static int device_of(const void* address) { return ((size_t)address - DEVICE_BASE) / DEVICE_SPAN; }
  static char* data(const void* address) { return (char*)data_address((uint64_t)address); }

 private:
  static constexpr size_t PAGE = 4096, ALIGNMENT = 16;
  static size_t whole_pages(size_t size) { return size ? (size + PAGE - 1) / PAGE * PAGE : PAGE; }
  static void reserve(size_t base) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    if (mmap((void*)base, DEVICE_SPAN * DEVICE_LIMIT, PROT_NONE, flags, -1, 0) == MAP_FAILED) {
      perror("cupy_on_cpu: no room for the devices' addresses");
      abort();
    }
  }

  std::mutex lock;
  std::map<char*, size_t> sizes;
  size_t next[DEVICE_LIMIT] = {}, used_ = 0;
};
