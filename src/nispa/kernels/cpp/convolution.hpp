// Convolution over live kernels. With kernels flipped and transposed it is also the gradient to
// inputs, where the stride is 1; other strides have `strided.hpp`, weights `weights.hpp`.
//
// Each pixel's sum runs over the row's connections in order, within each from the first weight to
// the last, whatever tile it falls into: what a row computes depends on its own connections alone.
#pragma once

#include <algorithm>

#include "layout.hpp"
#include "threads.hpp"

namespace convolution {

// One pass of live kernels over images: forward, or (kernels flipped and transposed) backward.
// Backward is forward with inputs and outputs in exchanged roles: the same loops serve for both,
// and only the lists, `down` and `right` differ.
struct Pass {
  Image in, out;
  int height, width, stride;  // of the kernel
  int64_t down, right;        // how far into the border of `in` the first window starts
  Rows lists[2];              // frozen, then plastic
  const int32_t* rows;        // which rows (channels of `out`) to compute
  int64_t row_count;
  const float* bias;          // one a row, or null
  Image pooled;               // the largest of each 2 x 2 outputs, if that is what is wanted
};

// A tile's sums stay in registers until they are stored.
// 2 x 8 sums, the 10 vectors of a line of input and a weight fit 32 registers; 2 x 4 and 6 fit 16.
constexpr int TILE_ROWS = 2;
constexpr int TILE_WIDTH = REGISTERS >= 32 ? 8 : 4;

// Sums of 3 x 3 kernels, stride 1, over R x T pixels: each input vector is loaded once.
template <int R, int T>
static inline void tile_3x3(const float* x, int64_t line, int64_t plane, const Rows& list,
                            int32_t row, Reg (&sum)[R][T]) {
  // Copies: compilers would read the list and multiply the steps again for each line.
  const int32_t *source = list.source + list.start[row], *end = list.source + list.start[row + 1];
  const int64_t below = line * LANES, channel = plane * LANES;
  // In 64 bits: connections are counted in 32, but they have nine weights each.
  const float* w = list.value + int64_t{9} * list.start[row];
  for (; source < end; source++, w += 9) {
    const float* from = x + *source * channel;
    // By lines of the input: line r meets kernel line r - q in output line q. So a loaded register
    // serves six products, and a sum still gets its weights from the first to the last.
    for (int r = 0; r < R + 2; r++, from += below) {
      NISPA_KEEP_LOADS();
      Reg pixel[T + 2];
      for (int t = 0; t < T + 2; t++) pixel[t] = load<Reg>(from + t * LANES);
      for (int q = 0; q < R; q++) {
        const int y = r - q;
        if (y < 0 || y > 2) continue;
        for (int s = 0; s < 3; s++) {
          const Reg weight = broadcast<Reg>(w[3 * y + s]);
          for (int t = 0; t < T; t++) sum[q][t] = fma(weight, pixel[t + s], sum[q][t]);
        }
      }
    }
  }
}

// The same for any kernel and stride, over 1 x T pixels.
template <int T>
static inline void tile_any(const float* x, const Pass& pass, const Rows& list, int32_t row,
                            Reg (&sum)[1][T]) {
  // Loads are not shared here: this way is for the sizes and strides that few networks have.
  const int64_t line = pass.in.line(), plane = pass.in.plane(), step = pass.stride;
  for (int32_t k = list.start[row]; k < list.start[row + 1]; k++) {
    const float* from = x + list.source[k] * plane * LANES;
    const float* w = list.value + int64_t{k} * pass.height * pass.width;
    for (int y = 0; y < pass.height; y++)
      for (int s = 0; s < pass.width; s++) {
        const Reg weight = broadcast<Reg>(*w++);
        for (int t = 0; t < T; t++)
          sum[0][t] = fma(weight, load<Reg>(from + (y * line + t * step + s) * LANES), sum[0][t]);
      }
  }
}

// What is stored of the sums of a tile: each of them, or the largest of each 2 x 2.
enum class Store { each, largest };

// The largest of each 2 x 2 goes to `pooled`; which it is, the first of them, stays in their place,
// so that the others need not be kept.
template <int T, Finish F>
static inline void store_largest(const Reg (&sum)[TILE_ROWS][T], float* to, float* pooled) {
  // Two lines, an even number of columns: `strip` covers the pool's windows and nothing else.
  for (int t = 0; t + 1 < T; t += 2) {
    const Four<Reg> four{sum[0][t], sum[0][t + 1], sum[1][t], sum[1][t + 1]};
    const Reg most = four.largest();
    store(to + t * LANES, four.which(most));
    finish<F>(pooled + t / 2 * LANES, most);
  }
}

// One tile of R x T pixels of a row, whose first pixel is (y, x) of the output, in the lanes of one
// register.
template <int R, int T, Finish F, Store W>
static inline void tile_part(const Pass& pass, const float* in, float* out, float* pooled,
                             int32_t row, int64_t y, int64_t x) {
  Reg sum[R][T];
  // Backward has no biases.
  const Reg first = broadcast<Reg>(pass.bias ? pass.bias[row] : 0.0f);
  for (int q = 0; q < R; q++)
    for (int t = 0; t < T; t++) sum[q][t] = first;
  const int64_t at = (pass.down + y * pass.stride) * pass.in.line() + pass.right + x * pass.stride;
  // Frozen before plastic. That freezing changes no sum is due to the merged lists: a row with both
  // kinds is in those, so one of the lists is empty here.
  for (const Rows& list : pass.lists) {
    if (!list.start) continue;
    // Strips of two lines are for 3 x 3 kernels alone, so the other way is compiled for one line
    // only.
    if constexpr (R == 1) {
      if (pass.height != 3 || pass.width != 3 || pass.stride != 1) {
        tile_any<T>(in + at * LANES, pass, list, row, sum);
        continue;
      }
    }
    tile_3x3<R, T>(in + at * LANES, pass.in.line(), pass.in.plane(), list, row, sum);
  }
  float* to = out + (pass.out.inside(row) + y * pass.out.line() + x) * LANES;
  if constexpr (W == Store::largest) {
    // y and x are even: a tile begins with a window.
    const int64_t half = pass.pooled.inside(row) + y / 2 * pass.pooled.line() + x / 2;
    store_largest<T, F>(sum, to, pooled + half * LANES);
  } else {
    for (int q = 0; q < R; q++)
      for (int t = 0; t < T; t++) finish<F>(to + (q * pass.out.line() + t) * LANES, sum[q][t]);
  }
}

// The same in all lanes, part by part: what the first reads of the cache's lines, the next find there.
template <int R, int T, Finish F, Store W>
static inline void tile(const Pass& pass, const float* in, float* out, float* pooled, int32_t row,
                        int64_t y, int64_t x) {
  for (int part = 0; part < LANES; part += WIDTH)
    tile_part<R, T, F, W>(pass, in + part, out + part,
                          W == Store::largest ? pooled + part : nullptr, row, y, x);
}

// R lines of pixels of all rows: the input that they read stays in the cache from row to row. The
// end of a line takes narrower tiles.
template <int R, Finish F, Store W>
static void strip(const Pass& pass, const float* in, float* out, float* pooled, int64_t y) {
  // The pool leaves a last odd column out, and backward sets its gradient to zero.
  const int64_t width = W == Store::largest ? 2 * pass.pooled.width : pass.out.width;
  for (int64_t j = 0; j < pass.row_count; j++) {
    const int32_t row = pass.rows[j];
    int64_t x = 0;
    for (; x + TILE_WIDTH <= width; x += TILE_WIDTH)
      tile<R, TILE_WIDTH, F, W>(pass, in, out, pooled, row, y, x);
    if constexpr (TILE_WIDTH > 4)
      if (x + 4 <= width) tile<R, 4, F, W>(pass, in, out, pooled, row, y, x), x += 4;
    if (x + 2 <= width) tile<R, 2, F, W>(pass, in, out, pooled, row, y, x), x += 2;
    if constexpr (W == Store::each)
      if (x < width) tile<R, 1, F, W>(pass, in, out, pooled, row, y, x);
  }
}

// Whether a kernel has the fast way, which a pool can follow at once.
static inline bool small(int64_t height, int64_t width, int64_t stride) {
  return height == 3 && width == 3 && stride == 1;
}

// Threads share strips of slabs. A pass over a pool skips a last odd line, which no window holds.
template <Finish F>
static void run(const Pass& pass, int64_t slabs) {
  const int64_t high = small(pass.height, pass.width, pass.stride) ? TILE_ROWS : 1;
  const int64_t rows = pass.pooled.data ? TILE_ROWS * pass.pooled.height : pass.out.height;
  const int64_t strips = (rows + high - 1) / high;
  int64_t live = 0;
  for (const Rows& list : pass.lists) live += connections(list, pass.rows, pass.row_count);
  const int64_t work = slabs * live * pass.height * pass.width * rows * pass.out.width;
  threads::parallel(slabs * strips, work, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t slab = unit / strips, y = unit % strips * high;
      const float* in = pass.in.data + slab * pass.in.slab();
      float* out = pass.out.data + slab * pass.out.slab();
      if (pass.pooled.data) {
        float* pooled = pass.pooled.data + slab * pass.pooled.slab();
        // Masks are for gradients, which no pool follows.
        if constexpr (F != Finish::masked)
          strip<TILE_ROWS, F, Store::largest>(pass, in, out, pooled, y);
        continue;
      }
      const int64_t last = std::min(y + high, rows);
      // An odd number of lines ends with a strip of one.
      for (int64_t at = y; at < last;) {
        if (high == TILE_ROWS && at + TILE_ROWS <= last)
          strip<TILE_ROWS, F, Store::each>(pass, in, out, nullptr, at), at += TILE_ROWS;
        else
          strip<1, F, Store::each>(pass, in, out, nullptr, at), at += 1;
      }
    }
  });
}

}  // namespace convolution
