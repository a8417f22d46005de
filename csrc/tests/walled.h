#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "tests/check.h"

// Bytes whose last one is the last of its page; the page behind it cannot be touched.
class Walled {
 public:
  explicit Walled(int64_t bytes) : bytes_(bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t held = (bytes + page - 1) / page * page;
    mapped_ = held + page;
    void* memory =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    start_ = static_cast<uint8_t*>(memory);
    CHECK(mprotect(start_ + held, page, PROT_NONE) == 0);
    data_ = start_ + held - bytes;
  }
  ~Walled() { munmap(start_, mapped_); }
  Walled(const Walled&) = delete;
  Walled& operator=(const Walled&) = delete;

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t *start_, *data_;
  const int64_t bytes_;
  int64_t mapped_;
};
