// The packed layout, the order that the kernels read: sixteen output rows in the lanes of a vector.
//
// A *step* is 4 consecutive inputs of 16 consecutive rows, 64 bytes while a code takes one byte:
//
//   step [16 rows][4 inputs]    uint8
//
// so that one vector of codes is multiplied by a 32-bit broadcast of 4 activations, each lane has
// the sum of its row, and sixteen steps are an AMX tile. A *block* is 8 steps, 32 inputs. Its codes
// are cut into *fields* of 8, 4, 2 or 1 bits: a field of w bits takes w vectors of 64 bytes, and
// vector j holds, in bits w i … w i + w - 1 of its bytes, the field of step j + w i. A code of 7
// bits is cut into its low 4, the next 2 and the last bit; binary codes into one field of 1 bit per
// plane. So a block takes `bits` vectors, whatever the number of bits. A *panel* is all blocks of
// 16 rows:
//
//   codes       [ceil(outputs/16)][blocks][bits][64]    uint8
//   scale       [ceil(outputs/16)][groups][16]          float16 or float32
//   zero_point  [ceil(outputs/16)][groups][16]          uint8, affine
//   alpha       [ceil(outputs/16)][groups][planes][16]  float16 or float32, binary
//   offset      [ceil(outputs/16)][groups][16]          like scale or alpha
//
// In two levels scale is [ceil(outputs/16)][groups / n][16], n groups to 256 inputs, and so is
// offset:
//
//   sub_scale   [ceil(outputs/16)][groups][16]          uint8, and sub_offset
//
// Every group of inputs starts a block: its last block may be short. Rows and inputs are padded
// with codes of zero. int8 codes have their sign bit flipped, so that z = 128. If the last group
// has an odd number of blocks, the 512 bytes after 8-bit codes must be readable, because a tile may
// end there.
#pragma once

#include <cstdint>

#include "target.h"

namespace lowbit {

inline constexpr int64_t panel_rows = 16, step_inputs = 4, block_steps = 8;
inline constexpr int64_t block_inputs = step_inputs * block_steps, vector_bytes = 64;

struct Field {
  int width, shift;  // bits shift … shift + width - 1 of a code
};

struct Fields {
  Field field[4];
  int count;
};

constexpr Fields fields_of(int bits, bool binary) {
  Fields all{};
  for (int shift = 0; shift < bits;) {
    const int left = bits - shift;
    const int width = binary || left == 1 ? 1 : left == 8 ? 8 : left >= 4 ? 4 : 2;
    all.field[all.count++] = {.width = width, .shift = shift};
    shift += width;
  }
  return all;
}

// The shape of a weight and where its parts begin.
struct PackedLayout {
  int64_t outputs, inputs, group;  // `group` inputs share a scale; the last group may be shorter
  int bits;
  bool binary;

  LOWBIT_INLINE int64_t panels() const { return (outputs + panel_rows - 1) / panel_rows; }
  LOWBIT_INLINE int64_t groups() const { return (inputs + group - 1) / group; }
  LOWBIT_INLINE int64_t group_inputs(int64_t g) const {
    const int64_t left = inputs - g * group;
    return left < group ? left : group;
  }
  LOWBIT_INLINE static int64_t blocks_of(int64_t inputs) {
    return (inputs + block_inputs - 1) / block_inputs;
  }
  LOWBIT_INLINE int64_t blocks() const {
    return (groups() - 1) * blocks_of(group) + blocks_of(group_inputs(groups() - 1));
  }
  LOWBIT_INLINE int64_t block_bytes() const { return bits * vector_bytes; }
  LOWBIT_INLINE int64_t panel_bytes() const { return blocks() * block_bytes(); }
};

// Convert stored codes to packed ones and back. Stored codes are rows of ceil(inputs bits / 8)
// bytes, least significant bit first; binary codes are one such matrix of single bits per plane.
// `flip` is 0x80 if the stored codes are int8, else 0.
void pack_codes(const PackedLayout& form, const uint8_t* stored, uint8_t flip, uint8_t* codes);
void unpack_codes(const PackedLayout& form, const uint8_t* codes, uint8_t flip, uint8_t* stored);

// The second level of affine scales: a group's scale is multiplied by its byte of `scale` plus
// `lowest`, its offset by its byte of `offset`. Null if scales have one level; `offset` also if
// weights have no offset.
struct SubScales {
  const uint8_t* scale = nullptr;
  const uint8_t* offset = nullptr;
  int64_t groups = 1;  // that share a scale
  int bits = 0, lowest = 0;
};

// Some rows as floats: s (q - z), s q + o, or o + the sum of alpha b, each operation rounded once
// to float32.
struct DecodePacked {
  PackedLayout form;
  const uint8_t* codes;
  const void* scale;          // or alpha
  const uint8_t* zero_point;  // affine; null for 2^(bits - 1), or 0 with an offset
  const void* offset;         // null for zeros
  int planes;                 // binary: the first so many, whose alpha and offset these are
  bool half_scale;
  const int64_t* rows;  // `count` of them, all below form.outputs
  int64_t count;
  float* out;  // [count, inputs]
  SubScales sub = {};
};

namespace scalar {
void decode_packed(const DecodePacked& op);
}
namespace avx2 {
void decode_packed(const DecodePacked& op);
}
namespace avx512 {
void decode_packed(const DecodePacked& op);
}

inline constexpr Target<void(const DecodePacked&)> decode_packed_targets[] = {
    {"scalar", "scalar", scalar::decode_packed},
#ifdef LOWBIT_HAS_AVX2
    {"avx2", "avx2", avx2::decode_packed},
#endif
#ifdef LOWBIT_HAS_AVX512
    {"avx512", "avx512", avx512::decode_packed},
#endif
};

}  // namespace lowbit
