// Runs a loop on the threads that PyTorch already has: no second pool, no oversubscription.
//
// PyTorch's OpenMP runtime is found by Python among the libraries that are loaded; three of its
// functions come in as pointers. Without them everything runs on the calling thread.
#pragma once

#include <cstdint>
#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace threads {

// While it lives, this thread takes numbers below 1.2e-38 for 0, which nothing that is learned can
// tell. Where a task is known by heart its gradients are as small, and a processor takes far longer
// for each of them.
class Flushed {
#if defined(__SSE2__) || defined(_M_X64)
  const unsigned before = _mm_getcsr();

 public:
  Flushed() { _mm_setcsr(before | 0x8040); }  // results, and what is read
  ~Flushed() { _mm_setcsr(before); }
#elif defined(__aarch64__) && defined(__GNUC__)
  uint64_t before;

 public:
  Flushed() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(before | (uint64_t{1} << 24)));
  }
  ~Flushed() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#else
 public:
  Flushed() {}
#endif
};

// GOMP_parallel: function, its argument, threads, flags. The others ask for numbers.
using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Ask = int (*)();

struct Runtime {
  Fork fork = nullptr;
  Ask number = nullptr, count = nullptr;
};
static Runtime runtime;
// Each entry point sets it. It belongs to a thread since several Python threads may train at once:
// ctypes lets go of the interpreter's lock.
static thread_local int wanted = 1;  // by the Python thread that calls

template <class Work>
struct Region {
  Work& work;
  int64_t units;
  int parts;
};

template <class Work>
static void run_region(void* given) {
  // Parts are cut by their own number, so a part is the same work whichever thread takes it.
  auto& region = *static_cast<Region<Work>*>(given);
  const Flushed flushed;
  const int self = runtime.number(), team = runtime.count();
  for (int part = self; part < region.parts; part += team)  // a team may be smaller than asked for
    region.work(region.units * part / region.parts, region.units * (part + 1) / region.parts);
}

constexpr int64_t WORTH = 1 << 14;  // vector operations; below that other threads come too late

// Calls work(begin, end) so that [0, units) is covered, one part a thread. `operations` says about
// how many vector operations there are in all.
template <class Work>
static void parallel(int64_t units, int64_t operations, Work work) {
  // Never more parts than units; the threads beyond would find nothing to do.
  const int parts = operations < WORTH ? 1 : static_cast<int>(units < wanted ? units : wanted);
  // Waking the team for one part would take longer than a small layer.
  if (parts <= 1 || !runtime.fork) {
    const Flushed flushed;
    if (units > 0) work(int64_t{0}, units);
    return;
  }
  Region<Work> region{work, units, parts};
  runtime.fork(&run_region<Work>, &region, static_cast<unsigned>(parts), 0u);
}

}  // namespace threads
