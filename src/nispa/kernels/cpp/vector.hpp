// One number of each of LANES images: one register, or a few side by side.
#pragma once

#include <type_traits>

#include "registers.hpp"

constexpr int PARTS = LANES / WIDTH;

struct Parts {
  Reg part[PARTS];
};
// Loops with many sums take registers, and go through the parts one after another; all others take
// vectors.
using Vec = std::conditional_t<PARTS == 1, Reg, Parts>;

template <class V = Vec>
static inline V load(const float* p) {
  if constexpr (std::is_same_v<V, Reg>) return load_register(p);
  else {
    V r;
    for (int i = 0; i < PARTS; i++) r.part[i] = load_register(p + i * WIDTH);
    return r;
  }
}
template <class V = Vec>
static inline V broadcast(float a) {
  if constexpr (std::is_same_v<V, Reg>) return broadcast_register(a);
  else {
    V r;
    for (Reg& each : r.part) each = broadcast_register(a);
    return r;
  }
}
static inline void store(float* p, Parts a) {
  for (int i = 0; i < PARTS; i++) store(p + i * WIDTH, a.part[i]);
}
#define NISPA_EACH_PART(expression)                            \
  Parts r;                                                     \
  for (int i = 0; i < PARTS; i++) r.part[i] = (expression);    \
  return r
static inline Parts add(Parts a, Parts b) { NISPA_EACH_PART(add(a.part[i], b.part[i])); }
static inline Parts fma(Parts a, Parts b, Parts c) {
  NISPA_EACH_PART(fma(a.part[i], b.part[i], c.part[i]));
}
static inline Parts relu(Parts a) { NISPA_EACH_PART(relu(a.part[i])); }
static inline Parts larger(Parts a, Parts b) { NISPA_EACH_PART(larger(a.part[i], b.part[i])); }
static inline Parts where_positive(Parts test, Parts g) {
  NISPA_EACH_PART(where_positive(test.part[i], g.part[i]));
}
static inline Parts where_same(Parts a, Parts b, Parts yes, Parts no) {
  NISPA_EACH_PART(where_same(a.part[i], b.part[i], yes.part[i], no.part[i]));
}
#undef NISPA_EACH_PART

// Sums over lanes go on in one register: adds the parts of a, or of a * b.
static inline Reg add_parts(Reg a, Reg to) { return add(to, a); }
static inline Reg add_parts(Parts a, Reg to) {
  for (const Reg& each : a.part) to = add(to, each);
  return to;
}
static inline Reg add_products(Reg a, const float* b, Reg to) {
  return fma(a, load_register(b), to);
}
static inline Reg add_products(Parts a, const float* b, Reg to) {
  for (int i = 0; i < PARTS; i++) to = fma(a.part[i], load_register(b + i * WIDTH), to);
  return to;
}

// LANES values from `x` on of each row, so that a lane of the vectors in `to` is a row.
static inline void transpose(const float* const (&row)[LANES], int64_t x, float* to) {
  for (int part = 0; part < LANES; part += WIDTH)
    for (int i = 0; i < LANES; i += WIDTH) turn(row + part, x + i, to + i * LANES + part);
}
