#include "lanes.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "half.h"
#include "parallel.h"

namespace lowbit {
namespace {

constexpr int64_t codes_per_thread = 1 << 16;

int64_t stored_row_bytes(const Lanes& form) {
  return (form.inputs * (form.binary ? 1 : form.bits) + 7) / 8;
}

// Codes of `width` bits, least significant bit first, into the bits from `shift` on of a byte each.
void spread(const uint8_t* row, int width, int shift, int64_t n, uint8_t* out) {
  const uint8_t mask = static_cast<uint8_t>((1 << width) - 1);
  for (int64_t k = 0; k < n; ++k) {
    const int64_t bit = k * width;
    unsigned two = row[bit / 8];
    if (bit % 8 + width > 8) two |= row[bit / 8 + 1] << 8;
    out[k] |= static_cast<uint8_t>((two >> bit % 8 & mask) << shift);
  }
}

// The way back, into a row of zeros.
void gather(const uint8_t* codes, int width, int shift, int64_t n, uint8_t* row) {
  const uint8_t mask = static_cast<uint8_t>((1 << width) - 1);
  for (int64_t k = 0; k < n; ++k) {
    const int64_t bit = k * width;
    const unsigned two = (codes[k] >> shift & mask) << bit % 8;
    row[bit / 8] |= static_cast<uint8_t>(two);
    if (bit % 8 + width > 8) row[bit / 8 + 1] |= static_cast<uint8_t>(two >> 8);
  }
}

// One row between the stored form and a byte per code.
void read_row(const Lanes& form, const uint8_t* stored, uint8_t flip, int64_t n, uint8_t* codes) {
  const int64_t bytes = stored_row_bytes(form);
  std::fill_n(codes, form.inputs, 0);
  if (form.binary) {
    for (int i = 0; i < form.bits; ++i) {
      spread(stored + (i * form.outputs + n) * bytes, 1, i, form.inputs, codes);
    }
  } else if (form.bits == 8) {
    for (int64_t k = 0; k < form.inputs; ++k) codes[k] = stored[n * bytes + k] ^ flip;
  } else {
    spread(stored + n * bytes, form.bits, 0, form.inputs, codes);
  }
}

void write_row(const Lanes& form, const uint8_t* codes, uint8_t flip, int64_t n, uint8_t* stored) {
  const int64_t bytes = stored_row_bytes(form);
  if (form.binary) {
    for (int i = 0; i < form.bits; ++i) {
      uint8_t* row = stored + (i * form.outputs + n) * bytes;
      std::fill_n(row, bytes, 0);
      gather(codes, 1, i, form.inputs, row);
    }
  } else if (form.bits == 8) {
    for (int64_t k = 0; k < form.inputs; ++k) stored[n * bytes + k] = codes[k] ^ flip;
  } else {
    std::fill_n(stored + n * bytes, bytes, 0);
    gather(codes, form.bits, 0, form.inputs, stored + n * bytes);
  }
}

using Steps = uint8_t[block_steps][vector_bytes];

void pack_block(const Fields& fields, const Steps steps, uint8_t* block) {
  for (int f = 0; f < fields.count; ++f) {
    const auto [width, shift] = fields.field[f];
    const unsigned mask = (1u << width) - 1;
    std::memset(block, 0, width * vector_bytes);
    for (int s = 0; s < block_steps; ++s) {
      uint8_t* vector = block + s % width * vector_bytes;
      const int at = s / width * width;
      for (int b = 0; b < vector_bytes; ++b) {
        vector[b] |= static_cast<uint8_t>((steps[s][b] >> shift & mask) << at);
      }
    }
    block += width * vector_bytes;
  }
}

void unpack_block(const Fields& fields, const uint8_t* block, Steps steps) {
  std::memset(steps, 0, sizeof(Steps));
  for (int f = 0; f < fields.count; ++f) {
    const auto [width, shift] = fields.field[f];
    const unsigned mask = (1u << width) - 1;
    for (int s = 0; s < block_steps; ++s) {
      const uint8_t* vector = block + s % width * vector_bytes;
      const int at = s / width * width;
      for (int b = 0; b < vector_bytes; ++b) {
        steps[s][b] |= static_cast<uint8_t>((vector[b] >> at & mask) << shift);
      }
    }
    block += width * vector_bytes;
  }
}

// fn(panel) for all panels.
template <class Fn>
void for_panels(const Lanes& form, const Fn& fn) {
  const int64_t grain = codes_per_thread / (panel_rows * form.inputs + 1) + 1;
  parallel_for(0, form.panels(), grain, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) fn(panel);
  });
}

// fn(first input, inputs) for each block of a row, in order.
template <class Fn>
void for_blocks(const Lanes& form, const Fn& fn) {
  for (int64_t g = 0; g < form.groups(); ++g) {
    const int64_t n = form.group_inputs(g);
    for (int64_t k = 0; k < n; k += block_inputs) {
      fn(g * form.group + k, std::min(block_inputs, n - k));
    }
  }
}

// Four codes of one row: `at` is 4 times its lane.
uint32_t codes_of_step(const Fields& fields, const uint8_t* block, int s, int64_t at) {
  uint32_t codes = 0;
  for (int f = 0; f < fields.count; ++f) {
    const auto [width, shift] = fields.field[f];
    uint32_t four;
    std::memcpy(&four, block + s % width * vector_bytes + at, sizeof four);
    codes |= (four >> s / width * width & ((1u << width) - 1) * 0x01010101u) << shift;
    block += width * vector_bytes;
  }
  return codes;
}

float number(const void* values, bool half, int64_t at) {
  return half ? float_of_half(static_cast<const uint16_t*>(values)[at])
              : static_cast<const float*>(values)[at];
}

// The parameters of one group of one row.
struct Parameters {
  float zero = 0, scale = 0;      // affine
  float alpha[4] = {}, offset = 0;  // binary

  Parameters(const DecodeLanes& op, int64_t group, int64_t lane) {
    const Lanes& form = op.form;
    const int64_t at = group * panel_rows + lane;
    if (form.binary) {
      for (int i = 0; i < op.planes; ++i) {
        alpha[i] = number(op.scale, op.half_scale, (group * op.planes + i) * panel_rows + lane);
      }
      if (op.offset) offset = number(op.offset, op.half_scale, at);
    } else {
      scale = number(op.scale, op.half_scale, at);
      zero = op.zero_point ? op.zero_point[at] : 1 << (form.bits - 1);
    }
  }

  float weight(const DecodeLanes& op, unsigned code) const {
    if (!op.form.binary) return scale * (static_cast<float>(code) - zero);
    float sum = offset;
    for (int i = 0; i < op.planes; ++i) sum += code >> i & 1 ? alpha[i] : -alpha[i];
    return sum;
  }
};

void decode_row(const DecodeLanes& op, const Fields& fields, int64_t row, float* out) {
  const Lanes& form = op.form;
  const int64_t panel = row / panel_rows, lane = row % panel_rows;
  const uint8_t* block = op.codes + panel * form.panel_bytes();
  for (int64_t g = 0; g < form.groups(); ++g) {
    const Parameters group(op, panel * form.groups() + g, lane);
    const int64_t n = form.group_inputs(g);
    for (int64_t k = 0; k < n; k += step_inputs) {
      const int s = static_cast<int>(k / step_inputs % block_steps);
      const uint32_t four = codes_of_step(fields, block, s, lane * step_inputs);
      for (int64_t i = 0; i < std::min(step_inputs, n - k); ++i) {
        *out++ = group.weight(op, four >> 8 * i & 0xff);
      }
      if (s == block_steps - 1 || k + step_inputs >= n) block += form.block_bytes();
    }
  }
}

}  // namespace

void pack_lanes(const Lanes& form, const uint8_t* stored, uint8_t flip, uint8_t* codes) {
  const Fields fields = fields_of(form.bits, form.binary);
  for_panels(form, [&](int64_t panel) {
    std::vector<uint8_t> rows(panel_rows * form.inputs);
    for (int64_t lane = 0; lane < panel_rows; ++lane) {
      const int64_t n = panel * panel_rows + lane;
      if (n < form.outputs) read_row(form, stored, flip, n, &rows[lane * form.inputs]);
    }
    uint8_t* block = codes + panel * form.panel_bytes();
    for_blocks(form, [&](int64_t k, int64_t n) {
      Steps steps = {};
      for (int64_t lane = 0; lane < panel_rows; ++lane) {
        const uint8_t* row = &rows[lane * form.inputs + k];
        for (int64_t i = 0; i < n; ++i) steps[i / 4][lane * 4 + i % 4] = row[i];
      }
      pack_block(fields, steps, block);
      block += form.block_bytes();
    });
  });
}

void unpack_lanes(const Lanes& form, const uint8_t* codes, uint8_t flip, uint8_t* stored) {
  const Fields fields = fields_of(form.bits, form.binary);
  for_panels(form, [&](int64_t panel) {
    std::vector<uint8_t> rows(panel_rows * form.inputs);
    const uint8_t* block = codes + panel * form.panel_bytes();
    for_blocks(form, [&](int64_t k, int64_t n) {
      Steps steps;
      unpack_block(fields, block, steps);
      for (int64_t lane = 0; lane < panel_rows; ++lane) {
        uint8_t* row = &rows[lane * form.inputs + k];
        for (int64_t i = 0; i < n; ++i) row[i] = steps[i / 4][lane * 4 + i % 4];
      }
      block += form.block_bytes();
    });
    for (int64_t lane = 0; lane < panel_rows; ++lane) {
      const int64_t n = panel * panel_rows + lane;
      if (n < form.outputs) write_row(form, &rows[lane * form.inputs], flip, n, stored);
    }
  });
}

void decode_lanes(const DecodeLanes& op) {
  const Fields fields = fields_of(op.form.bits, op.form.binary);
  const int64_t grain = codes_per_thread / (op.form.inputs + 1) + 1;
  parallel_for(0, op.count, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      decode_row(op, fields, op.rows[i], op.out + i * op.form.inputs);
    }
  });
}

}  // namespace lowbit
