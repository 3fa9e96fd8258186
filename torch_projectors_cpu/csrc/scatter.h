// Adding to a volume: the transpose of gathering, without atomics. A task owns a range of the slowest axis of the volume,
// and visits every row for the taps that are its own; so each entry gets its terms in one order, whoever owns it.
#pragma once

#include <algorithm>

#include "gather.h"

namespace torch_projectors {
namespace LEVEL {

// Samples of a row are added every so many columns, then those beside them: taps of neighbours overlap, and reading a
// few numbers of which some were only just written waits until they are stored.
constexpr int kApart = 4;

constexpr int kSlabs = 64;  // ranges of about equal load, which threads divide among each other

// Columns from..to - 1 of a row.
struct Part {
  int64_t from, to;

  bool empty() const { return from >= to; }

  Part within(const Part& other) const { return {std::max(from, other.from), std::min(to, other.to)}; }

  // And all between.
  Part with(const Part& other) const {
    if (empty()) return other;
    return other.empty() ? *this : Part{std::min(from, other.from), std::max(to, other.to)};
  }
};

// Columns for which low <= sign * position <= high, and some more for rounding.
template <class T, int V>
inline Part between(const Row<T, V>& row, int axis, int sign, double low, double high) {
  const double inverse = sign * row.columns_per_step[axis], base = sign * double(row.base[axis]), n = double(row.count);
  const double a = (low - 0.01 - base) * inverse, b = (high + 0.01 - base) * inverse;
  if (a + b != a + b) return {0, row.count};  // not numbers
  const double from = std::min(a, b), to = std::max(a, b) + 1;
  return {int64_t(std::min(std::max(from, 0.0), n)), int64_t(std::min(std::max(to, 0.0), n))};
}

template <class Interpolation, class T, int V, bool real>
struct Writer {
  static constexpr int taps = Interpolation::taps, numbers = real ? 1 : 2;
  using X = AlongX<Interpolation, T, numbers>;
  using R = AlongX<Interpolation, T, 1>;
  using P = typename X::P;
  using Q = typename R::P;

  const Volume<Interpolation, T, V>& entries;
  const Grid<V> grid;
  T* volume;
  T* weights;         // or null
  int64_t low, high;  // own frequencies of the slowest axis: low <= k < high
  int64_t begin[2], end[2];  // own entries: of frequencies >= 0, and of others
  alignas(64) int32_t task[kBlock];  // of a sample: 0 if none of its taps are own, 1 if all are inside and own, or 2

  Writer(const Volume<Interpolation, T, V>& entries, T* volume, T* weights, int64_t low, int64_t high)
      : entries(entries), grid(entries.grid), volume(volume), weights(weights), low(low), high(high) {
    const int64_t n = grid.shape[V - 1], slice = grid.size() / n;
    begin[0] = std::max<int64_t>(low, 0) * slice;
    end[0] = std::max<int64_t>(high, 0) * slice;
    begin[1] = (low + n) * slice;
    end[1] = (std::min<int64_t>(high, 0) + n) * slice;
  }

  static T tap_size(T w) { return Interpolation::negative ? magnitude(w) : w; }
  static T tap_weight(T w) { return real ? tap_size(w) : w; }

  // Taps that differ along x, and along y: of planes in a volume.
  template <bool weighted>
  void lines(const Block<Interpolation, T, V>& b, int u, int z, const P& x, const Q& w) const {
    for (int i = 0; i < (V == 3 ? taps : 1); ++i) {
      const int64_t at = b.offset[z * (V == 3 ? taps : 1) + i][u];
      const T y = V == 3 ? b.weight[1][i][u] : T(1);
      T* to = volume + numbers * at;
      store(to, load<P>(to) + x * tap_weight(y));
      if (weighted) store(weights + at, load<Q>(weights + at) + w * tap_size(y));
    }
  }

  template <bool weighted, bool all>
  void inside(const Block<Interpolation, T, V>& b, int u, const T* value, T weight) const {
    assert(b.inside(u));
    const P along = X::weights(b.t[0][u]);
    const P x = spread<T, taps * numbers, numbers>(value) * (real ? X::magnitude(along) : along);
    Q w{};
    if (weighted) w = R::magnitude(R::weights(b.t[0][u])) * weight;
    for (int i = 0; i < taps; ++i) {
      if (!all && (b.k[V - 1][u] + i < low || b.k[V - 1][u] + i >= high)) continue;
      const T z = b.weight[V - 1][i][u];
      lines<weighted>(b, u, i, x * tap_weight(z), w * tap_size(z));
    }
  }

  bool own(int64_t entry) const { return (entry >= begin[0] && entry < end[0]) || (entry >= begin[1] && entry < end[1]); }

  void at_edge(const Block<Interpolation, T, V>& b, int u, const T* value, T weight) const {
    T x_weight[taps];
    for (int i = 0; i < taps; ++i) x_weight[i] = torch_projectors::weight<Interpolation>(i, b.t[0][u]);
    b.each_tap_at_edge(entries, u, [&](int x, int y, int z, int64_t entry, bool mirrored) {
      if (!own(entry)) return;
      const T w[] = {x_weight[x], b.weight[1][y][u], V == 3 ? b.weight[V - 1][z][u] : T(1)};
      const T product = tap_weight(w[0]) * tap_weight(w[1]) * tap_weight(w[2]);
      for (int c = 0; c < numbers; ++c)
        volume[entry * numbers + c] += product * (c == 1 && mirrored ? -value[c] : value[c]);
      if (weights != nullptr) weights[entry] += tap_size(w[0]) * tap_size(w[1]) * tap_size(w[2]) * weight;
    });
  }

  void anywhere(const T (&p)[V], const T* value, T weight, T sign) const {
    // Whether any tap along the slowest axis, or its mate, may be own; all are asked that lie at the lowest frequency.
    const T lowest = std::floor(p[V - 1] + T(Interpolation::rounding)) + T(Interpolation::first);
    const T highest = lowest + T(taps - 1), half = T(grid.shape[V - 1] / 2);
    if ((highest < T(low) || lowest >= T(high)) && (-lowest < T(low) || -highest >= T(high)) && lowest > -half &&
        highest < half && p[0] - p[0] == 0 && p[1] - p[1] == 0)
      return;
    const bool finite = each_tap<Interpolation>(
        grid, p, [&](int64_t offset, bool mirrored, const T (&w)[V], const T (&)[V]) {
          if (!own(offset)) return;
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

  // Where samples with taps in this range may be: two parts of a row, in order.
  void touching(const Row<T, V>& row, Part (&parts)[2]) const {
    const int64_t half = grid.shape[V - 1] / 2;
    const double from = double(low - Interpolation::first - taps + 1) - Interpolation::rounding,
                 to = double(high - Interpolation::first);
    // -n/2 of an even axis is stored as n/2: its samples lie at the other end.
    const bool lowest = grid.shape[V - 1] % 2 == 0 && high > half;
    const double edge = double(-half - Interpolation::first + 1);
    parts[0] = parts[1] = {0, 0};
    if (!row.finite) {  // the owner of frequency 0 has to know
      parts[0] = {0, row.count};
      return;
    }
    // Most rows that have none are seen to have none at once.
    const double z[] = {double(row.base[V - 1]), double(row.position(V - 1, row.count - 1))};
    const double least = std::min(z[0], z[1]), most = std::max(z[0], z[1]);
    if (!lowest && ((most < from - 1 || least > to + 1) && (-least < from - 1 || -most > to + 1))) return;
    const auto mine = [&](int sign) {
      const Part part = between(row, V - 1, sign, from, to);
      return lowest ? part.with(between(row, V - 1, sign, -HUGE_VAL, edge)) : part;
    };
    // Near x = 0 are those that may have mirrored taps, and whose sign rounding decides.
    const Part near = between(row, 0, 1, Interpolation::first - 1, -Interpolation::first);
    const auto side = [&](int64_t column) { return row.position(0, column) < 0 ? -1 : 1; };
    if (near.empty()) {
      parts[0] = mine(side(0));
      return;
    }
    const Part either = near.within(mine(1).with(mine(-1)));
    if (near.from > 0) parts[0] = mine(side(0)).within({0, near.from});
    if (near.to < row.count) parts[1] = mine(side(row.count - 1)).within({near.to, row.count});
    Part& neighbour = parts[0].empty() ? parts[1] : parts[0];
    if (!either.empty()) neighbour = neighbour.with(either);
  }

  // What there is to do with the samples of a block.
  void sort(const Block<Interpolation, T, V>& b) {
    const int32_t least = int32_t(low), most = int32_t(high - taps);
#pragma omp simd simdlen(kLanes)
    for (int u = 0; u < b.whole(); ++u) {
      const int32_t k = b.k[V - 1][u], in = int32_t(b.place[u] == 2);
      const int32_t none = in & (int32_t(k <= least - taps) | int32_t(k >= most + taps));
      const int32_t all = in & int32_t(k >= least) & int32_t(k <= most);
      task[u] = none ? 0 : all ? 1 : 2;
    }
  }

  // `values` are mirrored as the block is.
  template <bool weighted>
  void write(const Block<Interpolation, T, V>& b, const Row<T, V>& row, const T* values,
             const T* sample_weights) const {
    for (int column = 0; column < kApart; ++column) {
      for (int u = int((column - b.first) & (kApart - 1)); u < b.count; u += kApart) {
        const T weight = weighted ? sample_weights[u] : T(0);
        if (task[u] == 1) {
          inside<weighted, true>(b, u, values + numbers * u, weight);
        } else if (task[u] != 0) {
          some<weighted>(b, row, u, values + numbers * u, weight);
        }
      }
    }
  }

  // Some taps may be mirrored, stored elsewhere, or not own.
  template <bool weighted>
  void some(const Block<Interpolation, T, V>& b, const Row<T, V>& row, int u, const T* value, T weight) const {
    if (b.inside(u)) return inside<weighted, false>(b, u, value, weight);
    if (b.at_edge(u)) return at_edge(b, u, value, weight);
    T p[V];
    for (int a = 0; a < V; ++a) p[a] = row.position(a, b.first + u);
    anywhere(p, value, weight, b.sign[u]);
  }
};

// Limits of kSlabs ranges of about equal load: where samples lie along the slowest axis, by a few of them.
template <class T, int V, int I>
std::vector<int64_t> slabs(const Problem& q, const Grid<V>& grid, const Rows<I>& rows) {
  const int64_t n = grid.shape[V - 1], lowest = -((n - 1) / 2);
  std::vector<double> load(size_t(n), 1e-3);
  const int64_t count = rows.count(), row_step = std::max<int64_t>(1, count / 16);
  const int64_t pose_step = std::max<int64_t>(1, q.poses / 256);
  Problem unshifted = q;
  unshifted.shifts = nullptr;
  View<T, V, I> view(unshifted, rows);
  for (int64_t p = 0; p < q.poses; p += pose_step) {
    view.set(0, p);
    for (int64_t index = p % row_step; index < count; index += row_step) {
      const Row<T, V> row = view.row(index);
      const int64_t column_step = std::max<int64_t>(1, row.count / 8);
      for (int64_t j = 0; j < row.count; j += column_step) {
        T z = row.position(V - 1, j);
        if (row.position(0, j) < 0) z = -z;
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
  const Volume<Interpolation, T, V> entries(grid);
  const int64_t slice = grid.size() / grid.shape[V - 1];
  const std::vector<int64_t> limits = slabs<T, V, I>(q, grid, rows);
  const int64_t slice_bytes = slice * int64_t(sizeof(T)) * (numbers + (weights == nullptr ? 0 : 1));
  const bool far = is_far(grid, sizeof(T) * (numbers + (weights == nullptr ? 0 : 1)));
  const auto add = [&](int64_t b, int64_t low, int64_t high, View<T, V, I>& view) {
    Writer<Interpolation, T, V, real> writer(
        entries, static_cast<T*>(volumes) + b * q.volume_stride * numbers,
        weights == nullptr ? nullptr : static_cast<T*>(weight_volumes) + b * q.volume_stride, low, high);
    for (int64_t k = low; k < high && !q.add; ++k) {
      const int64_t at = (k < 0 ? k + grid.shape[V - 1] : k) * slice;
      std::memset(writer.volume + at * numbers, 0, size_t(slice * numbers) * sizeof(T));
      if (weights != nullptr) std::memset(writer.weights + at, 0, size_t(slice) * sizeof(T));
    }
    Block<Interpolation, T, V> block;
    alignas(64) T values[numbers * kBlock], sample_weights[kBlock];
    for (int64_t p = 0; p < q.poses; ++p) {
      view.set(b, p);
      for (int64_t index = 0; index < rows.count(); ++index) {
        if (rows.columns(index) == 0) continue;
        const Row<T, V> row = view.row(index);
        Part parts[2];
        writer.touching(row, parts);
        const Part all = parts[0].with(parts[1]);
        // Blocks of the row, whatever of them is own: the order within a block is the same for every owner.
        for (int64_t from = all.from / kBlock * kBlock; from < all.to; from += kBlock) {
          const Part whole{from, from + kBlock}, part = parts[0].within(whole).with(parts[1].within(whole));
          if (part.empty()) continue;
          block.first = part.from;
          block.count = int(part.to - part.from);
          block.template locate<false>(entries, row);
          if (far) {
            block.template prefetch<numbers>(writer.volume);
            if (weights != nullptr) block.template prefetch<1>(writer.weights);
          }
          writer.sort(block);
          // In whole vectors where another row follows in memory.
          const int end = index + 1 < rows.count() && rows.grid.columns() >= kLanes ? block.whole() : block.count;
          const int64_t start = view.start() + index * rows.grid.columns() + block.first;
          const T *in = static_cast<const T*>(images) + start * numbers, *counts = view.counts.data() + block.first;
          if (weights != nullptr) {
            const T* w = static_cast<const T*>(weights) + start;
#pragma omp simd
            for (int u = 0; u < end; ++u) sample_weights[u] = w[u] * counts[u];
          }
          if (real) {
#pragma omp simd
            for (int u = 0; u < end; ++u) values[u] = in[u] * counts[u];
          } else {
            const Complex<T> c = row.phase;
            const T *xr = view.phases.re() + block.first, *xi = view.phases.im() + block.first;
#pragma omp simd
            for (int u = 0; u < end; ++u) {
              const T re = xr[u] * c.re - xi[u] * c.im, im = xr[u] * c.im + xi[u] * c.re;
              values[numbers * u] = in[2 * u] * re + in[2 * u + 1] * im;
              values[numbers * u + numbers - 1] = (in[2 * u + 1] * re - in[2 * u] * im) * block.sign[u];
            }
          }
          if (weights == nullptr)
            writer.template write<false>(block, row, values, sample_weights);
          else
            writer.template write<true>(block, row, values, sample_weights);
        }
      }
    }
  };
  // Limits do not change what an entry gets, and in which order.
  parallel(kSlabs, [&](int64_t from_slab, int64_t to_slab) {
    View<T, V, I> view(q, rows);
    const int64_t begin = limits[size_t(from_slab)], end = limits[size_t(to_slab)];
    const int64_t bytes = (end - begin) * slice_bytes;
    const int64_t step = bytes <= kCachedRange ? end - begin : std::max<int64_t>(1, kSlabBytes / slice_bytes);
    for (int64_t b = 0; b < q.batch; ++b)
      for (int64_t low = begin; low < end; low += step) add(b, low, std::min(low + step, end), view);
  });
}

}  // namespace LEVEL
}  // namespace torch_projectors
