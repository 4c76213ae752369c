// The gradient to live values of a convolution.
#pragma once

#include <algorithm>

#include "layout.hpp"
#include "threads.hpp"

namespace convolution {

// Gradient to live values: products of input and output gradient, summed over pixels and images.
struct Weights {
  Image in, gradient;
  int height, width, stride;      // of the kernel
  int64_t shift;                  // how far into the border of `in` the first window starts
  const int32_t *start, *source;  // plastic connections, row by row
  const int32_t* rows;            // rows with a plastic connection or bias
  int64_t row_count;
  float* part;                    // (slab, connection, weight): each slab's own sums
  float* bias_part;               // (slab, row); null where no bias learns
  int64_t connections;
};

constexpr int64_t STRIP = 8;  // rows of the output at a time: what they read stays in the cache

// One output's products with the nine pixels of its window.
static inline void add_nine(Reg g, const float* x, int64_t line, Reg (&sum)[9]) {
  for (int r = 0; r < 3; r++)
    for (int s = 0; s < 3; s++)
      sum[3 * r + s] = fma(g, load<Reg>(x + (r * line + s) * LANES), sum[3 * r + s]);
}

// A 3 x 3 kernel, stride 1, over `high` x `wide` outputs: nine sums in registers, two outputs at a
// time, since their windows share six of their pixels in each line.
static inline void add_3x3(const float* x, const float* g, int64_t line, int64_t gradient_line,
                           int64_t high, int64_t wide, float* to) {
  Reg sum[9];
  for (Reg& each : sum) each = broadcast<Reg>(0.0f);
  for (int64_t y = 0; y < high; y++) {
    const float* x0 = x + y * line * LANES;
    const float* g0 = g + y * gradient_line * LANES;
    int64_t t = 0;
    for (; t + 2 <= wide; t += 2) {
      for (int part = 0; part < LANES; part += WIDTH) {
        // See registers.hpp: without it compilers carry loads over and push sums out of registers.
        NISPA_KEEP_LOADS();
        const float *left = g0 + t * LANES + part, *top = x0 + t * LANES + part;
        const Reg a = load<Reg>(left), b = load<Reg>(left + LANES);
        for (int r = 0; r < 3; r++) {
          const float* from = top + r * line * LANES;
          const Reg p0 = load<Reg>(from), p1 = load<Reg>(from + LANES);
          const Reg p2 = load<Reg>(from + 2 * LANES), p3 = load<Reg>(from + 3 * LANES);
          sum[3 * r] = fma(b, p1, fma(a, p0, sum[3 * r]));
          sum[3 * r + 1] = fma(b, p2, fma(a, p1, sum[3 * r + 1]));
          sum[3 * r + 2] = fma(b, p3, fma(a, p2, sum[3 * r + 2]));
        }
      }
    }
    if (t < wide)
      for (int part = 0; part < LANES; part += WIDTH)
        add_nine(load<Reg>(g0 + t * LANES + part), x0 + t * LANES + part, line, sum);
  }
  // Nine sums over lanes, added to those of the strips before: twice four at once, then the last.
  add_sums(to, sum[0], sum[1], sum[2], sum[3]);
  add_sums(to + 4, sum[4], sum[5], sum[6], sum[7]);
  to[8] += ::sum(sum[8]);
}

// Gradient to weights: a 3 x 3 kernel with any stride, nine sums at a time.
static inline void add_3x3_strided(const float* x, const float* g, const Weights& job,
                                   int64_t high, float* to) {
  const int64_t line = job.in.line(), step = job.stride;
  Reg sum[9];
  for (Reg& each : sum) each = broadcast<Reg>(0.0f);
  for (int64_t y = 0; y < high; y++)
    for (int64_t t = 0; t < job.gradient.width; t++)
      for (int part = 0; part < LANES; part += WIDTH) {
        NISPA_KEEP_LOADS();
        add_nine(load<Reg>(g + (y * job.gradient.line() + t) * LANES + part),
                 x + (y * step * line + t * step) * LANES + part, line, sum);
      }
  add_sums(to, sum[0], sum[1], sum[2], sum[3]);
  add_sums(to + 4, sum[4], sum[5], sum[6], sum[7]);
  to[8] += ::sum(sum[8]);
}

// C kernels of one pixel that one row has, so that its gradient is loaded once for all of them. Two
// sums each by turns.
template <int C>
static inline void add_1x1(const float* const* x, const float* g, const Weights& job, int64_t high,
                           Reg (&total)[C]) {
  const int64_t line = job.in.line(), step = job.stride, wide = job.gradient.width;
  Reg sum[C][2];
  for (auto& each : sum) each[0] = each[1] = broadcast<Reg>(0.0f);
  for (int64_t y = 0; y < high; y++) {
    const float* g0 = g + y * job.gradient.line() * LANES;
    int64_t t = 0, at = y * step * line * LANES;
    for (; t + 2 <= wide; t += 2, at += 2 * step * LANES) {
      NISPA_KEEP_LOADS();
      const Vec a = load(g0 + t * LANES), b = load(g0 + (t + 1) * LANES);
      for (int c = 0; c < C; c++) {
        sum[c][0] = add_products(a, x[c] + at, sum[c][0]);
        sum[c][1] = add_products(b, x[c] + at + step * LANES, sum[c][1]);
      }
    }
    if (t < wide)
      for (int c = 0; c < C; c++)
        sum[c][0] = add_products(load(g0 + t * LANES), x[c] + at, sum[c][0]);
  }
  for (int c = 0; c < C; c++) total[c] = add(sum[c][0], sum[c][1]);
}

// All kernels of one pixel of a row.
static inline void add_row_1x1(const float* x, const float* g, const Weights& job, int64_t high,
                               int32_t row, float* part) {
  const int64_t plane = job.in.plane();
  int32_t k = job.start[row];
  for (; k + 4 <= job.start[row + 1]; k += 4) {
    const float* from[4];
    for (int c = 0; c < 4; c++) from[c] = x + job.source[k + c] * plane * LANES;
    Reg total[4];
    add_1x1<4>(from, g, job, high, total);
    add_sums(part + k, total[0], total[1], total[2], total[3]);
  }
  for (; k < job.start[row + 1]; k++) {
    const float* from[1] = {x + job.source[k] * plane * LANES};
    Reg total[1];
    add_1x1<1>(from, g, job, high, total);
    part[k] += ::sum(total[0]);
  }
}

// The same for any kernel and stride. Two sums by turns, so that no addition waits for the one
// before.
static inline void add_any(const float* x, const float* g, const Weights& job, int64_t high,
                           float* to) {
  const int64_t line = job.in.line(), step = job.stride;
  for (int r = 0; r < job.height; r++)
    for (int s = 0; s < job.width; s++) {
      Reg total[2] = {broadcast<Reg>(0.0f), broadcast<Reg>(0.0f)};
      for (int64_t y = 0; y < high; y++)
        for (int64_t t = 0; t < job.gradient.width; t++)
          total[t & 1] = add_products(load(g + (y * job.gradient.line() + t) * LANES),
                                      x + ((y * step + r) * line + t * step + s) * LANES,
                                      total[t & 1]);
      *to++ += ::sum(add(total[0], total[1]));
    }
}

// A row's gradient summed over `high` lines, for its bias.
static inline float sum_of(const float* g, const Weights& job, int64_t high) {
  Vec total[2] = {broadcast(0.0f), broadcast(0.0f)};
  for (int64_t y = 0; y < high; y++)
    for (int64_t t = 0; t < job.gradient.width; t++)
      total[t & 1] = add(total[t & 1], load(g + (y * job.gradient.line() + t) * LANES));
  return ::sum(add_parts(add(total[0], total[1]), broadcast<Reg>(0.0f)));
}

// Each slab writes sums of its own; `chain.cpp` adds them in order. So they do not depend on which
// thread computes which slab.
static void gradient(const Weights& job, int64_t slabs) {
  const bool nine = job.height == 3 && job.width == 3, fast = nine && job.stride == 1;
  const bool pixel = job.height == 1 && job.width == 1;
  const int64_t weights = int64_t{job.height} * job.width;
  // With fewer slabs than threads the rows are shared out, too. A sum belongs to one slab and one
  // row, so no two threads write to the same place.
  const int64_t groups = std::min<int64_t>(job.row_count, slabs >= threads::wanted ? 1 : 16);
  const int64_t work = slabs * job.connections * weights * job.gradient.height * job.gradient.width;
  threads::parallel(slabs * groups, work, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t slab = unit / groups, group = unit % groups;
      const int64_t first = job.row_count * group / groups;
      const int64_t last = job.row_count * (group + 1) / groups;
      const float* in = job.in.data + slab * job.in.slab();
      const float* out = job.gradient.data + slab * job.gradient.slab();
      float* part = job.part + slab * job.connections * weights;
      float* bias_part = job.bias_part ? job.bias_part + slab * job.gradient.channels : nullptr;
      for (int64_t j = first; j < last; j++) {
        const int32_t row = job.rows[j];
        // Cleared by the thread that will add to it, and so already in its cache.
        std::fill(part + job.start[row] * weights, part + job.start[row + 1] * weights, 0.0f);
        if (bias_part) bias_part[row] = 0.0f;
      }
      // Strip by strip, and in each all connections: the pixels stay cached, the sums wait in
      // `part`.
      for (int64_t y = 0; y < job.gradient.height; y += STRIP) {
        const int64_t high = std::min(STRIP, job.gradient.height - y);
        const int64_t above = job.shift + y * job.stride;
        const float* x = in + (above * job.in.line() + job.shift) * LANES;
        for (int64_t j = first; j < last; j++) {
          const int32_t row = job.rows[j];
          const float* g = out + (job.gradient.inside(row) + y * job.gradient.line()) * LANES;
          // The bias is done beside the weights, while its row's gradient is in the cache.
          if (bias_part) bias_part[row] += sum_of(g, job, high);
          if (pixel) {
            add_row_1x1(x, g, job, high, row, part);
            continue;
          }
          for (int32_t k = job.start[row]; k < job.start[row + 1]; k++) {
            const float* from = x + job.source[k] * job.in.plane() * LANES;
            float* to = part + k * weights;
            if (fast)
              add_3x3(from, g, job.in.line(), job.gradient.line(), high, job.gradient.width, to);
            else if (nine)
              add_3x3_strided(from, g, job, high, to);
            else
              add_any(from, g, job, high, to);
          }
        }
      }
    }
  });
}

}  // namespace convolution
