// What kernels work on: images side by side in slabs, and rows of live connections.
#pragma once

#include <cstdint>

#include "vector.hpp"

// Activations of LANES images: (slab, channel, row, column, lane), with a zero border of `pad`.
// Features of a Linear layer are channels of one pixel, or, after a flatten, pixels in order.
// The lane is innermost, so a load takes the same pixel of several images: no kernel shuffles, and
// no image's sums depend on the others of its batch.
struct Image {
  float* data;
  int64_t channels, height, width, pad;
  // These count vectors, but slab() counts floats: slabs are stepped over with plain pointers.
  int64_t line() const { return width + 2 * pad; }
  int64_t plane() const { return (height + 2 * pad) * line(); }
  int64_t slab() const { return channels * plane() * LANES; }
  // First pixel inside the border.
  int64_t inside(int64_t channel) const { return channel * plane() + pad * line() + pad; }
};

// Live connections row by row: those of row r are start[r] to start[r + 1]. `source` is the channel
// a convolution reads, or the place (in vectors) of the feature a Linear layer reads.
struct Rows {
  const int32_t* start;
  const int32_t* source;
  const float* value;
};

// Connections of some rows, which are listed in rising order.
// Rows between those listed count as well, so this may be too many. It only decides how many
// threads are worth while.
static inline int64_t connections(const Rows& list, const int32_t* rows, int64_t count) {
  return count && list.start ? list.start[rows[count - 1] + 1] - list.start[rows[0]] : 0;
}

// A template argument of every pass, so that no inner loop tests for it.
enum class Finish { plain, relu, masked };

// The last thing done to a sum before it is stored: nothing, ReLU, or, for the gradient of a ReLU
// written over the ReLU's own output, zero where that output is zero.
template <Finish F, class V>
static inline void finish(float* to, V sum) {
  if (F == Finish::relu) sum = relu(sum);
  // `to` still holds the output of the ReLU: the activations that backward overwrites are its mask.
  if (F == Finish::masked) sum = where_positive(load<V>(to), sum);
  store(to, sum);
}

// Four neighbours of a pool.
template <class V>
struct Four {
  V a, b, c, d;
  V largest() const { return larger(larger(a, b), larger(c, d)); }
  // The number of the first one that is the largest, 0 to 3.
  V which(V most) const {
    const V zero = broadcast<V>(0.0f), one = broadcast<V>(1.0f);
    // The first of equal ones, as PyTorch chooses; after a ReLU equal zeros are common.
    const V later = where_same(c, most, broadcast<V>(2.0f), broadcast<V>(3.0f));
    return where_same(a, most, zero, where_same(b, most, one, later));
  }
};
