// A Linear layer over live connections, its gradient to inputs, and its gradient to live values.
#pragma once

#include <algorithm>

#include "layout.hpp"
#include "threads.hpp"

namespace linear {

// One pass of live weights over features: forward, or (transposed) backward.
struct Pass {
  const float* in;
  float* out;
  int64_t in_slab, out_slab;  // floats from one slab to the next
  Rows lists[2];              // frozen, then plastic
  const int32_t* rows;        // which rows to compute
  const int32_t* place;       // where a row's sum goes, in vectors
  int64_t row_count;
  const float* bias;          // one a row, or null
};

constexpr int TILE = 4;  // slabs at a time: each weight is read once for all of them
// Sums side by side, so that no addition waits for the one before. With those of a tile they take
// half of the registers; the rest is for loads.
constexpr int STRANDS = REGISTERS / 2 / (TILE * PARTS);
// Slabs at a time in the gradient of weights, whose output gradients take half of the registers.
constexpr int SLABS = REGISTERS / 2 / PARTS;

// Adds connections [k, end) of a row to its strands, each to the one that its place in the row
// says.
template <int S>
static inline void add_connections(const Rows& list, int32_t k, int32_t end, const float* in,
                                   int64_t in_slab, Vec (&strand)[STRANDS][S]) {
  const auto add_one = [&](int32_t at, Vec(&to)[S]) {
    const float* from = in + int64_t{list.source[at]} * LANES;
    const Vec weight = broadcast(list.value[at]);
    for (int s = 0; s < S; s++) to[s] = fma(weight, load(from + s * in_slab), to[s]);
  };
  // Whole groups of connections, one for each strand; then the rest, to the strands in order.
  for (; k + STRANDS <= end; k += STRANDS)
    for (int i = 0; i < STRANDS; i++) add_one(k + i, strand[i]);
  for (int i = 0; i < STRANDS - 1; i++) {
    if (k + i >= end) break;
    add_one(k + i, strand[i]);
  }
}

// Adds R rows over S slabs. A row's sum is split over strands by the place of a connection in the
// row, whatever R and S are.
template <int R, int S>
static inline void add_rows(const Rows& list, const int32_t* rows, const float* in, int64_t in_slab,
                            Vec (&sum)[R][S]) {
  // Fewer slabs must not mean more strands: the number of additions in a row decides its bits, and
  // a batch of one image must give the same as a large one. They mean more rows.
  Vec strand[R][STRANDS][S];
  for (auto& row : strand)
    for (auto& each : row)
      for (Vec& one : each) one = broadcast(0.0f);
  int32_t start[R], common = list.start[rows[0] + 1] - list.start[rows[0]];
  for (int r = 0; r < R; r++) {
    start[r] = list.start[rows[r]];
    common = std::min(common, list.start[rows[r] + 1] - start[r]);
  }
  if constexpr (R > 1) {
    // As many as all of the rows have, side by side; then what is left of each.
    common -= common % STRANDS;
    for (int32_t k = 0; k < common; k += STRANDS)
      for (int r = 0; r < R; r++)
        add_connections<S>(list, start[r] + k, start[r] + k + STRANDS, in, in_slab, strand[r]);
  }
  for (int r = 0; r < R; r++) {
    const int32_t from = start[r] + (R > 1 ? common : 0);
    add_connections<S>(list, from, list.start[rows[r] + 1], in, in_slab, strand[r]);
    for (int s = 0; s < S; s++) {
      // In this order always, since it decides the last bits of every output.
      Vec total = strand[r][0][s];
      if constexpr (STRANDS >= 2) total = add(total, strand[r][1][s]);
      if constexpr (STRANDS == 4) total = add(total, add(strand[r][2][s], strand[r][3][s]));
      sum[r][s] = add(sum[r][s], total);
    }
  }
}

// Rows number j to j + R of the list over S slabs. Frozen connections are added before plastic
// ones; a row that has both is listed as merged connections instead.
template <int R, int S, Finish F>
static inline void tile_rows(const Pass& pass, const float* in, float* out, int64_t j) {
  Vec sum[R][S];
  // A sum begins with the bias, where the reference may end with it: they agree up to rounding.
  for (int r = 0; r < R; r++) {
    const Vec begin = broadcast(pass.bias ? pass.bias[pass.rows[j + r]] : 0.0f);
    for (Vec& each : sum[r]) each = begin;
  }
  for (const Rows& list : pass.lists)
    if (list.start) add_rows<R, S>(list, pass.rows + j, in, pass.in_slab, sum);
  for (int r = 0; r < R; r++)
    for (int s = 0; s < S; s++)
      finish<F>(out + s * pass.out_slab + int64_t{pass.place[j + r]} * LANES, sum[r][s]);
}

// Rows [first, last) of the list over S slabs: the fewer slabs, the more rows at once.
template <int S, Finish F>
static void tile(const Pass& pass, int64_t slab, int64_t first, int64_t last) {
  constexpr int R = TILE / S;
  const float* in = pass.in + slab * pass.in_slab;
  float* out = pass.out + slab * pass.out_slab;
  int64_t j = first;
  for (; j + R <= last; j += R) tile_rows<R, S, F>(pass, in, out, j);
  if constexpr (R > 1)
    for (; j < last; j++) tile_rows<1, S, F>(pass, in, out, j);
}

// Work is shared out as tiles of slabs and, where there are fewer tiles than threads, groups of
// rows. Neither changes a sum: each belongs to one row and one lane.
template <Finish F>
static void run(const Pass& pass, int64_t slabs) {
  const int64_t wide = std::min<int64_t>(TILE, std::max<int64_t>(1, slabs));
  const int64_t tiles = (slabs + wide - 1) / wide;
  // A small batch is one tile; its rows in eight groups still occupy eight threads.
  const int64_t groups = std::min<int64_t>(pass.row_count, tiles >= threads::wanted ? 1 : 8);
  int64_t live = 0;
  for (const Rows& list : pass.lists) live += connections(list, pass.rows, pass.row_count);
  threads::parallel(tiles * groups, slabs * live, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t first = pass.row_count * (unit % groups) / groups;
      const int64_t last = pass.row_count * (unit % groups + 1) / groups;
      int64_t slab = unit / groups * wide;
      const int64_t stop = std::min(slab + wide, slabs);
      // A tile has at most TILE slabs, so each of these is taken once at most.
      if (slab + 4 <= stop) tile<4, F>(pass, slab, first, last), slab += 4;
      if (slab + 2 <= stop) tile<2, F>(pass, slab, first, last), slab += 2;
      if (slab < stop) tile<1, F>(pass, slab, first, last);
    }
  });
}

// Gradient to live values: products of input and output gradient, summed over images.
struct Weights {
  const float *in, *gradient;
  int64_t in_slab, gradient_slab;
  const int32_t *start, *source;  // plastic connections, row by row
  const int32_t* rows;            // rows with a plastic connection or bias
  int64_t row_count;
  float* value;                   // one a connection
  float* bias;                    // one a row
  bool fresh;                     // values are written, rather than added to; biases always are
};

// Adds the sums of connections [k, end) over S slabs, whose output gradients are in registers.
template <int S>
static inline void add_sums_of(const float* in, int64_t in_slab, const int32_t* source,
                                const Vec (&g)[S], int32_t k, int32_t end, float* value) {
  // Four connections at a time, since add_sums adds the lanes of four vectors at once.
  for (; k + 4 <= end; k += 4) {
    Reg total[4];
    int64_t at[4];
    for (int i = 0; i < 4; i++) {
      total[i] = broadcast<Reg>(0.0f);
      at[i] = int64_t{source[k + i]} * LANES;
    }
    const float* from = in;
    // The address moves by adding, which costs less than a product for each load.
    for (int s = 0; s < S; s++, from += in_slab)
      for (int i = 0; i < 4; i++) total[i] = add_products(g[s], from + at[i], total[i]);
    add_sums(value + k, total[0], total[1], total[2], total[3]);
  }
  for (; k < end; k++) {
    Reg total = broadcast<Reg>(0.0f);
    const float* from = in + int64_t{source[k]} * LANES;
    for (int s = 0; s < S; s++) total = add_products(g[s], from + s * in_slab, total);
    value[k] += sum(total);
  }
}

// The rows [first, last): their weights and biases, over S slabs from `slab` on.
template <int S>
static void add_slabs(const Weights& job, int64_t slab, int64_t first, int64_t last, bool fresh) {
  const float* in = job.in + slab * job.in_slab;
  const float* gradient = job.gradient + slab * job.gradient_slab;
  for (int64_t j = first; j < last; j++) {
    const int32_t row = job.rows[j];
    Vec g[S];
    Reg total = broadcast<Reg>(0.0f);
    for (int s = 0; s < S; s++) {
      g[s] = load(gradient + s * job.gradient_slab + int64_t{row} * LANES);
      total = add_parts(g[s], total);
    }
    const int32_t begin = job.start[row], end = job.start[row + 1];
    // Before the first slabs; nobody has cleared the gradients of the last step.
    if (fresh) std::fill(job.value + begin, job.value + end, 0.0f);
    // The scratch of biases is never cleared, either: the first slab writes it.
    job.bias[row] = sum(total) + (slab ? job.bias[row] : 0.0f);
    add_sums_of<S>(in, job.in_slab, job.source, g, begin, end, job.value);
  }
}

// Threads share rows and each goes over all slabs, so a sum runs over images in one order, whatever
// the number of threads. As many slabs at a time as output gradients fit the registers.
static void gradient(const Weights& job, int64_t slabs) {
  // Threads share rows and not slabs: two must never add to the sums of one connection.
  const int64_t groups = std::min<int64_t>(job.row_count, 4 * threads::wanted);
  const Rows list{job.start, job.source, nullptr};
  const int64_t live = connections(list, job.rows, job.row_count);
  threads::parallel(groups, slabs * live, [&](int64_t begin, int64_t end) {
    const int64_t first = job.row_count * begin / groups, last = job.row_count * end / groups;
    bool fresh = job.fresh;
    for (int64_t slab = 0; slab < slabs; fresh = false) {
      const int64_t left = slabs - slab;
      if (SLABS >= 16 && left >= 16) add_slabs<16>(job, slab, first, last, fresh), slab += 16;
      else if (SLABS >= 8 && left >= 8) add_slabs<8>(job, slab, first, last, fresh), slab += 8;
      else if (left >= 4) add_slabs<4>(job, slab, first, last, fresh), slab += 4;
      else if (left >= 2) add_slabs<2>(job, slab, first, last, fresh), slab += 2;
      else add_slabs<1>(job, slab, first, last, fresh), slab += 1;
    }
  });
}

}  // namespace linear
