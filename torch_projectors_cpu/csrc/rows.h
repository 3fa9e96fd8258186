// Images row by row, in blocks of samples along x: where each sample lies, and its taps.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "pack.h"
#include "problem.h"
#include "torch_projectors/stencil.h"

namespace torch_projectors {
namespace LEVEL {

constexpr int kBlock = 64;
constexpr int kLanes = 16;  // samples are located by as many at once

template <int D>
inline Grid<D> grid_of(const int64_t (&shape)[3]) {
  Grid<D> grid;
  for (int a = 0; a < D; ++a) grid.shape[a] = shape[a];
  return grid;
}

// The rows of an image that have samples within the cutoff.
template <int D>
class Rows {
 public:
  const Grid<D> grid;

  Rows(const Grid<D>& grid, double cutoff) : grid(grid) {
    int64_t n = 1;
    for (int a = 1; a < D; ++a) n *= grid.shape[a];
    columns_.resize(size_t(n));
    for (int64_t row = 0; row < n; ++row) columns_[size_t(row)] = within(row, cutoff);
  }

  int64_t count() const { return int64_t(columns_.size()); }

  // How many columns of the row lie within the cutoff.
  int64_t columns(int64_t row) const { return columns_[size_t(row)]; }

  void frequencies(int64_t row, int64_t (&k)[2]) const {  // (y[, z])
    for (int a = 1; a < D; ++a) {
      k[a - 1] = grid.frequency(a, row % grid.shape[a]);
      row /= grid.shape[a];
    }
  }


 private:
  int64_t within(int64_t row, double cutoff) const {
    int64_t k[2];
    frequencies(row, k);
    double left = cutoff * cutoff;
    for (int a = 1; a < D; ++a) left -= double(k[a - 1]) * double(k[a - 1]);
    if (!(left >= 0)) return 0;
    const int64_t all = grid.columns();
    if (left >= double(all - 1) * double(all - 1)) return all;
    int64_t n = int64_t(std::sqrt(left));
    while (double(n + 1) * double(n + 1) <= left) ++n;
    while (double(n) * double(n) > left) --n;
    return n + 1;
  }

  std::vector<int64_t> columns_;
};

// exp(-2 pi i k s / N) for the frequencies 0..N//2 of every axis of an image.
template <class T, int D>
class Phases {
 public:
  explicit Phases(const Grid<D>& grid) : grid_(grid) {
    for (int a = 0; a < D; ++a) {
      re_[a].resize(size_t(grid.shape[a] / 2 + 1), T(1));
      im_[a].resize(re_[a].size());
    }
  }

  void set(const T* shift) {
    if (shift == nullptr) return;  // 1, as at first
    for (int a = 0; a < D; ++a) fill(-2 * kPi * double(shift[a]) / double(grid_.shape[a]), re_[a], im_[a]);
  }

  const T* re() const { return re_[0].data(); }
  const T* im() const { return im_[0].data(); }

  // Of a row with frequencies (y[, z]).
  Complex<T> of_row(const int64_t (&k)[2]) const {
    Complex<T> phase{1, 0};
    for (int a = 1; a < D; ++a) {
      const size_t i = size_t(k[a - 1] < 0 ? -k[a - 1] : k[a - 1]);
      const T re = re_[a][i], im = k[a - 1] < 0 ? -im_[a][i] : im_[a][i];
      phase = {phase.re * re - phase.im * im, phase.re * im + phase.im * re};
    }
    return phase;
  }

 private:
  static constexpr double kPi = 3.14159265358979323846;

  // By products of exp(i angle 2^b): few calls of sin and cos, and errors of a rounding a bit.
  static void fill(double angle, std::vector<T>& re, std::vector<T>& im) {
    const size_t n = re.size();
    re[0] = T(1 + 0 * angle);  // not a number for what is not
    im[0] = T(0 * angle);
    for (size_t have = 1; have < n; have *= 2) {
      const double c = std::cos(angle * double(have)), s = std::sin(angle * double(have));
      const size_t end = have < n - have ? have : n - have;
      for (size_t i = 0; i < end; ++i) {
        re[have + i] = T(re[i] * c - im[i] * s);
        im[have + i] = T(re[i] * s + im[i] * c);
      }
    }
  }

  Grid<D> grid_;
  std::vector<T> re_[D], im_[D];
};

// One pose: a sample of column j in a row lies at step * j + base, along (x, y[, z]) of the volume.
template <class T, int V, int I>
struct Pose {
  T matrix[V][I];  // times the oversampling

  Pose(const T* rotation, double oversampling) {
    for (int a = 0; a < V; ++a)
      for (int c = 0; c < I; ++c) matrix[a][c] = T(oversampling) * rotation[a * V + c];
  }

  void row(const int64_t (&k)[2], T (&step)[V], T (&base)[V]) const {
    for (int a = 0; a < V; ++a) {
      step[a] = matrix[a][0];
      base[a] = 0;
      for (int c = 1; c < I; ++c) base[a] += matrix[a][c] * T(k[c - 1]);
    }
  }
};

// Up to kBlock samples of a row.
template <class T, int V>
struct Segment {
  int64_t row, first;
  int count;
  T step[V], base[V];
  Complex<T> phase;  // of the row

  void position(int u, T (&p)[V]) const {
    for (int a = 0; a < V; ++a) p[a] = step[a] * (T(first) + T(u)) + base[a];
  }
};

// The segments of some rows of one image, in order. What they are does not depend on who asks.
template <class T, int V, int I>
class Segments {
 public:
  Segments(const Rows<I>& rows, const Phases<T, I>* phases, const Pose<T, V, I>& pose, int64_t from, int64_t to)
      : rows_(rows), phases_(phases), pose_(pose), row_(from - 1), end_(to) {}

  // Only rows with samples at low..high along the slowest axis of the volume, or mirrored; and every segment on one side
  // of x = 0, but for rounding.
  void only(T low, T high) {
    low_ = low;
    high_ = high;
    all_ = false;
  }

  bool next(Segment<T, V>& s) {
    while (at_ == within_) {
      if (++row_ >= end_) return false;
      within_ = rows_.columns(row_);
      at_ = 0;
      if (within_ == 0) continue;
      int64_t k[2];
      rows_.frequencies(row_, k);
      pose_.row(k, step_, base_);
      if (!all_ && !meets(base_[V - 1], step_[V - 1] * T(within_ - 1) + base_[V - 1])) {
        at_ = within_;
        continue;
      }
      phase_ = phases_ == nullptr ? Complex<T>{1, 0} : phases_->of_row(k);
      const T crossing = -base_[0] / step_[0];
      side_ = !all_ && crossing > 0 && crossing < T(within_) ? int64_t(crossing) + 1 : within_;
    }
    const int64_t limit = at_ < side_ ? side_ : within_;
    s.row = row_;
    s.first = at_;
    s.count = int(limit - at_ < kBlock ? limit - at_ : kBlock);
    for (int a = 0; a < V; ++a) {
      s.step[a] = step_[a];
      s.base[a] = base_[a];
    }
    s.phase = phase_;
    at_ += s.count;
    return true;
  }

 private:
  // Not so only where it is certain: a position that is not a number is not passed over.
  bool meets(T a, T b) const {
    const T lo = a < b ? a : b, hi = a < b ? b : a;
    return !((hi < low_ || lo > high_) && (-lo < low_ || -hi > high_));
  }

  const Rows<I>& rows_;
  const Phases<T, I>* phases_;
  const Pose<T, V, I>& pose_;
  int64_t row_, end_, at_ = 0, within_ = 0, side_ = 0;
  T step_[V] = {}, base_[V] = {}, low_ = 0, high_ = 0;
  bool all_ = true;
  Complex<T> phase_{1, 0};
};

// Samples along a row. Positions are mirrored such that their taps have x >= 0; `sign` says which were.
template <class Interpolation, class T, int V>
struct Block {
  static constexpr int taps = Interpolation::taps;

  alignas(64) T sign[kBlock];
  alignas(64) T t[V][kBlock];
  alignas(64) T weight[V][taps][kBlock];  // along y and z; not along x
  alignas(64) T slope[V][taps][kBlock];
  alignas(64) int32_t first[kBlock];       // column of the first tap
  alignas(64) int32_t line[taps][kBlock];  // rows of the taps within a plane, in entries
  alignas(64) int32_t plane[taps][kBlock];
  alignas(64) int32_t lowest[kBlock];      // frequency of the first tap along the slowest axis
  alignas(64) int32_t inside[kBlock];      // whether all taps are stored as they are: none mirrored, none out of the band
  bool all_inside;

  template <bool slopes>
  void locate(const Grid<V>& grid, const Segment<T, V>& segment) {
    locate<slopes>(grid, segment, 0, segment.count);
  }

  // Samples from..to - 1 of it.
  template <bool slopes>
  void locate(const Grid<V>& grid, const Segment<T, V>& segment, int from, int to) {
    T step[V], base[V];
    for (int a = 0; a < V; ++a) {
      step[a] = segment.step[a];
      base[a] = segment.base[a];
    }
    const int32_t columns = int32_t(grid.columns());
    T half[V], low[V], high[V];
    int32_t size[V];
    for (int a = 0; a < V; ++a) {
      half[a] = T(grid.shape[a] / 2);
      size[a] = int32_t(grid.shape[a]);
      low[a] = (a == 0 ? T(0) : -half[a]) - T(Interpolation::first);
      high[a] = half[a] - T(Interpolation::first + taps - 1);
    }
    // Of an even slowest axis, -n/2 is stored as n/2, far from its neighbours: the owner of a range has to look for it.
    if (size[V - 1] % 2 == 0) low[V - 1] += 1;
    int32_t good = 1;
    const T start = T(segment.first);
    const int end = to;
    // Whole vectors: what lies before and after is computed too, and not used.
    from = from / kLanes * kLanes;
    to = (to + kLanes - 1) / kLanes * kLanes;
#pragma omp simd reduction(& : good) simdlen(kLanes)
    for (int u = from; u < to; ++u) {
      T p[V], f[V];
      for (int a = 0; a < V; ++a) p[a] = step[a] * (start + T(u)) + base[a];
      T s;
      if (taps == 1) {
        s = std::floor(p[0] + T(0.5)) < 0 ? T(-1) : T(1);
        for (int a = 0; a < V; ++a) f[a] = s * std::floor(p[a] + T(0.5));
      } else {
        s = p[0] < 0 ? T(-1) : T(1);
        for (int a = 0; a < V; ++a) f[a] = std::floor(s * p[a]);
      }
      sign[u] = s;
      int32_t in = 1;
      for (int a = 0; a < V; ++a) in &= int32_t(f[a] >= low[a]) & int32_t(f[a] <= high[a]);
      // At x = 0 a tap is stored as it is, though others be mirrored.
      in &= int32_t(f[0] > low[0]) | int32_t(s > 0);
      good &= in | int32_t(u >= end);
      inside[u] = in;
      for (int a = 0; a < V; ++a) {
        t[a][u] = s * p[a] - f[a];
        f[a] = in ? f[a] : -T(Interpolation::first);
      }
      first[u] = int32_t(f[0]) + Interpolation::first;
      for (int i = 0; i < taps; ++i) {
        const int32_t y = int32_t(f[1]) + Interpolation::first + i;
        line[i][u] = (y < 0 ? y + size[1] : y) * columns;
        if (V == 3) {
          const int32_t z = int32_t(f[V - 1]) + Interpolation::first + i;
          plane[i][u] = z < 0 ? z + size[V - 1] : z;
        }
      }
      lowest[u] = int32_t(f[V - 1]) + Interpolation::first;
    }
    all_inside = good != 0;
    for (int a = 1; a < V; ++a) {
      for (int i = 0; i < taps; ++i) {
#pragma omp simd simdlen(kLanes)
        for (int u = from; u < to; ++u) {
          weight[a][i][u] = torch_projectors::weight<Interpolation>(i, t[a][u]);
          if (slopes) slope[a][i][u] = torch_projectors::slope<Interpolation>(i, t[a][u]);
        }
      }
    }
  }
};

}  // namespace LEVEL
}  // namespace torch_projectors
