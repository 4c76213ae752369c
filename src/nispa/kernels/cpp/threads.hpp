// Runs a loop on the threads that PyTorch already has: no second pool, no oversubscription.
//
// PyTorch's OpenMP runtime is found by Python among the libraries that are loaded; three of its
// functions come in as pointers. Without them everything runs on the calling thread.
#pragma once

#include <cstdint>

namespace threads {

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
    if (units > 0) work(int64_t{0}, units);
    return;
  }
  Region<Work> region{work, units, parts};
  runtime.fork(&run_region<Work>, &region, static_cast<unsigned>(parts), 0u);
}

}  // namespace threads
