// The mates of what was inserted, on columns that hold both members of each Friedel pair.
#pragma once

#include "problem.h"
#include "rows.h"

namespace torch_projectors {
namespace LEVEL {

// Adds to each entry at low <= |k| < high along the slowest axis the conjugate of its mate, at the same time:
// V(x, y[, z]) + conj V(x, -y[, -z]) at x = 0 and, of even axes, at x = W/2.
template <class T, int V, int numbers>
void add_mates_between(const Grid<V>& grid, int64_t low, int64_t high, T* volume) {
  const int64_t columns = grid.columns(), rows = grid.shape[1];
  const int64_t last = grid.shape[0] % 2 == 0 ? columns - 1 : 0;
  const auto mirrored = [](int64_t index, int64_t n) { return index == 0 ? 0 : n - index; };
  const auto add = [&](int64_t row, int64_t of_mates) {
    T *here = volume + row * columns * numbers, *there = volume + of_mates * columns * numbers;
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
  };
  for (int64_t k = low; k < high; ++k) {
    const int64_t of_mates = mirrored(k, grid.shape[V - 1]);
    if (V == 2) {
      add(k, of_mates);
      continue;
    }
    // A plane that is its own mate: each pair once.
    const int64_t end = k == of_mates ? rows / 2 + 1 : rows;
    for (int64_t y = 0; y < end; ++y) add(k * rows + y, of_mates * rows + mirrored(y, rows));
  }
}

// Of a volume and of its weights, which may be null.
template <class T, int V, int numbers>
void add_mates_between(const Grid<V>& grid, int64_t low, int64_t high, T* volume, T* weights) {
  add_mates_between<T, V, numbers>(grid, low, high, volume);
  if (weights != nullptr) add_mates_between<T, V, 1>(grid, low, high, weights);
}

template <class, class T, int V, int, bool real>
void add_mates(const Problem& q, void* volumes, void* weight_volumes, const Parallel& parallel) {
  constexpr int numbers = real ? 1 : 2;
  const Grid<V> grid = grid_of<V>(q.volume_shape);
  const int64_t planes = grid.shape[V - 1] / 2 + 1;
  T *const volume = static_cast<T*>(volumes), *const weights = static_cast<T*>(weight_volumes);
  parallel(q.batch * planes, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t start = i / planes * q.volume_stride, k = i % planes;
      add_mates_between<T, V, numbers>(grid, k, k + 1, volume + start * numbers,
                                       weights == nullptr ? nullptr : weights + start);
    }
  });
}

}  // namespace LEVEL
}  // namespace torch_projectors
