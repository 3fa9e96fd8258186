// The mates of what was inserted, on columns that hold both members of each Friedel pair.
#pragma once

#include "sample.h"

namespace torch_projectors {

// Adds to each entry the conjugate of its mate, at the same time: V(x, y[, z]) + conj V(x, -y[, -z]) at x = 0 and, of
// even axes, at x = W/2.
template <class T, int V, bool real>
struct AddMates {
  using E = Entry<T, real>;
  struct Shared {};

  Lattice<V> grid;
  int32_t rows, paired;  // rows of a volume, paired columns
  int64_t batch, volume_stride;
  E* volumes;
  T* weight_volumes;  // or null

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared&) const {
    block.each([&](int thread) {
      const int64_t all = batch * rows * paired;
      for (int64_t i = block.index() * kThreads + thread; i < all; i += block.count() * kThreads) {
        const int32_t row = int32_t(i / paired % rows), mate = mate_of(row);
        if (mate < row) continue;  // its own thread adds both
        const int64_t start = i / paired / rows * volume_stride;
        const int64_t column = i % paired == 0 ? 0 : grid.columns - 1;
        const int64_t here = start + int64_t(row) * grid.columns + column;
        const int64_t there = start + int64_t(mate) * grid.columns + column;
        add_both(volumes[here], volumes[there]);
        if (weight_volumes != nullptr) add_both(weight_volumes[here], weight_volumes[there]);
      }
    });
  }

  TORCH_PROJECTORS_DEVICE int32_t mate_of(int32_t row) const {
    const int32_t y = V == 3 ? row % grid.shape[1] : row, z = V == 3 ? row / grid.shape[1] : 0;
    const int32_t mirrored_z = z == 0 ? 0 : grid.shape[V - 1] - z;
    return (V == 3 ? mirrored_z * grid.shape[1] : 0) + (y == 0 ? 0 : grid.shape[1] - y);
  }

  TORCH_PROJECTORS_DEVICE static void add_both(T& a, T& b) { a = b = a + b; }

  TORCH_PROJECTORS_DEVICE static void add_both(Pair<T>& a, Pair<T>& b) {
    const Pair<T> sum{a.re + b.re, a.im - b.im};
    b = conjugate(sum);
    a = sum;
  }
};

template <class T, int V, bool real>
void add_mates(const Problem& q, void* volumes, void* weight_volumes) {
  const int64_t rows = q.volume_shape[1] * q.volume_shape[2];
  const int paired = q.volume_shape[0] % 2 == 0 ? 2 : 1;
  launch(AddMates<T, V, real>{Lattice<V>(q.volume_shape), int32_t(rows), paired, q.batch, q.volume_stride,
                              static_cast<Entry<T, real>*>(volumes), static_cast<T*>(weight_volumes)},
         (q.batch * rows * paired + kThreads - 1) / kThreads, q.stream);
}

}  // namespace torch_projectors
