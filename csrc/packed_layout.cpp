#include "packed_layout.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "parallel.h"
#include "scratch.h"

namespace lowbit {
namespace {

constexpr int64_t codes_per_thread = 1 << 16;

int64_t stored_row_bytes(const PackedLayout& form) {
  return (form.inputs * (form.binary ? 1 : form.bits) + 7) / 8;
}

// Codes of `width` bits, least significant bit first, into the bits from `shift` on of a byte each.
// Eight codes are `width` whole bytes.
template <int width>
void spread(const uint8_t* row, int shift, int64_t n, uint8_t* out) {
  constexpr unsigned mask = (1u << width) - 1;
  for (int64_t k = 0; k < n; k += 8, row += width, out += 8) {
    const int count = static_cast<int>(std::min<int64_t>(8, n - k));
    uint64_t eight = 0;
    std::memcpy(&eight, row, count == 8 ? width : (count * width + 7) / 8);
    for (int i = 0; i < count; ++i) {
      out[i] |= static_cast<uint8_t>((eight >> i * width & mask) << shift);
    }
  }
}

// The way back; bits behind the last code are zero.
template <int width>
void gather(const uint8_t* codes, int shift, int64_t n, uint8_t* row) {
  constexpr unsigned mask = (1u << width) - 1;
  for (int64_t k = 0; k < n; k += 8, row += width, codes += 8) {
    const int count = static_cast<int>(std::min<int64_t>(8, n - k));
    uint64_t eight = 0;
    for (int i = 0; i < count; ++i) {
      eight |= static_cast<uint64_t>(codes[i] >> shift & mask) << i * width;
    }
    std::memcpy(row, &eight, count == 8 ? width : (count * width + 7) / 8);
  }
}

// By width.
constexpr decltype(&spread<1>) spreads[] = {nullptr,   spread<1>, spread<2>, spread<3>,
                                            spread<4>, spread<5>, spread<6>, spread<7>};
constexpr decltype(&gather<1>) gathers[] = {nullptr,   gather<1>, gather<2>, gather<3>,
                                            gather<4>, gather<5>, gather<6>, gather<7>};

// One row between the stored form and a byte per code.
void read_row(const PackedLayout& form, const uint8_t* stored, uint8_t flip, int64_t n,
              uint8_t* codes) {
  const int64_t bytes = stored_row_bytes(form);
  std::fill_n(codes, form.inputs, 0);
  if (form.binary) {
    for (int i = 0; i < form.bits; ++i) {
      spread<1>(stored + (i * form.outputs + n) * bytes, i, form.inputs, codes);
    }
  } else if (form.bits == 8) {
    for (int64_t k = 0; k < form.inputs; ++k) codes[k] = stored[n * bytes + k] ^ flip;
  } else {
    spreads[form.bits](stored + n * bytes, 0, form.inputs, codes);
  }
}

void write_row(const PackedLayout& form, const uint8_t* codes, uint8_t flip, int64_t n,
               uint8_t* stored) {
  const int64_t bytes = stored_row_bytes(form);
  if (form.binary) {
    for (int i = 0; i < form.bits; ++i) {
      gather<1>(codes, i, form.inputs, stored + (i * form.outputs + n) * bytes);
    }
  } else if (form.bits == 8) {
    for (int64_t k = 0; k < form.inputs; ++k) stored[n * bytes + k] = codes[k] ^ flip;
  } else {
    gathers[form.bits](codes, 0, form.inputs, stored + n * bytes);
  }
}

using Steps = uint8_t[block_steps][vector_bytes];

// The low `width` bits of all bytes of a word.
constexpr uint64_t low_bits(int width) { return ((1u << width) - 1) * 0x0101010101010101u; }

void pack_block(const Fields& fields, const Steps steps, uint8_t* block) {
  for (int f = 0; f < fields.count; ++f) {
    const auto [width, shift] = fields.field[f];
    for (int j = 0; j < width; ++j, block += vector_bytes) {
      for (int b = 0; b < vector_bytes; b += 8) {
        uint64_t eight = 0;
        for (int s = j; s < block_steps; s += width) {
          uint64_t codes;
          std::memcpy(&codes, steps[s] + b, sizeof codes);
          eight |= (codes >> shift & low_bits(width)) << (s - j);
        }
        std::memcpy(block + b, &eight, sizeof eight);
      }
    }
  }
}

void unpack_block(const Fields& fields, const uint8_t* block, Steps steps) {
  std::memset(steps, 0, sizeof(Steps));
  for (int f = 0; f < fields.count; ++f) {
    const auto [width, shift] = fields.field[f];
    for (int j = 0; j < width; ++j, block += vector_bytes) {
      for (int b = 0; b < vector_bytes; b += 8) {
        uint64_t eight, codes;
        std::memcpy(&eight, block + b, sizeof eight);
        for (int s = j; s < block_steps; s += width) {
          std::memcpy(&codes, steps[s] + b, sizeof codes);
          codes |= (eight >> (s - j) & low_bits(width)) << shift;
          std::memcpy(steps[s] + b, &codes, sizeof codes);
        }
      }
    }
  }
}

// Of four codes those that are left.
void copy_four(uint8_t* to, const uint8_t* from, int64_t left) {
  left < 4 ? std::memcpy(to, from, left) : std::memcpy(to, from, 4);
}

// fn(panel, rows) for all panels; `rows` is memory for a byte per code, [panel_rows][inputs].
template <class Fn>
void for_panels(const PackedLayout& form, const Fn& fn) {
  const int64_t grain = codes_per_thread / (panel_rows * form.inputs + 1) + 1;
  std::atomic<bool> out_of_memory = false;
  parallel_for(0, form.panels(), grain, [&](int64_t first, int64_t last) {
    try {
      auto* rows = static_cast<uint8_t*>(task_scratch(panel_rows * form.inputs));
      for (int64_t panel = first; panel < last; ++panel) fn(panel, rows);
    } catch (const std::bad_alloc&) {  // from task_scratch; no exception may leave this function
      out_of_memory = true;
    }
  });
  if (out_of_memory) throw std::bad_alloc();
}

// fn(first input, inputs) for each block of a row, in order.
template <class Fn>
void for_blocks(const PackedLayout& form, const Fn& fn) {
  for (int64_t g = 0; g < form.groups(); ++g) {
    const int64_t n = form.group_inputs(g);
    for (int64_t k = 0; k < n; k += block_inputs) {
      fn(g * form.group + k, std::min(block_inputs, n - k));
    }
  }
}

}  // namespace

void pack_codes(const PackedLayout& form, const uint8_t* stored, uint8_t flip, uint8_t* codes) {
  const Fields fields = fields_of(form.bits, form.binary);
  for_panels(form, [&](int64_t panel, uint8_t* rows) {
    for (int64_t lane = 0; lane < panel_rows; ++lane) {
      const int64_t n = panel * panel_rows + lane;
      uint8_t* row = rows + lane * form.inputs;
      if (n < form.outputs) {
        read_row(form, stored, flip, n, row);
      } else {
        std::fill_n(row, form.inputs, 0);
      }
    }
    uint8_t* block = codes + panel * form.panel_bytes();
    for_blocks(form, [&](int64_t k, int64_t n) {
      Steps steps = {};
      for (int64_t lane = 0; lane < panel_rows; ++lane) {
        const uint8_t* row = rows + lane * form.inputs + k;
        for (int64_t i = 0; i < n; i += 4) copy_four(&steps[i / 4][lane * 4], row + i, n - i);
      }
      pack_block(fields, steps, block);
      block += form.block_bytes();
    });
  });
}

void unpack_codes(const PackedLayout& form, const uint8_t* codes, uint8_t flip, uint8_t* stored) {
  const Fields fields = fields_of(form.bits, form.binary);
  for_panels(form, [&](int64_t panel, uint8_t* rows) {
    const uint8_t* block = codes + panel * form.panel_bytes();
    for_blocks(form, [&](int64_t k, int64_t n) {
      Steps steps;
      unpack_block(fields, block, steps);
      for (int64_t lane = 0; lane < panel_rows; ++lane) {
        uint8_t* row = rows + lane * form.inputs + k;
        for (int64_t i = 0; i < n; i += 4) copy_four(row + i, &steps[i / 4][lane * 4], n - i);
      }
      block += form.block_bytes();
    });
    for (int64_t lane = 0; lane < panel_rows; ++lane) {
      const int64_t n = panel * panel_rows + lane;
      if (n < form.outputs) write_row(form, rows + lane * form.inputs, flip, n, stored);
    }
  });
}

}  // namespace lowbit
