// How fast one thread multiplies and adds, alone and with operands from memory. See bounds.py.

#include <cstdint>

#include "vector.hpp"

// Slabs of WIDE registers a place, as many as make eight sums.
template <int WIDE>
static float products(const float* pixels, const int32_t* place, const float* weight, int64_t count,
                      int64_t slab) {
  constexpr int SLABS = 8 / WIDE;
  Reg total[SLABS][WIDE];
  for (auto& each : total)
    for (Reg& one : each) one = broadcast<Reg>(0.0f);
  for (int64_t i = 0; i < count; i++) {
    const float* from = pixels + int64_t{place[i]} * (WIDE * WIDTH);
    const Reg factor = broadcast<Reg>(weight[i]);
    for (int s = 0; s < SLABS; s++, from += slab)
      for (int part = 0; part < WIDE; part++)
        total[s][part] = fma(factor, load<Reg>(from + part * WIDTH), total[s][part]);
  }
  Reg all = broadcast<Reg>(0.0f);
  for (auto& each : total)
    for (Reg& one : each) all = add(all, one);
  return sum(all);
}

extern "C" {

// Multiply-adds between registers: `rounds` times a dozen that do not wait for each other.
float between_registers(int64_t rounds) {
  constexpr int MANY = 12;
  Reg total[MANY];
  for (Reg& each : total) each = broadcast<Reg>(1.0f);
  Reg half = broadcast<Reg>(0.5f);
  for (int64_t i = 0; i < rounds; i++)
    for (int k = 0; k < MANY; k++) total[k] = fma(total[k], half, half);
  for (Reg& each : total) half = add(half, each);
  return sum(half);
}

// One weight after another times a pixel each of several slabs, as a Linear layer does it: `place`
// counts pixels of `lanes` images. With fewer lanes than fill a line of the cache, the rest of each
// line that is read is not used. All of it several times, so that the call itself does not count.
float from_memory(const float* pixels, const int32_t* place, const float* weight, int64_t count,
                  int64_t slab, int64_t lanes, int64_t times) {
  float all = 0;
  for (int64_t i = 0; i < times; i++)
    all += lanes == WIDTH ? products<1>(pixels, place, weight, count, slab)
                          : products<16 / WIDTH>(pixels, place, weight, count, slab);
  return all;
}

int64_t width() { return WIDTH; }
}
