// A chain of layers over live connections, forward and backward, layer by layer over slabs.
//
// Activations of a batch lie in one buffer per layer. Backward writes gradients over them: a
// layer's input is needed last for its weight gradient, and just after that its own gradient takes
// its place. Nothing is computed for rows or inputs that are not listed.
//
// Every field of the structures is 8 bytes wide, so that Python fills them as rows of integers.

#include <algorithm>
#include <cstring>

#include "convolution.hpp"
#include "layout.hpp"
#include "linear.hpp"
#include "norm.hpp"
#include "strided.hpp"
#include "threads.hpp"
#include "weights.hpp"

#if defined(_WIN32)
#define NISPA_EXPORT extern "C" __declspec(dllexport)
#else
#define NISPA_EXPORT extern "C" __attribute__((visibility("default")))
#endif

static_assert(sizeof(void*) == 8, "pointers must be 8 bytes wide");

enum Kind : int64_t { CONVOLUTION = 0, LINEAR = 1, POOL = 2 };

// Biases of some units; `unit` is the tensor of positions itself.
struct Biases {
  const int64_t* unit;
  const float* value;
  int64_t count;
};

// Connections of both kinds in one order. Values are copied in before use.
struct Merged {
  Rows rows;
  const int32_t* origin;  // place among plastic values, or -1 - place among frozen ones
  int64_t count;
};

// One layer. Lists of rows and inputs are those of `structure.py`: nothing is computed for others.
// Python writes it (`native.py`): a field goes to the same place in both, or addresses are mixed
// up. `nispa_fields` catches a forgotten one, but not two in another order.
struct Layer {
  int64_t kind, relu, input_relu;           // whether its output, and its input, passed a ReLU
  int64_t height, width, stride, padding;   // of the kernel
  int64_t pools;                            // whether a pool follows, of the same rows
  Image in, out;
  Rows frozen, plastic;                     // start is null where there is none
  Biases frozen_bias, plastic_bias;
  float* bias;                              // room for one a unit
  const int32_t *rows, *place;              // what forward computes, and where it puts it
  int64_t row_count;
  Merged mixed;                             // rows with frozen and plastic connections, merged, so
  const int32_t *mixed_rows, *mixed_place;  // that freezing changes no sum
  int64_t mixed_row_count;
  Merged back;                              // connections by source
  const int32_t *into, *into_place;         // inputs that need a gradient
  int64_t into_count;
  const int32_t* learning;                  // rows with plastic values
  int64_t learning_count, plastic_count;
  float *weight_gradient, *bias_gradient;   // one a plastic value
  float *weight_part, *bias_part;           // room: for convolutions one of each a slab
};

// Biases in order of their units, for the loops to read.
static void gather_bias(const Layer& layer) {
  // Two tensors become one array, so that loops find a row's bias by its number.
  for (const Biases* biases : {&layer.frozen_bias, &layer.plastic_bias})
    for (int64_t i = 0; i < biases->count; i++) layer.bias[biases->unit[i]] = biases->value[i];
}

// Rows of features, one an image, into channels of a buffer. Lanes without an image repeat the last
// one: zeros there could meet an infinite value, and become no number. Gradients there are zero.
// Channel number c of the list takes its pixels from `from + offset + c * pixels` of each row.
struct Source {
  const int32_t* channels;  // null: all, in order
  int64_t channel_count;
  const float* from;
  int64_t stride;           // floats from one row to the next
  const int64_t* index;     // the row of each image; null: one after the other
  int64_t count;            // images
  bool gradient;
};

// Calls work(x, place) for pixels x of a row of features and their places, in vectors.
template <class Work>
static inline void each_pixel(const Image& image, const int32_t* channels, int64_t first,
                              int64_t last, Work work) {
  int64_t x = 0;
  for (int64_t number = first; number < last; number++) {
    int64_t line = image.inside(channels ? channels[number] : number);
    for (int64_t y = 0; y < image.height; y++, line += image.line())
      for (int64_t place = line; place < line + image.width; place++) work(x++, place);
  }
}

template <bool MASKED>
static void fill(const Image& to, const Source& source) {
  constexpr int64_t GROUP = 32;  // channels at a time: rows are found once for all of them
  const int64_t pixels = to.height * to.width, channels = source.channel_count;
  const int64_t slabs = (source.count + LANES - 1) / LANES;
  const int64_t groups = (channels + GROUP - 1) / GROUP;
  const int64_t work = slabs * channels * pixels * LANES;
  threads::parallel(slabs * groups, work, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t slab = unit / groups, first = unit % groups * GROUP;
      const int64_t last = std::min(first + GROUP, channels), size = (last - first) * pixels;
      const int64_t left = std::min<int64_t>(LANES, source.count - slab * LANES);
      const int64_t filled = source.gradient ? left : LANES;
      // One pointer for each image of the slab, to the first pixel of the group.
      const float* lane[LANES];
      for (int64_t i = 0; i < LANES; i++) {
        const int64_t image = slab * LANES + std::min(i, left - 1);
        lane[i] = source.from + (source.index ? source.index[image] : image) * source.stride +
                  first * pixels;
      }
      float* out = to.data + slab * to.slab();
      // LANES pixels of LANES images are turned at a time: read along rows, written along lanes.
      float block[LANES * LANES] = {};  // lanes that are not filled stay zero
      each_pixel(to, source.channels, first, last, [&](int64_t x, int64_t place) {
        // Every LANES pixels a new block; each pixel then takes one of its vectors.
        if (x % LANES == 0) {
          const int64_t wide = std::min<int64_t>(LANES, size - x);
          if (wide == LANES && filled == LANES) transpose(lane, x, block);
          else
            for (int64_t i = 0; i < filled; i++)
              for (int64_t t = 0; t < wide; t++) block[t * LANES + i] = lane[i][x + t];
        }
        finish<MASKED ? Finish::masked : Finish::plain>(out + place * LANES,
                                                        load(block + x % LANES * LANES));
      });
    }
  });
}

// Sums of each channel over its pixels and the first `count` images.
static void sums(const Image& from, int64_t count, double* to) {
  const int64_t work = count * from.channels * from.height * from.width / LANES;
  threads::parallel(from.channels, work, [&](int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; channel++) {
      // In double, since small activations would vanish in a float's sum over a data set. One
      // thread adds up a channel, so its sum has one order.
      double total = 0;
      for (int64_t slab = 0; slab * LANES < count; slab++) {
        Vec part = broadcast(0.0f);
        for (int64_t y = 0; y < from.height; y++) {
          const float* at = from.data + slab * from.slab() +
                            (from.inside(channel) + y * from.line()) * LANES;
          for (int64_t x = 0; x < from.width; x++) part = add(part, load(at + x * LANES));
        }
        float lane[LANES];
        store(lane, part);
        // Lanes beyond the last image hold copies of it, which must not count.
        for (int64_t i = 0; i < LANES && slab * LANES + i < count; i++) total += lane[i];
      }
      to[channel] += total;
    }
  });
}

// The reverse of fill: a buffer's pixels, without border, into rows of features.
static void empty(const Image& from, float* to, int64_t count) {
  const int64_t size = from.channels * from.height * from.width;
  const int64_t slabs = (count + LANES - 1) / LANES;
  threads::parallel(slabs, count * size, [&](int64_t begin, int64_t end) {
    for (int64_t slab = begin; slab < end; slab++) {
      const float *in = from.data + slab * from.slab(), *lane[LANES];
      const int64_t left = std::min<int64_t>(LANES, count - slab * LANES);
      each_pixel(from, nullptr, 0, from.channels, [&](int64_t x, int64_t place) {
        lane[x % LANES] = in + place * LANES;
        const int64_t wide = x % LANES + 1;
        if (wide < LANES && x + 1 < size) return;
        // A last, narrower block: the rest of the turned block is never copied out.
        for (int64_t t = wide; t < LANES; t++) lane[t] = lane[0];
        float block[LANES * LANES];
        transpose(lane, 0, block);
        float* out = to + slab * LANES * size + x + 1 - wide;
        for (int64_t i = 0; i < left; i++)
          std::copy(block + i * LANES, block + i * LANES + wide, out + i * size);
      });
    }
  });
}

namespace pool {  // 2 x 2, stride 2

static void run(const Layer& layer, int64_t slabs) {
  const Image &in = layer.in, &out = layer.out;
  const int64_t units = slabs * layer.row_count;
  threads::parallel(units, units * in.height * in.width, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t slab = unit / layer.row_count, channel = layer.rows[unit % layer.row_count];
      for (int64_t y = 0; y < out.height; y++) {
        const float* from =
            in.data + slab * in.slab() + (in.inside(channel) + 2 * y * in.line()) * LANES;
        float* to = out.data + slab * out.slab() + (out.inside(channel) + y * out.line()) * LANES;
        for (int64_t x = 0; x < out.width; x++, from += 2 * LANES, to += LANES) {
          const float* below = from + in.line() * LANES;
          const Four<Vec> four{load(from), load(from + LANES), load(below), load(below + LANES)};
          store(to, four.largest());
        }
      }
    }
  });
}

// The gradient goes to the first of the largest, as in PyTorch. With CHOSEN the convolution before
// has found which that is.
template <bool CHOSEN>
static void gradient(const Layer& layer, int64_t slabs) {
  const Image &in = layer.in, &out = layer.out;
  const Vec zero = broadcast(0.0f);
  const int64_t units = slabs * layer.into_count;
  threads::parallel(units, units * in.height * in.width, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t slab = unit / layer.into_count, channel = layer.into[unit % layer.into_count];
      float* first = in.data + slab * in.slab() + in.inside(channel) * LANES;
      for (int64_t y = 0; y < out.height; y++) {
        float* to = first + 2 * y * in.line() * LANES;
        const float* from =
            out.data + slab * out.slab() + (out.inside(channel) + y * out.line()) * LANES;
        for (int64_t x = 0; x < out.width; x++, to += 2 * LANES, from += LANES) {
          float* below = to + in.line() * LANES;
          const Vec g = load(from);
          Vec which = load(to);
          // Otherwise `to` holds the number already: `store_largest` left it there.
          if constexpr (!CHOSEN) {
            const Four<Vec> four{which, load(to + LANES), load(below), load(below + LANES)};
            which = four.which(four.largest());
          }
          store(to, where_same(which, zero, g, zero));
          store(to + LANES, where_same(which, broadcast(1.0f), g, zero));
          store(below, where_same(which, broadcast(2.0f), g, zero));
          store(below + LANES, where_same(which, broadcast(3.0f), g, zero));
        }
        // What no window holds gets zero. It must be written: activations lie there.
        for (int64_t x = 2 * out.width; x < in.width; x++, to += LANES) {
          store(to, zero);
          store(to + in.line() * LANES, zero);
        }
      }
      for (int64_t y = 2 * out.height; y < in.height; y++)
        for (int64_t x = 0; x < in.width; x++) store(first + (y * in.line() + x) * LANES, zero);
    }
  });
}

}  // namespace pool

// Copies values into a merged order; with `flip`, each kernel is turned around.
static void merge_values(const Layer& layer, const Merged& merged, bool flip) {
  // The order was sorted once for the pattern; only values are fetched, as plastic ones change with
  // each step.
  const int64_t weights = layer.height * layer.width;
  float* to = const_cast<float*>(merged.rows.value);
  threads::parallel(merged.count, merged.count * weights, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) {
      const int32_t origin = merged.origin[k];
      const float* from = origin >= 0 ? layer.plastic.value + origin * weights
                                      : layer.frozen.value + (-1 - int64_t{origin}) * weights;
      for (int64_t i = 0; i < weights; i++) to[k * weights + i] = from[flip ? weights - 1 - i : i];
    }
  });
}

// Some rows of a layer: the sum of two lists of connections, of which either may be empty.
static void forward_rows(const Layer& layer, const Rows& first, const Rows& second,
                         const int32_t* rows, const int32_t* place, int64_t count,
                         const Image& pooled, int64_t slabs) {
  if (layer.kind == CONVOLUTION) {
    // The border may be wider than this padding, as the layer before needs it for its gradient.
    const int64_t shift = layer.in.pad - layer.padding;
    const convolution::Pass pass{layer.in, layer.out, static_cast<int>(layer.height),
                                 static_cast<int>(layer.width), static_cast<int>(layer.stride),
                                 shift, shift, {first, second}, rows, count, layer.bias, pooled};
    return layer.relu ? convolution::run<Finish::relu>(pass, slabs)
                      : convolution::run<Finish::plain>(pass, slabs);
  }
  const linear::Pass pass{layer.in.data, layer.out.data, layer.in.slab(), layer.out.slab(),
                          {first, second}, rows, place, count, layer.bias};
  layer.relu ? linear::run<Finish::relu>(pass, slabs) : linear::run<Finish::plain>(pass, slabs);
}

// With `pooled`, a convolution gives the next layer's output instead of its own.
static void forward_layer(const Layer& layer, const Image& pooled, int64_t slabs) {
  if (layer.kind == POOL) return pool::run(layer, slabs);
  // Pure and mixed rows are disjoint, so it does not matter which come first.
  gather_bias(layer);
  forward_rows(layer, layer.frozen, layer.plastic, layer.rows, layer.place, layer.row_count, pooled,
               slabs);
  if (!layer.mixed_row_count) return;
  merge_values(layer, layer.mixed, false);
  forward_rows(layer, layer.mixed.rows, {}, layer.mixed_rows, layer.mixed_place,
               layer.mixed_row_count, pooled, slabs);
}

// Whether a layer and the pool after it are computed in one.
// Backward asks as well: it decides whether the buffer holds outputs, or numbers of the largest.
static bool pools_at_once(const Layer& layer) {
  return layer.pools && convolution::small(layer.height, layer.width, layer.stride);
}

// Adds the parts in order, and picks the units whose bias is plastic.
static void gather_bias_gradient(const Layer& layer, int64_t parts, bool fresh) {
  for (int64_t i = 0; i < layer.plastic_bias.count; i++) {
    float total = fresh ? 0.0f : layer.bias_gradient[i];
    for (int64_t part = 0; part < parts; part++)
      total += layer.bias_part[part * layer.out.channels + layer.plastic_bias.unit[i]];
    layer.bias_gradient[i] = total;
  }
}

// A convolution's gradient of values, in a part for each slab.
static void gradient_parts(const Layer& layer, int64_t slabs) {
  convolution::gradient({layer.in, layer.out, static_cast<int>(layer.height),
                         static_cast<int>(layer.width), static_cast<int>(layer.stride),
                         layer.in.pad - layer.padding, layer.plastic.start, layer.plastic.source,
                         layer.learning, layer.learning_count, layer.weight_part, layer.bias_part,
                         layer.plastic_count}, slabs);
}

static void add_gradient_parts(const Layer& layer, int64_t slabs, bool fresh) {
  const int64_t size = layer.plastic_count * layer.height * layer.width;
  threads::parallel(size, size * slabs, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      float total = fresh ? 0.0f : layer.weight_gradient[i];
      // In the order of slabs, whoever computed them: the bits do not depend on threads.
      for (int64_t slab = 0; slab < slabs; slab++) total += layer.weight_part[slab * size + i];
      layer.weight_gradient[i] = total;
    }
  });
  gather_bias_gradient(layer, slabs, fresh);
}

// A convolution's gradient of its input, from that of its output.
template <Finish F>
static void input_gradient(const Layer& layer, const Image& into, int64_t slabs) {
  const int height = static_cast<int>(layer.height), width = static_cast<int>(layer.width);
  if (layer.stride > 1) {
    // Windows of a larger stride leave gaps, which a flipped kernel does not know.
    convolution::run_strided_gradient<F>(
        {layer.out, into, height, width, static_cast<int>(layer.stride), layer.padding,
         layer.back.rows, layer.into, layer.into_count}, slabs);
    return;
  }
  // The flipped kernel starts kernel - 1 - padding before the first pixel. `buffers_of` in
  // structure.py made the border as wide as that.
  const int64_t down = layer.out.pad - (height - 1 - layer.padding);
  const int64_t right = layer.out.pad - (width - 1 - layer.padding);
  convolution::run<F>({layer.out, into, height, width, 1, down, right, {layer.back.rows, {}},
                       layer.into, layer.into_count, nullptr, {}}, slabs);
}

// The gradient of values is computed first: that of the input is written over the activations.
static void backward_convolution(const Layer& layer, int64_t slabs, bool fresh) {
  if (layer.learning_count) {
    gradient_parts(layer, slabs);
    add_gradient_parts(layer, slabs, fresh);
  }
  if (!layer.into_count) return;
  layer.input_relu ? input_gradient<Finish::masked>(layer, layer.in, slabs)
                   : input_gradient<Finish::plain>(layer, layer.in, slabs);
}

static void backward_linear(const Layer& layer, int64_t slabs, bool fresh) {
  if (layer.learning_count) {
    linear::gradient({layer.in.data, layer.out.data, layer.in.slab(), layer.out.slab(),
                      layer.plastic.start, layer.plastic.source, layer.learning,
                      layer.learning_count, layer.weight_gradient, layer.bias_part, fresh}, slabs);
    gather_bias_gradient(layer, 1, fresh);
  }
  if (!layer.into_count) return;
  const linear::Pass pass{layer.out.data, layer.in.data, layer.out.slab(), layer.in.slab(),
                          {layer.back.rows, {}}, layer.into, layer.into_place, layer.into_count,
                          nullptr};
  layer.input_relu ? linear::run<Finish::masked>(pass, slabs)
                   : linear::run<Finish::plain>(pass, slabs);
}

NISPA_EXPORT const char* nispa_isa() { return NISPA_ISA; }

NISPA_EXPORT int64_t nispa_lanes() { return LANES; }

// Compared with Python's structures when the library is loaded.
NISPA_EXPORT int64_t nispa_fields() {
  return (sizeof(Layer) + sizeof(norm::Statistics) + sizeof(norm::Affine) + sizeof(norm::Back)) / 8;
}

NISPA_EXPORT void nispa_use_threads(void* fork, void* number, void* count) {
  threads::runtime.fork = reinterpret_cast<threads::Fork>(fork);
  threads::runtime.number = reinterpret_cast<threads::Ask>(number);
  threads::runtime.count = reinterpret_cast<threads::Ask>(count);
}

NISPA_EXPORT void nispa_fill(const Image* to, const int32_t* channels, int64_t channel_count,
                             const float* from, int64_t stride, const int64_t* index,
                             int64_t count, int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  fill<false>(*to, {channels, channel_count, from, stride, index, count, false});
}

NISPA_EXPORT void nispa_empty(const Image* from, float* to, int64_t count, int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  empty(*from, to, count);
}

NISPA_EXPORT void nispa_sums(const Image* from, int64_t count, double* to, int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  sums(*from, count, to);
}

// `every`: each layer's output is to be read. Without it those that a pool follows are not all
// there, as backward expects.
NISPA_EXPORT void nispa_forward(const Layer* layers, int64_t layer_count, int64_t count,
                                int64_t every, int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  const int64_t slabs = (count + LANES - 1) / LANES;
  for (int64_t i = 0; i < layer_count; i++) {
    // No backward pass may follow one with `every`: it would take outputs for numbers.
    const bool both = !every && i + 1 < layer_count && pools_at_once(layers[i]);
    forward_layer(layers[i], both ? layers[i + 1].out : Image{}, slabs);
    // The pool is done.
    i += both;
  }
}

// `fresh`: gradients are written rather than added to, and turned values are copied anew.
NISPA_EXPORT void nispa_backward(const Layer* layers, int64_t layer_count, int64_t count,
                                 const float* gradient, float* input_gradient, int64_t fresh,
                                 int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  const int64_t slabs = (count + LANES - 1) / LANES;
  const Layer& last = layers[layer_count - 1];
  const Image& out = last.out;
  const Source source{nullptr, out.channels, gradient, out.channels * out.height * out.width,
                      nullptr, count, true};
  // Every layer masks the gradient that it writes by the ReLU before it. The last layer's own ReLU
  // has no layer behind it, so the mask is applied on the way in.
  last.relu ? fill<true>(out, source) : fill<false>(out, source);
  for (int64_t i = layer_count - 1; i >= 0; i--) {
    const Layer& layer = layers[i];
    if (layer.kind == POOL) {
      if (!layer.into_count) continue;
      i && pools_at_once(layers[i - 1]) ? pool::gradient<true>(layer, slabs)
                                        : pool::gradient<false>(layer, slabs);
      continue;
    }
    // Values stay the same within a step: one copy serves all parts of its batch.
    if (fresh && layer.into_count) merge_values(layer, layer.back, layer.stride == 1);
    if (layer.kind == CONVOLUTION) backward_convolution(layer, slabs, fresh);
    else backward_linear(layer, slabs, fresh);
  }
  // By now the first buffer holds the gradient of the images.
  if (input_gradient) empty(layers[0].in, input_gradient, count);
}

#include "block.hpp"
