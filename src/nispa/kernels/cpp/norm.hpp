// What follows a convolution in residual networks: batch statistics, a norm by channels, a sum, ReLU.
//
// Everything is done channel by channel and slab by slab, so that it runs on a slab that is still in
// the cache. Sums over slabs are added in their order: no result depends on the threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "layout.hpp"
#include "threads.hpp"

namespace norm {

// The part of an image from a slab on.
static inline Image from_slab(const Image& image, int64_t slab) {
  Image part = image;
  if (part.data) part.data += slab * image.slab();
  return part;
}

// How many lanes of a slab hold images; those beyond the batch repeat its last one.
static inline int64_t lanes_of(int64_t slab, int64_t count) {
  const int64_t left = count - slab * LANES;
  return left < LANES ? left : LANES;
}

// Calls work(number, place, y, x) for each pixel of a channel. The number, 0 to 3, goes round, so
// that whoever adds up has four sums by turns, and no addition waits for the one before.
template <class Work>
static inline void each_of_four(const Image& image, int64_t channel, Work work) {
  int64_t line = image.inside(channel);
  for (int64_t y = 0; y < image.height; y++, line += image.line()) {
    int64_t x = 0;
    for (; x + 4 <= image.width; x += 4) {
      work(0, line + x, y, x);
      work(1, line + x + 1, y, x + 1);
      work(2, line + x + 2, y, x + 2);
      work(3, line + x + 3, y, x + 3);
    }
    for (; x < image.width; x++) work(0, line + x, y, x);
  }
}

struct FourSums {
  Vec sum[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  Vec total() const { return add(add(sum[0], sum[1]), add(sum[2], sum[3])); }
};

static inline double sum_lanes(Vec sum, int64_t left) {
  float lane[LANES];
  store(lane, sum);
  double total = 0;
  for (int64_t i = 0; i < left; i++) total += lane[i];
  return total;
}

// Of each channel of a slab the mean, and the sum of squared distances from it.
static void slab_moments(const Image& slab, int64_t left, int64_t channel, double* to) {
  const double pixels = static_cast<double>(left * slab.height * slab.width);
  const float* data = slab.data;
  FourSums values, distances;
  each_of_four(slab, channel, [&](int i, int64_t at, int64_t, int64_t) {
    values.sum[i] = add(values.sum[i], load(data + at * LANES));
  });
  to[0] = sum_lanes(values.total(), left) / pixels;
  const Vec away = broadcast(-static_cast<float>(to[0]));
  const double off = to[0] - static_cast<double>(static_cast<float>(to[0]));
  each_of_four(slab, channel, [&](int i, int64_t at, int64_t, int64_t) {
    const Vec distance = add(load(data + at * LANES), away);
    distances.sum[i] = fma(distance, distance, distances.sum[i]);
  });
  const double squares = sum_lanes(distances.total(), left);
  to[1] = squares - pixels * off * off;  // the mean was rounded
}

// Mean and sum of squared distances over slabs, from those of each (Chan, Golub and LeVeque, 1979).
static void merge_moments(const double* parts, int64_t channels, int64_t pixels, int64_t count,
                          double* mean, double* squares) {
  for (int64_t channel = 0; channel < channels; channel++) {
    double n = 0, centre = 0, total = 0;
    for (int64_t slab = 0; slab * LANES < count; slab++) {
      const double* part = parts + 2 * (slab * channels + channel);
      const double more = static_cast<double>(lanes_of(slab, count) * pixels);
      const double away = part[0] - centre;
      total += part[1] + away * away * (n * more / (n + more));
      centre += away * (more / (n + more));
      n += more;
    }
    mean[channel] = centre;
    squares[channel] = total;
  }
}

// A norm by channels, as it is for one batch.
struct Statistics {
  const double *mean, *squares;        // of this batch; null: running ones are used
  const float *running_mean, *running_square;
  const uint8_t* held;                 // channels that use the running ones all the same; may be null
  const float *weight, *bias;          // learned; may be null
  float* to;                           // six for each channel: see below
  int64_t channels, count;             // numbers of a channel
  double epsilon, share;               // of this batch in the running statistics
};

// Writes mean, 1 / deviation, scale and shift of each channel, and the new running statistics. A
// channel that is held gets what it gets in evaluation, bit for bit.
static void statistics(const Statistics& job) {
  const double n = static_cast<double>(job.count);
  const float share = static_cast<float>(job.share), epsilon = static_cast<float>(job.epsilon);
  float *mean = job.to, *inverse = mean + job.channels, *scale = inverse + job.channels;
  float *shift = scale + job.channels, *running_mean = shift + job.channels;
  float* running_square = running_mean + job.channels;
  for (int64_t c = 0; c < job.channels; c++) {
    float centre = job.running_mean[c], square = job.running_square[c];
    running_mean[c] = centre;
    running_square[c] = square;
    if (job.mean && !(job.held && job.held[c])) {
      centre = static_cast<float>(job.mean[c]);
      square = static_cast<float>(job.squares[c] / n);
      const float unbiased = static_cast<float>(job.squares[c] / (n - 1));
      running_mean[c] += share * (centre - running_mean[c]);
      running_square[c] += share * (unbiased - running_square[c]);
    }
    mean[c] = centre;
    inverse[c] = 1.0f / std::sqrt(square + epsilon);
    scale[c] = job.weight ? job.weight[c] * inverse[c] : inverse[c];
    shift[c] = (job.bias ? job.bias[c] : 0.0f) - centre * scale[c];
  }
}

// result = relu(raw * scale + shift + skip), where `skip` and the ReLU may be missing.
struct Affine {
  Image raw, skip, result;
  const float *scale, *shift;  // one a channel
  int64_t relu;
};

template <bool SKIP, bool RELU>
static void scale_channel(const Affine& job, int64_t channel) {
  const Vec scale = broadcast(job.scale[channel]), shift = broadcast(job.shift[channel]);
  for (int64_t y = 0; y < job.raw.height; y++) {
    const float* from = job.raw.data + (job.raw.inside(channel) + y * job.raw.line()) * LANES;
    float* to = job.result.data + (job.result.inside(channel) + y * job.result.line()) * LANES;
    const float* more =
        SKIP ? job.skip.data + (job.skip.inside(channel) + y * job.skip.line()) * LANES : nullptr;
    for (int64_t x = 0; x < job.raw.width; x++) {
      Vec value = fma(load(from + x * LANES), scale, shift);
      if (SKIP) value = add(value, load(more + x * LANES));
      if (RELU) value = relu(value);
      store(to + x * LANES, value);
    }
  }
}

static void scale(const Affine& job, int64_t slabs) {
  const int64_t channels = job.raw.channels;
  const int64_t work = slabs * channels * job.raw.height * job.raw.width;
  threads::parallel(slabs * channels, work, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      Affine part = job;
      const int64_t slab = unit / channels, channel = unit % channels;
      part.raw = from_slab(job.raw, slab);
      part.skip = from_slab(job.skip, slab);
      part.result = from_slab(job.result, slab);
      if (job.skip.data) job.relu ? scale_channel<true, true>(part, channel)
                                  : scale_channel<true, false>(part, channel);
      else job.relu ? scale_channel<false, true>(part, channel)
                    : scale_channel<false, false>(part, channel);
    }
  });
}

// Backward. The gradient of the result passes the ReLU where the result is positive: as it was
// stored, or, where nothing was added before the ReLU, as it is computed again from `raw`.
enum class Mask { none, stored, again };

struct Back {
  Image gradient, raw, result;      // `result` has no data where it is computed again
  Image skip;                       // where the gradient of what was added goes, if anywhere
  Image room;                       // where the gradient of `raw` goes
  Image into;                       // the gradient of the convolution's input, if it is needed
  int64_t relu;
  const float *scale, *shift, *mean;
  const float *slope, *offset;      // gradient of raw = scale g + slope (raw - mean) + offset
  const float* inverse;             // 1 / deviation
  const uint8_t* held;              // channels whose statistics are not this batch's; may be null
  int64_t learns, count;            // whether any are this batch's; numbers of a channel
  int64_t parts;                    // slabs of `room`, one a thread; 0: as many as the batch has
};

template <Mask M>
static inline Vec passed(Vec g, Vec raw, const float* result, Vec scale, Vec shift) {
  if (M == Mask::stored) return where_positive(load(result), g);
  if (M == Mask::again) return where_positive(fma(raw, scale, shift), g);
  return g;
}

// The sums, over the pixels of a channel of a slab, of g and of g (raw - mean).
template <Mask M>
static void slab_sums(const Back& job, int64_t channel, double* to) {
  const Vec scale = broadcast(job.scale[channel]), shift = broadcast(job.shift[channel]);
  const Vec away = broadcast(-job.mean[channel]);
  FourSums totals, products;
  const int64_t raw_first = job.raw.inside(channel), first = job.result.inside(channel);
  each_of_four(job.gradient, channel, [&](int i, int64_t at, int64_t y, int64_t x) {
    const Vec raw = load(job.raw.data + (raw_first + y * job.raw.line() + x) * LANES);
    const float* shown = nullptr;
    if (M == Mask::stored) shown = job.result.data + (first + y * job.result.line() + x) * LANES;
    const Vec g = passed<M>(load(job.gradient.data + at * LANES), raw, shown, scale, shift);
    products.sum[i] = fma(g, add(raw, away), products.sum[i]);
    totals.sum[i] = add(totals.sum[i], g);
  });
  // Gradients are zero in lanes without an image.
  to[0] = sum_lanes(totals.total(), LANES);
  to[1] = sum_lanes(products.total(), LANES);
}

template <Mask M, bool SKIP>
static void raw_gradient(const Back& job, int64_t left, int64_t channel) {
  const Vec scale = broadcast(job.scale[channel]), shift = broadcast(job.shift[channel]);
  const Vec away = broadcast(-job.mean[channel]);
  const Vec slope = broadcast(job.slope[channel]), offset = broadcast(job.offset[channel]);
  for (int64_t y = 0; y < job.raw.height; y++) {
    const auto line = [&](const Image& image) {
      return image.data + (image.inside(channel) + y * image.line()) * LANES;
    };
    const float *from = line(job.gradient), *raws = line(job.raw);
    const float* shown = M == Mask::stored ? line(job.result) : nullptr;
    float *to = line(job.room), *skip = SKIP ? line(job.skip) : nullptr;
    for (int64_t x = 0; x < job.raw.width; x++) {
      const Vec raw = load(raws + x * LANES);
      const float* result = M == Mask::stored ? shown + x * LANES : nullptr;
      const Vec g = passed<M>(load(from + x * LANES), raw, result, scale, shift);
      if (SKIP) store(skip + x * LANES, g);
      store(to + x * LANES, fma(g, scale, fma(add(raw, away), slope, offset)));
      for (int64_t i = left; i < LANES; i++) to[x * LANES + i] = 0.0f;
    }
  }
}

// Calls work with the way in which the gradient passes the ReLU, as a constant.
template <class Work>
static inline void with_mask(const Back& job, Work work) {
  if (!job.relu) work(std::integral_constant<Mask, Mask::none>{});
  else if (job.result.data) work(std::integral_constant<Mask, Mask::stored>{});
  else work(std::integral_constant<Mask, Mask::again>{});
}

// The images of a job from a slab on; `room` has slabs of its own.
static inline Back part_of(const Back& job, int64_t slab, int64_t room) {
  Back part = job;
  part.gradient = from_slab(job.gradient, slab);
  part.raw = from_slab(job.raw, slab);
  part.result = from_slab(job.result, slab);
  part.skip = from_slab(job.skip, slab);
  part.into = from_slab(job.into, slab);
  part.room = from_slab(job.room, room);
  return part;
}

// From the sums of each channel over the batch, four numbers each: gradients of the learned scale
// and shift, then slope and offset. `parts` is room.
static void sums(const Back& job, int64_t slabs, double* parts, float* to) {
  const int64_t channels = job.raw.channels;
  const int64_t work = slabs * channels * job.raw.height * job.raw.width;
  threads::parallel(slabs * channels, work, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++)
      with_mask(job, [&](auto mask) {
        slab_sums<decltype(mask)::value>(part_of(job, unit / channels, 0), unit % channels,
                                         parts + 2 * unit);
      });
  });
  for (int64_t c = 0; c < channels; c++) {
    double total = 0, products = 0;
    for (int64_t slab = 0; slab < slabs; slab++) {
      total += parts[2 * (slab * channels + c)];
      products += parts[2 * (slab * channels + c) + 1];
    }
    const double inverse = job.inverse[c];
    const bool own = job.learns && !(job.held && job.held[c]);
    const double each = own ? job.scale[c] / static_cast<double>(job.count) : 0.0;
    to[c] = static_cast<float>(products * inverse);
    to[channels + c] = static_cast<float>(total);
    to[2 * channels + c] = static_cast<float>(-each * inverse * inverse * products);
    to[3 * channels + c] = static_cast<float>(-each * total);
  }
}

// The gradient of the raw values of some slabs, of which the first is number `slab` of the batch.
static void raw_gradients(const Back& job, int64_t slab, int64_t slabs, int64_t count) {
  const int64_t channels = job.raw.channels;
  const int64_t work = slabs * channels * job.raw.height * job.raw.width;
  threads::parallel(slabs * channels, work, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t number = unit / channels, left = lanes_of(slab + number, count);
      const Back part = part_of(job, number, number);
      with_mask(job, [&](auto mask) {
        constexpr Mask M = decltype(mask)::value;
        job.skip.data ? raw_gradient<M, true>(part, left, unit % channels)
                      : raw_gradient<M, false>(part, left, unit % channels);
      });
    }
  });
}

}  // namespace norm
