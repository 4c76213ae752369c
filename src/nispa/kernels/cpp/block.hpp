// A convolution with what follows it in a residual network, as one operation of autograd. Its input
// stays what it is, since other layers may read it; all images are given by the caller.
//
// The work on a slab is done in one go where there are slabs enough for all threads: what one part
// writes, the next reads from the cache. Part of `chain.cpp`.

static Layer from_slab(const Layer& layer, int64_t slab) {
  Layer part = layer;
  part.in = norm::from_slab(layer.in, slab);
  part.out = norm::from_slab(layer.out, slab);
  const int64_t weights = layer.plastic_count * layer.height * layer.width;
  if (layer.weight_part) part.weight_part = layer.weight_part + slab * weights;
  if (layer.bias_part) part.bias_part = layer.bias_part + slab * layer.out.channels;
  return part;
}

// Calls work(first slab, slabs, number) for `parts` shares of the slabs, on a thread each; within,
// everything runs on that thread. Without parts the work is called once and may use all threads.
template <class Work>
static void each_share(int64_t parts, int64_t slabs, Work work) {
  if (!parts) return work(int64_t{0}, slabs, int64_t{0});
  threads::parallel(parts, threads::WORTH, [&](int64_t begin, int64_t end) {
    const int before = threads::wanted;
    threads::wanted = 1;
    for (int64_t part = begin; part < end; part++)
      for (int64_t slab = slabs * part / parts; slab < slabs * (part + 1) / parts; slab++)
        work(slab, int64_t{1}, part);
    threads::wanted = before;
  });
}

// Forward. With `moments`, also the mean of each channel and its sum of squared distances: first
// all means, then all sums; `parts_of_moments` is room for those of each slab.
NISPA_EXPORT void nispa_convolve(const Layer* given, int64_t count, int64_t parts,
                                 double* parts_of_moments, double* moments, int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  const Layer& layer = *given;
  const int64_t slabs = (count + LANES - 1) / LANES, channels = layer.out.channels;
  gather_bias(layer);
  if (layer.mixed_row_count) merge_values(layer, layer.mixed, false);
  each_share(parts, slabs, [&](int64_t slab, int64_t some, int64_t) {
    const Layer part = from_slab(layer, slab);
    forward_rows(part, part.frozen, part.plastic, part.rows, part.place, part.row_count, {}, some);
    if (part.mixed_row_count)
      forward_rows(part, part.mixed.rows, {}, part.mixed_rows, part.mixed_place,
                   part.mixed_row_count, {}, some);
    if (!moments) return;
    const int64_t work = some * channels * layer.out.height * layer.out.width;
    threads::parallel(some * channels, work, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; unit++) {
        const int64_t number = slab + unit / channels;
        norm::slab_moments(norm::from_slab(layer.out, number), norm::lanes_of(number, count),
                           unit % channels,
                           parts_of_moments + 2 * (number * channels + unit % channels));
      }
    });
  });
  if (moments)
    norm::merge_moments(parts_of_moments, channels, layer.out.height * layer.out.width, count,
                        moments, moments + channels);
}

NISPA_EXPORT void nispa_scale(const norm::Affine* job, int64_t count, int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  norm::scale(*job, (count + LANES - 1) / LANES);
}

NISPA_EXPORT void nispa_statistics(const norm::Statistics* job) { norm::statistics(*job); }

NISPA_EXPORT void nispa_norm_sums(const norm::Back* job, int64_t count, double* parts, float* to,
                                  int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  norm::sums(*job, (count + LANES - 1) / LANES, parts, to);
}

// The gradients of values, of the input, and of what was added.
NISPA_EXPORT void nispa_convolve_backward(const Layer* given, const norm::Back* job, int64_t count,
                                          int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  const int64_t slabs = (count + LANES - 1) / LANES;
  Layer layer = *given;
  layer.out = job->room;
  const bool back = job->into.data && layer.into_count;
  if (back) merge_values(layer, layer.back, layer.stride == 1);
  each_share(job->parts, slabs, [&](int64_t slab, int64_t some, int64_t room) {
    const norm::Back part = norm::part_of(*job, slab, room);
    norm::raw_gradients(part, slab, some, count);
    Layer mine = from_slab(layer, slab);
    mine.out = part.room;
    if (layer.learning_count) gradient_parts(mine, some);
    if (back) input_gradient<Finish::plain>(mine, part.into, some);
  });
  if (layer.learning_count) add_gradient_parts(layer, slabs, true);
}

NISPA_EXPORT void nispa_fill_gradient(const Image* to, const float* from, int64_t count,
                                      int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  const int64_t stride = to->channels * to->height * to->width;
  fill<false>(*to, {nullptr, to->channels, from, stride, nullptr, count, true});
}

// The mean of each channel's pixels, one row of channels an image.
NISPA_EXPORT void nispa_means(const Image* from, float* to, int64_t count, int64_t thread_count) {
  threads::wanted = static_cast<int>(thread_count);
  const int64_t slabs = (count + LANES - 1) / LANES, channels = from->channels;
  const int64_t pixels = from->height * from->width;
  threads::parallel(slabs * channels, slabs * channels * pixels, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) {
      const int64_t slab = unit / channels, channel = unit % channels;
      const Image part = norm::from_slab(*from, slab);
      norm::FourSums values;
      norm::each_of_four(part, channel, [&](int i, int64_t at, int64_t, int64_t) {
        values.sum[i] = add(values.sum[i], load(part.data + at * LANES));
      });
      float lane[LANES];
      store(lane, values.total());
      for (int64_t i = 0; i < norm::lanes_of(slab, count); i++)
        to[(slab * LANES + i) * channels + channel] = lane[i] / static_cast<float>(pixels);
    }
  });
}
