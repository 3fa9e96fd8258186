// Adding to a volume without atomics: a thread owns some entries of one row, and looks in all images for the samples
// that have taps there, always in the same order.
#pragma once

#include <limits>

#include "scatter.h"

namespace torch_projectors {

// Whole numbers from..to - 1.
struct Range {
  int32_t from, to;

  // To those i for which low <= by * i <= high, and perhaps some beside them.
  template <class T>
  TORCH_PROJECTORS_DEVICE void narrow(T by, T low, T high) {
    if (by == 0) {
      if (low > 0 || high < 0) to = from;
      return;
    }
    const T a = low / by, b = high / by;
    keep(a < b ? a : b, a < b ? b : a);
  }

  // Those from least to most.
  template <class T>
  TORCH_PROJECTORS_DEVICE void keep(T least, T most) {
    if (least > T(from)) from = least < T(to) ? int32_t(std::ceil(least)) : to;
    if (most < T(to - 1)) to = most >= T(from) ? int32_t(std::floor(most)) + 1 : from;
  }
};

template <class Interpolation, class T, int V, int I, bool real>
struct OwnedBackproject {
  using E = Entry<T, real>;
  static constexpr int taps = Interpolation::taps;
  static constexpr T epsilon = std::numeric_limits<T>::epsilon();
  struct Shared {};

  Setting<T, V, I> q;
  const E* images;
  const T* weights;  // or null
  E* volumes;
  T* weight_volumes;  // or null
  int32_t width;      // entries of an owner, and owners of a row
  int32_t segments;
  int32_t volume_rows;

  // What a thread owns, and the lattice points that are stored there: in row k, at x or, mirrored, at -x.
  struct Own {
    int64_t start;       // of the row
    int32_t first, last;  // entries
  };
  struct Target {
    int32_t k[V];  // k[0] is not used
    bool mirrored;
  };

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared&) const {
    const int64_t owners = q.batch * volume_rows * segments;
    block.each([&](int thread) {
      for (int64_t i = block.index() * kThreads + thread; i < owners; i += block.count() * kThreads) add_to(i);
    });
  }

  TORCH_PROJECTORS_DEVICE void add_to(int64_t owner) const {
    const int64_t b = owner / segments / volume_rows;
    const int32_t row = int32_t(owner / segments % volume_rows), segment = int32_t(owner % segments);
    const int32_t end = (segment + 1) * width;
    const Own own{b * q.volume_stride + int64_t(row) * q.volume.columns, segment * width,
                  (end < q.volume.columns ? end : q.volume.columns) - 1};
    const int32_t y = q.volume.frequency(1, V == 3 ? row % q.volume.shape[1] : row);
    const int32_t z = V == 3 ? q.volume.frequency(V - 1, row / q.volume.shape[1]) : 0;
    // Of even axes -n/2 is stored as n/2.
    const int ys = 2 * y == q.volume.shape[1] ? 2 : 1, zs = V == 3 && 2 * z == q.volume.shape[V - 1] ? 2 : 1;
    for (int64_t p = 0; p < q.poses; ++p) {
      const Pose<T, V, I> pose(q, b, p);
      T slack[V];  // what rounding of positions may be
      bool finite = true;
      for (int a = 0; a < V; ++a) {
        T reach = 0;
        for (int c = 0; c < I; ++c) reach += std::abs(pose.matrix[a][c]) * T(q.image.shape[c] / 2);
        slack[a] = T(0.01) + 8 * epsilon * reach;
        for (int c = 0; c < I; ++c) finite = finite && pose.matrix[a][c] - pose.matrix[a][c] == 0;
      }
      if (!finite) {
        if (owner == b * volume_rows * segments)
          spoil(volumes + own.start, weights == nullptr ? static_cast<T*>(nullptr) : weight_volumes + own.start);
        continue;
      }
      for (int way = 0; way < 2 * ys * zs; ++way) {
        const bool mirrored = way % 2 == 1;
        Target target{};
        target.mirrored = mirrored;
        target.k[1] = mirrored != (way / 2 % ys == 1) ? -y : y;
        if (V == 3) target.k[V - 1] = mirrored != (way / 2 / ys == 1) ? -z : z;
        add_pose(own, target, pose, slack, b, p);
      }
    }
  }

  TORCH_PROJECTORS_DEVICE void add_pose(const Own& own, const Target& target, const Pose<T, V, I>& pose,
                                        const T (&slack)[V], int64_t b, int64_t p) const {
    const auto& m = pose.matrix;
    // At x = 0 a point is stored as it is.
    const int32_t first = target.mirrored && own.first == 0 ? 1 : own.first;
    if (first > own.last) return;
    T low[V], high[V];  // of positions with taps at the target
    for (int a = 0; a < V; ++a) {
      const int32_t least = a > 0 ? target.k[a] : target.mirrored ? -own.last : first;
      const int32_t most = a > 0 ? target.k[a] : target.mirrored ? -first : own.last;
      low[a] = T(least - Interpolation::first - (taps - 1)) - T(Interpolation::rounding) - slack[a];
      high[a] = T(most - Interpolation::first + 1) - T(Interpolation::rounding) + slack[a];
    }
    const T columns = T(q.image.columns - 1);
    for (int32_t z = 0; z < (I == 3 ? q.image.shape[I - 1] : 1); ++z) {
      int32_t k[I];
      k[I - 1] = I == 3 ? q.image.frequency(I - 1, z) : 0;
      T from[V], to[V];  // less what z contributes
      for (int a = 0; a < V; ++a) {
        const T base = I == 3 ? m[a][I - 1] * T(k[I - 1]) : T(0);
        from[a] = low[a] - base;
        to[a] = high[a] - base;
      }
      // Where the image's rows can be: from each axis, and where the bands of two axes cross.
      Range rows{-((q.image.shape[1] - 1) / 2), q.image.shape[1] / 2 + 1};
      TORCH_PROJECTORS_UNROLL
      for (int a = 0; a < V; ++a) {
        const T along_row = m[a][0] * columns;
        rows.narrow(m[a][1], from[a] - (along_row > 0 ? along_row : T(0)), to[a] - (along_row < 0 ? along_row : T(0)));
        TORCH_PROJECTORS_UNROLL
        for (int c = 0; c < a; ++c) {
          const T across = m[a][0] * m[c][1] - m[c][0] * m[a][1];
          const T size = std::abs(m[a][0] * m[c][1]) + std::abs(m[c][0] * m[a][1]);
          if (!(std::abs(across) > T(0.01) * size)) continue;  // nearly parallel
          const T middle = (m[a][0] * (from[c] + to[c]) - m[c][0] * (from[a] + to[a])) / 2;
          const T half = (std::abs(m[a][0]) * (to[c] - from[c]) + std::abs(m[c][0]) * (to[a] - from[a])) / 2;
          const T rounding = std::abs(across);  // a row
          rows.narrow(across, middle - half - rounding, middle + half + rounding);
        }
      }
      for (int32_t y = rows.from; y < rows.to; ++y) {
        k[1] = y;
        Range range{0, q.image.columns};
        TORCH_PROJECTORS_UNROLL
        for (int a = 0; a < V; ++a) range.narrow(m[a][0], from[a] - m[a][1] * T(y), to[a] - m[a][1] * T(y));
        for (k[0] = range.from; k[0] < range.to; ++k[0])
          if (q.within(k)) add_sample(own, first, target, pose, k, b, p);
      }
    }
  }

  TORCH_PROJECTORS_DEVICE void add_sample(const Own& own, int32_t first, const Target& target,
                                          const Pose<T, V, I>& pose, const int32_t (&k)[I], int64_t b,
                                          int64_t p) const {
    T at[V], t[V], w = 1;
    pose.position(k, at);
    for (int a = 0; a < V; ++a) {
      const T f = std::floor(at[a] + T(Interpolation::rounding));
      t[a] = at[a] - f;
      at[a] = f + T(Interpolation::first);
    }
    TORCH_PROJECTORS_UNROLL
    for (int a = 1; a < V; ++a) {
      T own_weight = 0;
      bool touched = false;
      TORCH_PROJECTORS_UNROLL
      for (int i = 0; i < taps; ++i)
        if (at[a] + T(i) == T(target.k[a])) {
          own_weight = torch_projectors::weight<Interpolation>(i, t[a]);
          touched = true;
        }
      if (!touched) return;
      w *= own_weight;
    }
    const T x = target.mirrored ? -at[0] : at[0], step = target.mirrored ? T(-1) : T(1);
    E value{};
    T weight = 0;
    bool fetched = false;
    TORCH_PROJECTORS_UNROLL
    for (int i = 0; i < taps; ++i) {
      const T column = x + step * T(i);
      if (!(column >= T(first) && column <= T(own.last))) continue;
      if (!fetched) {
        fetched = true;
        const int32_t row = q.image.index(1, k[1]) + (I == 3 ? q.image.index(I - 1, k[I - 1]) * q.image.shape[1] : 0);
        const int64_t entry = q.start(b, p) + int64_t(row) * q.image.columns + k[0];
        const T counts = q.counts(k);
        value = scaled(counts, product(conjugate(pose.phase(k)), read(images + entry)));
        if (target.mirrored) value = conjugate(value);
        if (weights != nullptr) weight = counts * read(weights + entry);
      }
      const T all = w * torch_projectors::weight<Interpolation>(i, t[0]);
      add_scaled(volumes[own.start + int32_t(column)], real ? std::abs(all) : all, value);
      if (weights != nullptr) weight_volumes[own.start + int32_t(column)] += std::abs(all) * weight;
    }
  }
};

template <class Interpolation, class T, int V, int I, bool real>
void owned_backproject(const Problem& q, const void* images, const void* weights, void* volumes,
                       void* weight_volumes) {
  using E = Entry<T, real>;
  const int64_t rows = q.volume_shape[1] * q.volume_shape[2], columns = q.volume_shape[0] / 2 + 1;
  int64_t width = 32, segments, owners;
  do {  // enough of them to fill a device
    width /= 2;
    segments = (columns + width - 1) / width;
    owners = q.batch * rows * segments;
  } while (width > 1 && owners < 1 << 17);
  launch(OwnedBackproject<Interpolation, T, V, I, real>{
             Setting<T, V, I>(q), static_cast<const E*>(images), static_cast<const T*>(weights),
             static_cast<E*>(volumes), static_cast<T*>(weight_volumes), int32_t(width), int32_t(segments),
             int32_t(rows)},
         (owners + kThreads - 1) / kThreads, q.stream);
}

}  // namespace torch_projectors
