// A small chain through the kernels, checked against plain loops in double precision. It needs no
// Python, so that an emulator can run it for another processor. See test_emulated.py.

#include <cstdio>
#include <random>
#include <vector>

#include "chain.cpp"

static std::mt19937 generator(1);
static double number() { return std::uniform_real_distribution<double>(-1.0, 1.0)(generator); }

// Activations as plain loops see them: (image, channel, row, column).
struct Plain {
  int images, channels, height, width;
  std::vector<double> value = std::vector<double>(images * channels * height * width);
  double& at(int n, int c, int y, int x) {
    return value[((n * channels + c) * height + y) * width + x];
  }
  bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
  int features() const { return channels * height * width; }
};

constexpr int PAD = 2;  // of images: as much as any of these layers reads

struct Room {
  std::vector<float> data;
  Image image;
  Room(const Plain& like, int64_t slabs) {
    image = {nullptr, like.channels, like.height, like.width, like.height > 1 ? PAD : 0};
    data.resize(image.slab() * slabs + 16);
    const auto address = reinterpret_cast<uintptr_t>(data.data());
    image.data = data.data() + (64 - address % 64) % 64 / sizeof(float);
  }
};

// A layer with random live connections, all of them plastic, and everything that it points to.
struct Owned {
  Layer layer{};
  int targets, sources, weights;
  std::vector<int32_t> start{0}, source, back_start{0}, back_source, origin, rows, places, into;
  std::vector<int64_t> units;
  std::vector<float> value, back_value, bias, scratch, weight_gradient, bias_gradient, part, biases;
  std::vector<double> want_weights, want_biases;
  std::vector<int> target_of, source_of;  // of each connection; of Linear layers the feature

  Owned(int targets, int sources, int kernel, int64_t slabs)
      : targets(targets), sources(sources), weights(kernel * kernel) {
    for (int r = 0; r < targets; r++) {
      for (int c = 0; c < sources; c++)
        if (number() > -0.4) target_of.push_back(r), source_of.push_back(c);
      start.push_back(static_cast<int32_t>(target_of.size()));
      rows.push_back(r);
      units.push_back(r);
      bias.push_back(static_cast<float>(number()));
    }
    const size_t count = target_of.size();
    for (size_t i = 0; i < count * weights; i++) value.push_back(static_cast<float>(number()));
    for (int c = 0; c < sources; c++) {
      for (size_t k = 0; k < count; k++)
        if (source_of[k] == c)
          back_source.push_back(target_of[k]), origin.push_back(static_cast<int32_t>(k));
      back_start.push_back(static_cast<int32_t>(origin.size()));
      into.push_back(c);
    }
    source.assign(source_of.begin(), source_of.end());
    back_value.resize(count * weights), weight_gradient.resize(count * weights);
    want_weights.resize(count * weights), want_biases.resize(targets);
    bias_gradient.resize(targets), scratch.resize(targets);
    part.resize(count * weights * slabs), biases.resize(targets * slabs);
  }

  void describe(Kind kind, bool relu, bool input_relu, int kernel, int stride, int padding,
                const Image& in, const Image& out) {
    layer.kind = kind, layer.relu = relu, layer.input_relu = input_relu;
    layer.height = layer.width = kernel, layer.stride = stride, layer.padding = padding;
    layer.in = in, layer.out = out;
    places.assign(into.begin(), into.end());
    if (kind == LINEAR) {
      // Where features lie, in the order of a flatten.
      for (int f = 0; f < sources; f++) {
        const int64_t pixels = in.height * in.width, x = f % pixels;
        places[f] = static_cast<int32_t>(in.inside(f / pixels) + x / in.width * in.line() +
                                         x % in.width);
      }
      for (size_t k = 0; k < source.size(); k++) source[k] = places[source_of[k]];
    }
    layer.plastic = {start.data(), source.data(), value.data()};
    layer.plastic_bias = {units.data(), bias.data(), targets};
    layer.bias = scratch.data();
    layer.rows = rows.data(), layer.place = rows.data(), layer.row_count = targets;
    layer.back = {{back_start.data(), back_source.data(), back_value.data()},
                  origin.data(), static_cast<int64_t>(origin.size())};
    layer.into = into.data(), layer.into_place = places.data(), layer.into_count = sources;
    layer.learning = rows.data(), layer.learning_count = targets;
    layer.plastic_count = static_cast<int64_t>(source.size());
    layer.weight_gradient = weight_gradient.data(), layer.bias_gradient = bias_gradient.data();
    layer.weight_part = part.data(), layer.bias_part = biases.data();
  }
};

// Calls work(connection, weight, input pixel, output pixel) for every product of a convolution.
template <class Work>
static void products(const Owned& of, int kernel, int stride, int padding, Plain& in, Plain& out,
                     Work work) {
  for (int n = 0; n < in.images; n++)
    for (size_t k = 0; k < of.target_of.size(); k++)
      for (int y = 0; y < out.height; y++)
        for (int x = 0; x < out.width; x++)
          for (int r = 0; r < kernel; r++)
            for (int s = 0; s < kernel; s++) {
              const int from_y = y * stride + r - padding, from_x = x * stride + s - padding;
              if (!in.inside(from_y, from_x)) continue;
              work(k * of.weights + r * kernel + s, in.at(n, of.source_of[k], from_y, from_x),
                   out.at(n, of.target_of[k], y, x));
            }
}

static double worst = 0;
static void compare(const char* what, double got, double wanted) {
  const double off = std::abs(got - wanted) / (1.0 + std::abs(wanted));
  if (!(off < 1e-4)) std::printf("%s: %g instead of %g\n", what, got, wanted);
  worst = off > worst || off != off ? off : worst;
}

static void check(int images) {
  const int64_t slabs = (images + LANES - 1) / LANES;
  // A 3 x 3 convolution, a pool, one of 5 x 5, one of stride 2, and a Linear layer.
  struct Shape { Kind kind; int channels, kernel, stride, padding; bool relu; };
  const Shape shapes[] = {{CONVOLUTION, 5, 3, 1, 1, true}, {POOL, 5, 2, 2, 0, false},
                          {CONVOLUTION, 4, 5, 1, 2, true}, {CONVOLUTION, 6, 3, 2, 1, true},
                          {LINEAR, 7, 1, 1, 0, false}};
  constexpr int COUNT = 5;
  std::vector<Plain> plain{{images, 3, 13, 11}};
  for (double& each : plain[0].value) each = static_cast<float>(number());
  for (const Shape& shape : shapes) {
    const Plain& in = plain.back();
    const auto size = [&](int from) {
      return shape.kind == POOL ? from / 2
                                : (from + 2 * shape.padding - shape.kernel) / shape.stride + 1;
    };
    if (shape.kind == LINEAR) plain.push_back({images, shape.channels, 1, 1});
    else plain.push_back({images, shape.channels, size(in.height), size(in.width)});
  }
  std::vector<Room> rooms;
  rooms.reserve(COUNT + 1);
  for (const Plain& each : plain) rooms.emplace_back(each, slabs);
  std::vector<Owned> owned;
  owned.reserve(COUNT);
  std::vector<Layer> layers;
  for (int i = 0; i < COUNT; i++) {
    const Shape& shape = shapes[i];
    const bool linear = shape.kind == LINEAR;
    owned.emplace_back(shape.channels, linear ? plain[i].features() : plain[i].channels,
                       shape.kernel, slabs);
    const bool input_relu = i && (shapes[i - 1].relu || shapes[i - 1].kind == POOL);
    owned[i].describe(shape.kind, shape.relu, input_relu, shape.kernel, shape.stride,
                      shape.padding, rooms[i].image, rooms[i + 1].image);
    owned[i].layer.pools = i + 1 < COUNT && shapes[i + 1].kind == POOL;
    layers.push_back(owned[i].layer);
  }

  // Forward, both ways.
  for (int i = 0; i < COUNT; i++) {
    Plain &in = plain[i], &out = plain[i + 1];
    Owned& of = owned[i];
    for (int n = 0; n < images; n++)
      for (int c = 0; c < out.channels; c++)
        for (int y = 0; y < out.height; y++)
          for (int x = 0; x < out.width; x++) {
            double& to = out.at(n, c, y, x);
            if (shapes[i].kind != POOL) {
              to = of.bias[c];
              continue;
            }
            to = in.at(n, c, 2 * y, 2 * x);
            for (int q = 1; q < 4; q++) to = std::max(to, in.at(n, c, 2 * y + q / 2, 2 * x + q % 2));
          }
    if (shapes[i].kind == CONVOLUTION)
      products(of, shapes[i].kernel, shapes[i].stride, shapes[i].padding, in, out,
               [&](size_t w, double& from, double& to) { to += of.value[w] * from; });
    if (shapes[i].kind == LINEAR)
      for (int n = 0; n < images; n++)
        for (size_t k = 0; k < of.target_of.size(); k++)
          out.at(n, of.target_of[k], 0, 0) +=
              of.value[k] * in.value[n * in.features() + of.source_of[k]];
    if (shapes[i].relu)
      for (double& each : out.value) each = std::max(each, 0.0);
  }
  std::vector<float> pixels(plain[0].value.begin(), plain[0].value.end());
  nispa_fill(&rooms[0].image, nullptr, 3, pixels.data(), plain[0].features(), nullptr, images, 1);
  nispa_forward(layers.data(), COUNT, images, 0, 1);
  std::vector<float> logits(images * 7), gradient(images * 7), back(pixels.size());
  nispa_empty(&rooms[COUNT].image, logits.data(), images, 1);
  for (size_t i = 0; i < logits.size(); i++) compare("output", logits[i], plain[COUNT].value[i]);

  // Backward: gradients in plain loops take the place of activations, layer by layer.
  std::vector<Plain> slope;
  for (const Plain& each : plain)
    slope.push_back({each.images, each.channels, each.height, each.width});
  for (size_t i = 0; i < gradient.size(); i++)
    slope[COUNT].value[i] = gradient[i] = static_cast<float>(number());
  for (int i = COUNT; i--;) {
    Plain &in = plain[i], &from = slope[i + 1], &to = slope[i];
    Owned& of = owned[i];
    if (shapes[i].relu)
      for (size_t k = 0; k < from.value.size(); k++)
        if (!(plain[i + 1].value[k] > 0)) from.value[k] = 0;
    if (shapes[i].kind == POOL) {
      for (int n = 0; n < images; n++)
        for (int c = 0; c < in.channels; c++)
          for (int y = 0; y < from.height; y++)
            for (int x = 0; x < from.width; x++)
              for (int q = 0; q < 4; q++) {  // the first of the largest
                double& place = in.at(n, c, 2 * y + q / 2, 2 * x + q % 2);
                if (place < plain[i + 1].at(n, c, y, x)) continue;
                to.at(n, c, 2 * y + q / 2, 2 * x + q % 2) = from.at(n, c, y, x);
                break;
              }
      continue;
    }
    for (int n = 0; n < images; n++)
      for (int c = 0; c < from.channels; c++)
        for (int y = 0; y < from.height; y++)
          for (int x = 0; x < from.width; x++) of.want_biases[c] += from.at(n, c, y, x);
    if (shapes[i].kind == LINEAR)
      for (int n = 0; n < images; n++)
        for (size_t k = 0; k < of.target_of.size(); k++) {
          const double g = from.at(n, of.target_of[k], 0, 0);
          of.want_weights[k] += g * in.value[n * in.features() + of.source_of[k]];
          to.value[n * in.features() + of.source_of[k]] += g * of.value[k];
        }
    else {
      const Shape& as = shapes[i];
      products(of, as.kernel, as.stride, as.padding, in, from,
               [&](size_t w, double& x, double& g) { of.want_weights[w] += x * g; });
      products(of, as.kernel, as.stride, as.padding, to, from,
               [&](size_t w, double& x, double& g) { x += of.value[w] * g; });
    }
  }
  nispa_backward(layers.data(), COUNT, images, gradient.data(), back.data(), 1, 1);
  for (int i = 0; i < COUNT; i++) {
    if (shapes[i].kind == POOL) continue;
    for (size_t k = 0; k < owned[i].want_weights.size(); k++)
      compare("gradient of a weight", owned[i].weight_gradient[k], owned[i].want_weights[k]);
    for (size_t k = 0; k < owned[i].want_biases.size(); k++)
      compare("gradient of a bias", owned[i].bias_gradient[k], owned[i].want_biases[k]);
  }
  for (size_t i = 0; i < back.size(); i++)
    compare("gradient of a pixel", back[i], slope[0].value[i]);
}

int main() {
  // Less than a slab, whole ones, and all numbers of slabs that have loops of their own.
  for (int images : {1, LANES - 1, LANES, 2 * LANES + 1, 7 * LANES + 3}) check(images);
  std::printf("%s %s\n", nispa_isa(), worst < 1e-4 ? "agrees" : "differs");
  return worst < 1e-4 ? 0 : 1;
}
