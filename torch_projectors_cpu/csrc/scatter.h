// Adding to a volume: the transpose of gathering, without atomics. A task owns a range of the slowest axis of the volume,
// and visits every row for the taps that are its own; so each entry gets its terms in one order, whoever owns it.
#pragma once

#include <algorithm>

#include "gather.h"

namespace torch_projectors {
namespace LEVEL {

constexpr int kSlabs = 64;  // ranges of about equal load, which threads divide among each other

template <class Interpolation, class T, int V, bool real>
struct Writer {
  static constexpr int taps = Interpolation::taps, numbers = real ? 1 : 2;
  using X = AlongX<Interpolation, T, numbers>;
  using R = AlongX<Interpolation, T, 1>;
  using P = typename X::P;
  using Q = typename R::P;

  Grid<V> grid;
  T* volume;
  T* weights;  // or null
  int64_t low, high;  // own frequencies of the slowest axis: low <= k < high
  int64_t plane_size;

  static T tap_size(T w) { return Interpolation::negative ? magnitude(w) : w; }
  static T tap_weight(T w) { return real ? tap_size(w) : w; }

  void add(T* to, const P& x) const { store(to, load<P>(to) + x); }

  template <bool weighted>
  void line(const Block<Interpolation, T, V>& b, int u, int i, int64_t start, const P& x, const Q& w) const {
    const int64_t at = start + b.line[i][u];
    const T y = b.weight[1][i][u];
    add(volume + numbers * at, x * tap_weight(y));
    if (weighted) store(weights + at, load<Q>(weights + at) + w * tap_size(y));
  }

  // What a tap along the slowest axis has of it.
  template <bool weighted>
  void layer(const Block<Interpolation, T, V>& b, int u, int i, const P& x, const Q& w) const {
    if constexpr (V == 2) {
      line<weighted>(b, u, i, b.first[u], x, w);
    } else {
      const T z = b.weight[V - 1][i][u];
      const int64_t start = plane_size * b.plane[i][u] + b.first[u];
      const P xz = x * tap_weight(z);
      const Q wz = w * tap_size(z);
      for (int j = 0; j < taps; ++j) line<weighted>(b, u, j, start, xz, wz);
    }
  }

  template <bool weighted>
  void inside(const Block<Interpolation, T, V>& b, int u, const T* value, T weight) const {
    const P along = X::weights(b.t[0][u]);
    const P x = spread<T, taps * numbers, numbers>(value) * (real ? X::magnitude(along) : along);
    Q w{};
    if (weighted) w = R::magnitude(R::weights(b.t[0][u])) * weight;
    // Of planes in a volume, of lines in an image, those that are owned: mostly all.
    const int lowest = b.lowest[u];
    if (lowest >= low && lowest + taps <= high) {
      for (int i = 0; i < taps; ++i) layer<weighted>(b, u, i, x, w);
    } else {
      for (int i = 0; i < taps; ++i)
        if (lowest + i >= low && lowest + i < high) layer<weighted>(b, u, i, x, w);
    }
  }

  void anywhere(const T (&p)[V], const T* value, T weight, T sign) const {
    const int64_t stride = grid.size() / grid.shape[V - 1];
    const bool finite = each_tap<Interpolation>(
        grid, p, [&](int64_t offset, bool mirrored, const T (&w)[V], const T (&)[V]) {
          const int64_t k = grid.frequency(V - 1, offset / stride);
          if (k < low || k >= high) return;
          T product = 1, size = 1;
          for (int a = 0; a < V; ++a) {
            product *= tap_weight(w[a]);
            size *= magnitude(w[a]);
          }
          for (int c = 0; c < numbers; ++c) {
            const T turned = c == 1 ? (mirrored ? -sign : sign) * value[c] : value[c];
            volume[offset * numbers + c] += product * turned;
          }
          if (weights != nullptr) weights[offset] += size * weight;
        });
    if (finite || low > 0 || high <= 0) return;
    // Nobody knows where to: let it be seen.
    for (int c = 0; c < numbers; ++c) volume[c] = T(NAN);
    if (weights != nullptr) weights[0] = T(NAN);
  }

  // Samples from..to - 1 of a segment.
  struct Part {
    int from, to;

    bool empty() const { return from >= to; }
    Part within(const Part& other) const { return {std::max(from, other.from), std::min(to, other.to)}; }
    Part with(const Part& other) const {
      if (empty()) return other;
      return other.empty() ? *this : Part{std::min(from, other.from), std::max(to, other.to)};
    }
  };

  // The samples of a segment for which low <= slope * u + start <= high, and some more for rounding.
  static Part between(double low, double high, double slope, double start, int count) {
    if (std::fabs(slope) < 1e-9) return start < low - 1e-3 || start > high + 1e-3 ? Part{0, 0} : Part{0, count};
    double a = (low - start) / slope, b = (high - start) / slope;
    if (a > b) std::swap(a, b);
    if (!(a <= b)) return {0, count};  // not numbers
    const double n = count;
    return {int(std::min(std::max(std::floor(a), 0.0), n)), int(std::max(std::min(std::ceil(b) + 1, n), 0.0))};
  }

  // Samples with taps in this range, by kinds that do not depend on the range: those near x = 0, which may have mirrored
  // taps, and signs that rounding decides; those with a tap at the lowest frequency, which may be stored as the highest;
  // and all others.
  void touching(const Segment<T, V>& s, Part (&parts)[3]) const {
    const double first = double(s.first), x = s.step[0] * (first + 0.5 * s.count) + s.base[0], side = x < 0 ? -1 : 1;
    const double slope = side * s.step[V - 1], start = side * (s.step[V - 1] * first + s.base[V - 1]);
    const double from = double(low) - Interpolation::first - taps, to = double(high) - Interpolation::first;
    const Part own = between(from, to, slope, start, s.count);
    const Part either = own.with(between(from, to, -slope, -start, s.count));
    const Part near = between(-3, 3, s.step[0], s.step[0] * first + s.base[0], s.count);
    const Part rest = near.empty() ? Part{0, s.count} : near.from == 0 ? Part{near.to, s.count} : Part{0, near.from};
    const double edge = double(-(grid.shape[V - 1] / 2) - Interpolation::first + 1);
    const Part lowest = between(-HUGE_VAL, edge, slope, start, s.count).within(rest);
    parts[0] = near.within(either);
    parts[1] = lowest.within(either);
    parts[2] = own.within(lowest.empty()             ? rest
                          : lowest.from == rest.from ? Part{lowest.to, rest.to}
                                                     : Part{rest.from, lowest.from});
  }

  // `values` are mirrored as the block is.
  template <bool weighted>
  void write(const Block<Interpolation, T, V>& b, const Segment<T, V>& s, int from, int to, const T* values,
             const T* sample_weights) const {
    for (int u = from; u < to; ++u) {
      const T weight = weighted ? sample_weights[u] : T(0);
      if (b.inside[u]) {
        inside<weighted>(b, u, values + numbers * u, weight);
      } else {
        T p[V];
        s.position(u, p);
        anywhere(p, values + numbers * u, weight, b.sign[u]);
      }
    }
  }
};

// Limits of kSlabs ranges of about equal load: where samples lie along the slowest axis, by a few of them.
template <class T, int V, int I>
std::vector<int64_t> slabs(const Problem& q, const Grid<V>& grid, const Rows<I>& rows) {
  const int64_t n = grid.shape[V - 1], lowest = -((n - 1) / 2);
  std::vector<double> load(size_t(n), 1e-3);
  const int64_t count = rows.count(), row_step = std::max<int64_t>(1, count / 16);
  const int64_t pose_step = std::max<int64_t>(1, q.poses / 256);
  for (int64_t p = 0; p < q.poses; p += pose_step) {
    const Pose<T, V, I> pose(Poses<T>{q}.rotation(0, p), q.oversampling);
    for (int64_t row = p % row_step; row < count; row += row_step) {
      int64_t k[2];
      rows.frequencies(row, k);
      const int64_t within = rows.columns(row);
      T step[V], base[V];
      pose.row(k, step, base);
      const int64_t column_step = std::max<int64_t>(1, within / 8);
      for (int64_t j = 0; j < within; j += column_step) {
        T z = step[V - 1] * T(j) + base[V - 1];
        if (step[0] * T(j) + base[0] < 0) z = -z;
        const double at = double(z) - double(lowest);
        if (at >= 0 && at < double(n)) load[size_t(at)] += 1;
      }
    }
  }
  double total = 0;
  for (double x : load) total += x;
  std::vector<int64_t> limits{lowest};
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += load[size_t(i)];
    while (int(limits.size()) < kSlabs && sum >= total * double(limits.size()) / kSlabs) limits.push_back(lowest + i + 1);
  }
  limits.resize(kSlabs, lowest + n);
  limits.push_back(lowest + n);
  return limits;
}

// Of more memory than the first, a thread adds to as much as the second at once: it stays in cache while all images pass.
constexpr int64_t kCachedRange = 32 << 20, kSlabBytes = 8 << 20;

template <class Interpolation, class T, int V, int I, bool real>
void backproject(const Problem& q, const void* images, const void* weights, void* volumes, void* weight_volumes,
                 const Parallel& parallel) {
  constexpr int numbers = real ? 1 : 2;
  const Grid<V> grid = grid_of<V>(q.volume_shape);
  const Rows<I> rows(grid_of<I>(q.image_shape), q.cutoff);
  const int64_t slice = grid.size() / grid.shape[V - 1];
  const bool shifted = !real && q.shifts != nullptr;
  const std::vector<int64_t> limits = slabs<T, V, I>(q, grid, rows);
  const int64_t slice_bytes = slice * int64_t(sizeof(T)) * (numbers + (weights == nullptr ? 0 : 1));
  const auto add = [&](int64_t b, int64_t low, int64_t high, Phases<T, I>& phases) {
    const Writer<Interpolation, T, V, real> writer{
        grid, static_cast<T*>(volumes) + b * q.volume_stride * numbers,
        weights == nullptr ? nullptr : static_cast<T*>(weight_volumes) + b * q.volume_stride, low, high,
        grid.columns() * grid.shape[1]};
    for (int64_t k = low; k < high; ++k) {
      const int64_t at = (k < 0 ? k + grid.shape[V - 1] : k) * slice;
      std::memset(writer.volume + at * numbers, 0, size_t(slice * numbers) * sizeof(T));
      if (weights != nullptr) std::memset(writer.weights + at, 0, size_t(slice) * sizeof(T));
    }
    Block<Interpolation, T, V> block;
    alignas(64) T values[numbers * kBlock];
    for (int64_t p = 0; p < q.poses; ++p) {
      const Poses<T> poses{q};
      const Pose<T, V, I> pose(poses.rotation(b, p), q.oversampling);
      if (shifted) phases.set(poses.shift(b, p));
      const int64_t image = b * q.image_strides[0] + p * q.image_strides[1];
      Segments<T, V, I> segments(rows, shifted ? &phases : nullptr, pose, 0, rows.count());
      segments.only(T(low - Interpolation::first - Interpolation::taps - 1), T(high - Interpolation::first + 1));
      for (Segment<T, V> s; segments.next(s);) {
        typename Writer<Interpolation, T, V, real>::Part parts[3];
        writer.touching(s, parts);
        const int64_t start = image + s.row * rows.grid.columns() + s.first;
        const T* in = static_cast<const T*>(images) + start * numbers;
        const T* w = weights == nullptr ? nullptr : static_cast<const T*>(weights) + start;
        const auto all = parts[0].with(parts[1]).with(parts[2]);
        if (all.from >= all.to) continue;
        block.template locate<false>(grid, s, all.from, all.to);
        if (real) {
          std::memcpy(values, in, size_t(s.count) * sizeof(T));
        } else {
          const Complex<T> c = s.phase;
          const T *xr = phases.re() + s.first, *xi = phases.im() + s.first;
#pragma omp simd
          for (int u = all.from; u < all.to; ++u) {
            const T re = xr[u] * c.re - xi[u] * c.im, im = xr[u] * c.im + xi[u] * c.re;
            values[numbers * u] = in[2 * u] * re + in[2 * u + 1] * im;
            values[numbers * u + numbers - 1] = (in[2 * u + 1] * re - in[2 * u] * im) * block.sign[u];
          }
        }
        for (const auto& part : parts) {
          if (weights == nullptr)
            writer.template write<false>(block, s, part.from, part.to, values, w);
          else
            writer.template write<true>(block, s, part.from, part.to, values, w);
        }
      }
    }
  };
  // Limits do not change what an entry gets, and in which order.
  parallel(kSlabs, [&](int64_t from_slab, int64_t to_slab) {
    Phases<T, I> phases(rows.grid);
    const int64_t begin = limits[size_t(from_slab)], end = limits[size_t(to_slab)];
    const int64_t bytes = (end - begin) * slice_bytes;
    const int64_t step = bytes <= kCachedRange ? end - begin : std::max<int64_t>(1, kSlabBytes / slice_bytes);
    for (int64_t b = 0; b < q.batch; ++b)
      for (int64_t low = begin; low < end; low += step) add(b, low, std::min(low + step, end), phases);
  });
}

}  // namespace LEVEL
}  // namespace torch_projectors
