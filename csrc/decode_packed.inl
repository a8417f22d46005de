// decode_packed (packed_layout.h). The including file is compiled for an instruction set, names it
// in LOWBIT_ISA and describes it:
//
//   struct Isa {
//     using Floats = …;                            // gcc vector of float
//     static Floats floats(const uint8_t* codes);  // one of each code
//     static float widen(uint16_t half);
//     struct Levels {                              // the float that each code of 4 bits stands for
//       explicit Levels(const float (&levels)[16]);
//       Floats of(const uint8_t* codes) const;
//     };
//   };
//
// A row has a word of 32 bits in each vector of a block. The words of a field of w bits, one after
// the other, hold in bits w i … the codes of 4 w inputs that follow each other: a shift and a mask
// bring the codes of a block in order.
//
// Nothing from the standard library is called here (see quantize_rows.inl).

#include "packed_layout.h"
#include "parallel.h"

namespace lowbit::LOWBIT_ISA {
namespace {

using Floats = Isa::Floats;

constexpr int lanes = sizeof(Floats) / sizeof(float);
constexpr int64_t codes_per_thread = 1 << 17;

float number(const void* values, bool half, int64_t at) {
  return half ? Isa::widen(static_cast<const uint16_t*>(values)[at])
              : static_cast<const float*>(values)[at];
}

// The codes of a block of one row, whose first word is at `word`.
template <int bits, bool binary>
void read_block(const uint8_t* word, uint8_t (&codes)[block_inputs]) {
  constexpr Fields fields = fields_of(bits, binary);
  uint32_t fours[block_steps] = {};
#pragma GCC unroll 4
  for (int f = 0; f < fields.count; ++f) {
    const int width = fields.field[f].width, shift = fields.field[f].shift;
    const uint32_t mask = 0x01010101u * ((1u << width) - 1);
#pragma GCC unroll 8
    for (int s = 0; s < block_steps; ++s) {
      uint32_t four;
      __builtin_memcpy(&four, word + s % width * vector_bytes, sizeof four);
      fours[s] |= (four >> s / width * width & mask) << shift;
    }
    word += width * vector_bytes;
  }
  __builtin_memcpy(codes, fours, sizeof codes);
}

template <int bits_>
struct Affine {
  static constexpr int bits = bits_;
  static constexpr bool binary = false;
  float scale, zero, offset = -0.0f;  // which, added, changes nothing

  Affine(const DecodePacked& op, int64_t group, int64_t lane) {
    const int64_t at = group * panel_rows + lane, super = group / op.sub.groups * panel_rows + lane;
    scale = number(op.scale, op.half_scale, super);
    if (op.sub.scale) scale *= static_cast<float>(op.sub.scale[at] + op.sub.lowest);
    if (op.offset) {
      zero = 0;
      offset = number(op.offset, op.half_scale, super);
      if (op.sub.offset) offset *= static_cast<float>(op.sub.offset[at]);
    } else {
      zero = static_cast<float>(op.zero_point ? op.zero_point[at] : 1 << (bits - 1));
    }
  }

  Floats of(const uint8_t* codes) const { return scale * (Isa::floats(codes) - zero) + offset; }
};

template <int planes>
struct Binary {
  static constexpr int bits = planes;
  static constexpr bool binary = true;
  Isa::Levels levels;

  Binary(const DecodePacked& op, int64_t group, int64_t lane) : levels(sums(op, group, lane).of) {}

  Floats of(const uint8_t* codes) const { return levels.of(codes); }

 private:
  struct Sums {
    float of[16];  // by code
  };

  static Sums sums(const DecodePacked& op, int64_t group, int64_t lane) {
    Sums all{};
    if (op.offset) all.of[0] = number(op.offset, op.half_scale, group * panel_rows + lane);
#pragma GCC unroll 4
    for (int p = 0; p < planes; ++p) {
      const int64_t at = (group * planes + p) * panel_rows + lane;
      const float alpha = number(op.scale, op.half_scale, at);
#pragma GCC unroll 8
      for (int code = 0; code < 1 << p; ++code) {
        all.of[code + (1 << p)] = all.of[code] + alpha;
        all.of[code] -= alpha;
      }
    }
    return all;
  }
};

template <class Weights>
void decode_row(const DecodePacked& op, int64_t row, float* out) {
  const PackedLayout& form = op.form;
  const int64_t panel = row / panel_rows, lane = row % panel_rows;
  const uint8_t* word = op.codes + panel * form.panel_bytes() + lane * step_inputs;
  for (int64_t g = 0; g < form.groups(); ++g) {
    const Weights weights(op, panel * form.groups() + g, lane);
    for (int64_t n = form.group_inputs(g); n > 0; n -= block_inputs) {
      uint8_t codes[block_inputs];
      read_block<Weights::bits, Weights::binary>(word, codes);
      word += form.block_bytes();
      float some[block_inputs];
      float* to = n < block_inputs ? some : out;
      for (int64_t i = 0; i < block_inputs; i += lanes) {
        const Floats w = weights.of(codes + i);
        __builtin_memcpy(to + i, &w, sizeof w);
      }
      if (n < block_inputs) __builtin_memcpy(out, some, n * sizeof(float));
      out += n < block_inputs ? n : block_inputs;
    }
  }
}

using DecodeRow = void (*)(const DecodePacked& op, int64_t row, float* out);

// By bits, and by planes in use.
constexpr DecodeRow affine_rows[] = {
    decode_row<Affine<2>>, decode_row<Affine<3>>, decode_row<Affine<4>>, decode_row<Affine<5>>,
    decode_row<Affine<6>>, decode_row<Affine<7>>, decode_row<Affine<8>>};
constexpr DecodeRow binary_rows[] = {decode_row<Binary<1>>, decode_row<Binary<2>>,
                                     decode_row<Binary<3>>, decode_row<Binary<4>>};

}  // namespace

void decode_packed(const DecodePacked& op) {
  const DecodeRow decode =
      op.form.binary ? binary_rows[op.planes - 1] : affine_rows[op.form.bits - 2];
  const int64_t grain = codes_per_thread / (op.form.inputs + 1) + 1;
  parallel_for(0, op.count, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) decode(op, op.rows[i], op.out + i * op.form.inputs);
  });
}

}  // namespace lowbit::LOWBIT_ISA
