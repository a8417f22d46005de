#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (false)

void test_quantize_rows();
void test_packed_layout();
void test_linear();
void test_experts();
void test_attention();
void test_elementwise();
void test_torch_layer_norm();
void test_program();
