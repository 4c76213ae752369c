// Convolution over live kernels. With kernels flipped and transposed it is also the gradient to
// inputs, where the stride is 1; other strides have `strided.hpp`, weights `weights.hpp`.
//
// Each pixel's sum runs over the row's connections in order, within each from the first weight to
// the last, whatever tile it falls into: what a row computes depends on its own connections alone.
#pragma once

#include <algorithm>
#include <type_traits>

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

// A row's connections in one of the lists.
struct Run {
  const int32_t *source, *end;
  const float* value;
};

static inline Run run_of(const Rows& list, int32_t row, int64_t weights) {
  if (!list.start) return {nullptr, nullptr, nullptr};
  // In 64 bits: connections are counted in 32, but they have several weights each.
  const int64_t first = list.start[row], last = list.start[row + 1];
  return {list.source + first, list.source + last, list.value + weights * first};
}

// What all tiles of a row share, worked out once: most tiles are so short that it would show.
struct Row {
  Run runs[2];  // frozen, then plastic
  float bias;
  int64_t below, channel;  // floats from a pixel of the input to the next line, to the next channel
  int64_t out_below;
};

// Sums of 3 x 3 kernels, stride 1, over R x T pixels: each input register is loaded once.
template <int R, int T>
NISPA_INLINE void tile_3x3(const float* x, const Row& row, Run run, Reg (&sum)[R][T]) {
  const int64_t below = row.below;
  for (; run.source < run.end; run.source++, run.value += 9) {
    const float *from = x + *run.source * row.channel, *w = run.value;
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
NISPA_INLINE void tile_any(const float* x, const Pass& pass, const Row& row, Run run,
                           Reg (&sum)[1][T]) {
  // Loads are not shared here: this way is for the sizes and strides that few networks have.
  const int64_t step = pass.stride * int64_t{LANES};
  for (; run.source < run.end; run.source++) {
    const float* line = x + *run.source * row.channel;
    for (int y = 0; y < pass.height; y++, line += row.below)
      for (int s = 0; s < pass.width; s++) {
        const Reg weight = broadcast<Reg>(*run.value++);
        for (int t = 0; t < T; t++)
          sum[0][t] = fma(weight, load<Reg>(line + s * LANES + t * step), sum[0][t]);
      }
  }
}

// What is stored of the sums of a tile: each of them, or the largest of each 2 x 2.
enum class Store { each, largest };

// The largest of each 2 x 2 goes to `pooled`; which it is, the first of them, stays in their place,
// so that the others need not be kept.
template <int T, Finish F>
NISPA_INLINE void store_largest(const Reg (&sum)[TILE_ROWS][T], float* to, float* pooled) {
  // Two lines, an even number of columns: `strip` covers the pool's windows and nothing else.
  for (int t = 0; t + 1 < T; t += 2) {
    const Four<Reg> four{sum[0][t], sum[0][t + 1], sum[1][t], sum[1][t + 1]};
    const Reg most = four.largest();
    store(to + t * LANES, four.which(most));
    finish<F>(pooled + t / 2 * LANES, most);
  }
}

// Whether a kernel has the fast way, which a pool can follow at once.
static inline bool small(int64_t height, int64_t width, int64_t stride) {
  return height == 3 && width == 3 && stride == 1;
}

// One tile of R x T pixels of a row. It is done part by part: what the first reads of the cache's
// lines, the next find there.
template <int R, int T, Finish F, Store W>
NISPA_INLINE void tile(const Pass& pass, const Row& row, const float* from, float* to,
                       float* pooled) {
  for (int part = 0; part < LANES; part += WIDTH) {
    Reg sum[R][T];
    const Reg first = broadcast<Reg>(row.bias);
    for (int q = 0; q < R; q++)
      for (int t = 0; t < T; t++) sum[q][t] = first;
    // Frozen before plastic. That freezing changes no sum is due to the merged lists: a row with
    // both kinds is in those, so one of the lists is empty here.
    for (const Run& run : row.runs) {
      // Strips of two lines are for 3 x 3 kernels alone, so the other way is compiled for one line
      // only.
      if constexpr (R == 1) {
        if (!small(pass.height, pass.width, pass.stride)) {
          tile_any<T>(from + part, pass, row, run, sum);
          continue;
        }
      }
      tile_3x3<R, T>(from + part, row, run, sum);
    }
    if constexpr (W == Store::largest) {
      store_largest<T, F>(sum, to + part, pooled + part);
    } else {
      for (int q = 0; q < R; q++)
        for (int t = 0; t < T; t++) finish<F>(to + part + q * row.out_below + t * LANES, sum[q][t]);
    }
  }
}

// R lines of pixels of all rows: the input that they read stays in the cache from row to row. The
// end of a line takes narrower tiles.
template <int R, Finish F, Store W>
static void strip(const Pass& pass, const float* in, float* out, float* pooled, int64_t y) {
  // The pool leaves a last odd column out, and backward sets its gradient to zero.
  const int64_t width = W == Store::largest ? 2 * pass.pooled.width : pass.out.width;
  const int64_t weights = int64_t{pass.height} * pass.width, step = int64_t{pass.stride} * LANES;
  const int64_t above = (pass.down + y * pass.stride) * pass.in.line() + pass.right;
  for (int64_t j = 0; j < pass.row_count; j++) {
    const int32_t number = pass.rows[j];
    // Backward has no biases.
    const Row row{{run_of(pass.lists[0], number, weights), run_of(pass.lists[1], number, weights)},
                  pass.bias ? pass.bias[number] : 0.0f, pass.in.line() * LANES,
                  pass.in.plane() * LANES, pass.out.line() * LANES};
    const float* from = in + above * LANES;
    float* to = out + (pass.out.inside(number) + y * pass.out.line()) * LANES;
    // y and x are even where a pool follows: a tile begins with a window.
    float* half = nullptr;
    if constexpr (W == Store::largest)
      half = pooled + (pass.pooled.inside(number) + y / 2 * pass.pooled.line()) * LANES;
    int64_t x = 0;
    const auto next = [&](auto wide) {
      constexpr int T = decltype(wide)::value;
      tile<R, T, F, W>(pass, row, from + x * step, to + x * LANES,
                       W == Store::largest ? half + x / 2 * LANES : nullptr);
      x += T;
    };
    while (x + TILE_WIDTH <= width) next(std::integral_constant<int, TILE_WIDTH>{});
    if constexpr (TILE_WIDTH > 4)
      if (x + 4 <= width) next(std::integral_constant<int, 4>{});
    if (x + 2 <= width) next(std::integral_constant<int, 2>{});
    if constexpr (W == Store::each)
      if (x < width) next(std::integral_constant<int, 1>{});
  }
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
