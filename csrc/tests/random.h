// Random numbers for tests, the same ones in every run and every thread.
#pragma once

#include <cstdint>
#include <random>

inline thread_local std::mt19937 random_bits(0);

// One of 0 … n − 1.
inline int64_t below(int64_t n) {
  return std::uniform_int_distribution<int64_t>(0, n - 1)(random_bits);
}

inline float normal() {
  static thread_local std::normal_distribution<float> distribution;
  return distribution(random_bits);
}
