// The mates of what was inserted, on columns that hold both members of each Friedel pair.
#pragma once

#include "problem.h"
#include "rows.h"

namespace torch_projectors {
namespace LEVEL {

// Adds to each entry the conjugate of its mate, at the same time: V(x, y[, z]) + conj V(x, -y[, -z]) at x = 0 and, of
// even axes, at x = W/2.
template <class T, int V, int numbers>
void add_mates_of_plane(const Grid<V>& grid, int64_t z, T* volume) {
  const int64_t columns = grid.columns(), rows = grid.shape[1];
  const int64_t mirrored_z = z == 0 ? 0 : grid.shape[V - 1] - z;
  const auto row = [&](int64_t y, int64_t of) { return volume + ((V == 3 ? of * rows : 0) + y) * columns * numbers; };
  // A plane that is its own mate: each pair once.
  const int64_t end = V == 2 || z == mirrored_z ? rows / 2 + 1 : rows;
  for (int64_t y = 0; y < end; ++y) {
    T *here = row(y, z), *there = row(y == 0 ? 0 : rows - y, mirrored_z);
    const int64_t last = grid.shape[0] % 2 == 0 ? columns - 1 : 0;
    for (int64_t x = 0;; x = last) {
      T *a = here + x * numbers, *b = there + x * numbers;
      a[0] = b[0] = a[0] + b[0];
      if (numbers == 2) {
        const T im = a[numbers - 1] - b[numbers - 1];
        b[numbers - 1] = -im;
        a[numbers - 1] = im;
      }
      if (x == last) break;
    }
  }
}

template <class, class T, int V, int, bool real>
void add_mates(const Problem& q, void* volumes, void* weight_volumes, const Parallel& parallel) {
  const Grid<V> grid = grid_of<V>(q.volume_shape);
  const int64_t tasks = V == 3 ? grid.shape[V - 1] / 2 + 1 : 1;  // a plane, and its mate
  parallel(q.batch * tasks, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t start = i / tasks * q.volume_stride;
      add_mates_of_plane<T, V, real ? 1 : 2>(grid, i % tasks, static_cast<T*>(volumes) + start * (real ? 1 : 2));
      if (weight_volumes != nullptr)
        add_mates_of_plane<T, V, 1>(grid, i % tasks, static_cast<T*>(weight_volumes) + start);
    }
  });
}

}  // namespace LEVEL
}  // namespace torch_projectors
