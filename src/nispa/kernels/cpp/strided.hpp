// The gradient to inputs of a convolution with a stride over 1.
#pragma once

#include "layout.hpp"
#include "threads.hpp"

namespace convolution {

// Gradient to inputs for strides over 1. Pixels of the input whose line and column leave the same
// remainders by the stride form a plane: the same weights meet all of its pixels, which are the
// ones whose distance is whole, so a pass over a plane has no gaps.
struct Strided {
  Image in, out;               // gradient of the output, with a border as wide as weights reach
  int height, width, stride;   // of the kernel
  int64_t padding;
  Rows list;                   // by input, kernels not flipped
  const int32_t* rows;
  int64_t row_count;
};

// T pixels of a plane from number (i, j) on, in the lanes of one register from number `part` on.
template <int T, Finish F>
NISPA_INLINE void plane_tile(const Strided& pass, int part, int32_t row, int64_t i, int64_t j,
                             int64_t down, int64_t right) {
  const int64_t line = pass.in.line(), plane = pass.in.plane(), step = pass.stride;
  // The first weight of a plane, and how far from its pixel's number it reads; the next weights
  // read one less each.
  const int64_t first_y = (down + pass.padding) % step, from_y = (down + pass.padding) / step;
  const int64_t first_x = (right + pass.padding) % step, from_x = (right + pass.padding) / step;
  const float* in =
      pass.in.data + (pass.in.inside(0) + (i + from_y) * line + j + from_x) * LANES + part;
  Reg sum[T];
  for (Reg& each : sum) each = broadcast<Reg>(0.0f);
  for (int32_t k = pass.list.start[row]; k < pass.list.start[row + 1]; k++) {
    const float* from = in + pass.list.source[k] * plane * LANES;
    const float* w = pass.list.value + int64_t{k} * pass.height * pass.width;
    for (int64_t r = first_y; r < pass.height; r += step, from -= line * LANES) {
      const float* x = from;
      for (int64_t s = first_x; s < pass.width; s += step, x -= LANES) {
        NISPA_KEEP_LOADS();
        const Reg weight = broadcast<Reg>(w[r * pass.width + s]);
        for (int t = 0; t < T; t++) sum[t] = fma(weight, load<Reg>(x + t * LANES), sum[t]);
      }
    }
  }
  const int64_t y = i * step + down, x = j * step + right;
  float* to = pass.out.data + (pass.out.inside(row) + y * pass.out.line() + x) * LANES + part;
  for (int t = 0; t < T; t++) finish<F>(to + t * step * LANES, sum[t]);
}

template <int T, Finish F>
static inline void plane_tile(const Strided& pass, int32_t row, int64_t i, int64_t j, int64_t down,
                              int64_t right) {
  for (int part = 0; part < LANES; part += WIDTH)
    plane_tile<T, F>(pass, part, row, i, j, down, right);
}

template <Finish F>
static void run_strided_gradient(const Strided& pass, int64_t slabs) {
  const int64_t step = pass.stride, lines = (pass.out.height + step - 1) / step;
  const int64_t live = connections(pass.list, pass.rows, pass.row_count);
  const int64_t work = slabs * live * pass.height * pass.width * pass.in.height * pass.in.width;
  threads::parallel(slabs * lines, work, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      Strided mine = pass;
      mine.in.data += unit / lines * pass.in.slab();
      mine.out.data += unit / lines * pass.out.slab();
      const int64_t i = unit % lines;
      for (int64_t number = 0; number < pass.row_count; number++)
        for (int64_t down = 0; down < step && i * step + down < pass.out.height; down++)
          for (int64_t right = 0; right < step && right < pass.out.width; right++) {
            const int64_t wide = (pass.out.width - right + step - 1) / step;
            const int32_t row = pass.rows[number];
            int64_t j = 0;
            for (; j + 8 <= wide; j += 8) plane_tile<8, F>(mine, row, i, j, down, right);
            if (j + 4 <= wide) plane_tile<4, F>(mine, row, i, j, down, right), j += 4;
            if (j + 2 <= wide) plane_tile<2, F>(mine, row, i, j, down, right), j += 2;
            if (j < wide) plane_tile<1, F>(mine, row, i, j, down, right);
          }
    }
  });
}

}  // namespace convolution
