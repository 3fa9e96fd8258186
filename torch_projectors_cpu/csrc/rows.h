// Images row by row, in blocks of samples along x: where each sample lies, and its taps.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "pack.h"
#include "problem.h"
#include "torch_projectors/stencil.h"

namespace torch_projectors {
namespace LEVEL {

// A function of its own: within another, compilers forget which arrays cannot overlap, and take one sample at a time.
#if defined(__GNUC__)
#if defined(__clang__)
#define TORCH_PROJECTORS_APART __attribute__((noinline))
#else
#define TORCH_PROJECTORS_APART __attribute__((noinline, noclone))
#endif
#define TORCH_PROJECTORS_RESTRICT __restrict__
#else
#define TORCH_PROJECTORS_APART __declspec(noinline)
#define TORCH_PROJECTORS_RESTRICT __restrict
#endif

constexpr int kBlock = 64;
constexpr int kLanes = 8;  // samples are located by as many at once

template <class T>
inline T magnitude(T x) {
  return x < 0 ? -x : x;
}

template <int D>
inline Grid<D> grid_of(const int64_t (&shape)[3]) {
  Grid<D> grid;
  for (int a = 0; a < D; ++a) grid.shape[a] = shape[a];
  return grid;
}

// Whether most entries, of so many bytes, come from memory: then those of a block are asked for at once. By themselves
// processors wait for fewer, being busy with fewer samples.
template <int D>
inline bool is_far(const Grid<D>& grid, size_t bytes) {
  return grid.size() * int64_t(bytes) > 4 << 20;
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
    for (auto& axis : frequencies_) axis.resize(size_t(n));
    for (int64_t row = 0; row < n; ++row) {
      Frequencies k;
      int64_t rest = row;
      for (int a = 1; a < D; ++a) {
        k[size_t(a - 1)] = grid.frequency(a, rest % grid.shape[a]);
        frequencies_[a - 1][size_t(row)] = int32_t(k[size_t(a - 1)]);
        rest /= grid.shape[a];
      }
      columns_[size_t(row)] = int32_t(within(k, cutoff));
    }
  }

  int64_t count() const { return int64_t(columns_.size()); }

  int64_t samples() const {
    int64_t n = 0;
    for (const int32_t columns : columns_) n += columns;
    return n;
  }

  // How many columns of the row lie within the cutoff.
  int64_t columns(int64_t row) const { return columns_[size_t(row)]; }

  using Frequencies = std::array<int64_t, D - 1>;  // (y[, z])

  Frequencies frequencies(int64_t row) const {
    Frequencies k;
    for (int a = 1; a < D; ++a) k[size_t(a - 1)] = frequencies_[a - 1][size_t(row)];
    return k;
  }

  // Of all rows, one after the other.
  const int32_t* columns() const { return columns_.data(); }
  const int32_t* frequencies_along(int axis) const { return frequencies_[axis - 1].data(); }

 private:
  int64_t within(const Frequencies& k, double cutoff) const {
    double left = cutoff * cutoff;
    for (const int64_t f : k) left -= double(f) * double(f);
    if (!(left >= 0)) return 0;
    const int64_t all = grid.columns();
    if (left >= double(all - 1) * double(all - 1)) return all;
    int64_t n = int64_t(std::sqrt(left));
    while (double(n + 1) * double(n + 1) <= left) ++n;
    while (double(n) * double(n) > left) --n;
    return n + 1;
  }

  std::vector<int32_t> columns_, frequencies_[D - 1];
};

// exp(-2 pi i k s / N) for the frequencies 0..N//2 of every axis of an image.
template <class T, int D>
class Phases {
 public:
  explicit Phases(const Grid<D>& grid) : grid_(grid) {
    for (int a = 0; a < D; ++a) {
      re_[a].resize(size_t(grid.shape[a] / 2 + 1 + kLanes), T(1));  // to the end of a vector
      im_[a].resize(re_[a].size());
    }
  }

  void set(const T* shift) {
    for (int a = 0; a < D; ++a) fill(-2 * kPi * double(shift[a]) / double(grid_.shape[a]), re_[a], im_[a]);
  }

  // Times a factor for each of the columns, of which all but the first and the last are 1.
  void count(const std::vector<T>& counts) {
    const size_t last = size_t(grid_.columns() - 1);
    for (size_t column = 0; column <= last; column += last > 0 ? last : 1) {
      re_[0][column] *= counts[column];
      im_[0][column] *= counts[column];
    }
  }

  const T* re() const { return re_[0].data(); }
  const T* im() const { return im_[0].data(); }

  // Of a row with frequencies (y[, z]).
  Complex<T> of_row(const std::array<int64_t, D - 1>& k) const {
    Complex<T> phase{1, 0};
    for (int a = 1; a < D; ++a) {
      const int64_t f = k[size_t(a - 1)];
      const size_t i = size_t(f < 0 ? -f : f);
      const T re = re_[a][i], im = f < 0 ? -im_[a][i] : im_[a][i];
      phase = {phase.re * re - phase.im * im, phase.re * im + phase.im * re};
    }
    return phase;
  }

 private:
  static constexpr double kPi = 3.14159265358979323846;

  // By products of exp(i angle 2^b), each the square of the last: what that adds to the error of the last is no more
  // than the rounding of the angle does.
  static void fill(double angle, std::vector<T>& re, std::vector<T>& im) {
    const size_t n = re.size() - kLanes;
    re[0] = T(1 + 0 * angle);  // not a number for what is not
    im[0] = T(0 * angle);
    double c = std::cos(angle), s = std::sin(angle);
    for (size_t have = 1; have < n; have *= 2) {
      const size_t end = have < n - have ? have : n - have;
      for (size_t i = 0; i < end; ++i) {
        re[have + i] = T(re[i] * c - im[i] * s);
        im[have + i] = T(re[i] * s + im[i] * c);
      }
      const double square = c * c - s * s;
      s *= 2 * c;
      c = square;
    }
  }

  Grid<D> grid_;
  std::vector<T> re_[D], im_[D];
};

// The samples of a row that lie within the cutoff: column j lies at position(.., j) along (x, y[, z]) of the volume.
template <class T, int V>
struct Row {
  int64_t index, count;
  T step[V], base[V];
  Complex<T> phase;

  T position(int axis, int64_t column) const { return step[axis] * T(column) + base[axis]; }
};

// One image at a time, and how it lies in its volume.
template <class T, int V, int I>
class View {
 public:
  const Rows<I>& rows;
  Phases<T, I> phases;    // times the counts
  std::vector<T> counts;  // of the columns: how much their entries count in the pairing of volumes and images
  T matrix[V][I];         // times the oversampling
  bool finite = true;     // whether all positions are

  View(const Problem& q, const Rows<I>& rows)
      : rows(rows), phases(rows.grid), counts(size_t(rows.grid.columns() + kLanes), T(1)), q_(q) {
    if (q.pairs_once) {
      counts[0] = T(0.5);
      if (rows.grid.shape[0] % 2 == 0) counts[size_t(rows.grid.columns() - 1)] = T(0.5);
    }
    phases.count(counts);
  }

  void set(int64_t batch, int64_t pose) {
    if (batch == batch_ && pose == pose_) return;
    batch_ = batch;
    pose_ = pose;
    const T* rotation =
        static_cast<const T*>(q_.rotations) + batch * q_.rotation_strides[0] + pose * q_.rotation_strides[1];
    for (int a = 0; a < V; ++a)
      for (int c = 0; c < I; ++c) matrix[a][c] = T(q_.oversampling) * rotation[a * V + c];
    finite = true;
    for (int a = 0; a < V; ++a) {
      double reach = 0;
      for (int c = 0; c < I; ++c) reach += std::abs(double(matrix[a][c])) * double(rows.grid.shape[c]);
      finite &= reach < double(std::numeric_limits<T>::max());
    }
    if (q_.shifts == nullptr) return;  // all phases are 1, as at first
    phases.set(static_cast<const T*>(q_.shifts) + batch * q_.shift_strides[0] + pose * q_.shift_strides[1]);
    phases.count(counts);
  }

  int64_t number() const { return batch_ * q_.poses + pose_; }

  // Of the image among all, in entries.
  int64_t start() const { return batch_ * q_.image_strides[0] + pose_ * q_.image_strides[1]; }

  int64_t start_of_volume() const { return batch_ * q_.volume_stride; }

  Row<T, V> row(int64_t index) const {
    Row<T, V> row;
    row.index = index;
    row.count = rows.columns(index);
    const auto k = rows.frequencies(index);
    for (int a = 0; a < V; ++a) {
      row.step[a] = matrix[a][0];
      row.base[a] = 0;
      for (int c = 1; c < I; ++c) row.base[a] += matrix[a][c] * T(k[size_t(c - 1)]);
    }
    row.phase = phases.of_row(k);
    return row;
  }

 private:
  const Problem& q_;
  int64_t batch_ = -1, pose_ = -1;
};

// What is the same for all samples: which first taps of theirs are in the band, and how far apart entries lie.
template <class Interpolation, class T, int V>
struct Volume {
  Grid<V> grid;
  // One for each lane; the last, along x, is of mirrored samples.
  alignas(64) T low[V][kLanes], high[V][kLanes], above[kLanes];
  uint32_t columns, plane, all;  // entries; may overflow where none is inside
  bool roomy = true;             // whether offsets can be read of samples that are not inside, too

  // `either`: whether what belongs to x = 0 may be stored there as it is or with its mate.
  explicit Volume(const Grid<V>& grid, bool either = false) : grid(grid) {
    for (int a = 0; a < V; ++a) {
      const T least = (a == 0 ? T(0) : -T(grid.shape[a] / 2)) - T(Interpolation::first);
      T most = T(grid.shape[a] / 2) - T(Interpolation::first + Interpolation::taps - 1);
      if (grid.size() > std::numeric_limits<int32_t>::max()) most = least - 1;
      roomy &= most >= least && grid.stored(a) >= Interpolation::taps;
      for (int lane = 0; lane < kLanes; ++lane) {
        low[a][lane] = least;
        high[a][lane] = most;
        if (a == 0) above[lane] = least - T(either);
      }
    }
    columns = uint32_t(grid.columns());
    plane = columns * uint32_t(grid.shape[1]);
    all = plane * uint32_t(grid.shape[V - 1]);
  }
};

// Up to kBlock neighbouring samples of a row. Positions are mirrored such that their taps have x >= 0; `sign` says which
// were.
template <class Interpolation, class T, int V>
struct Block {
  static constexpr int taps = Interpolation::taps, lines = V == 3 ? taps * taps : taps;

  int64_t first;  // column
  int count;
  alignas(64) T sign[kBlock];
  static constexpr int room = kBlock + 16;  // vectors of factors are read that begin at any sample
  alignas(64) T t[V][room];
  // Along y and z, not along x; also where an owner wants them. Else they are as soon computed as read.
  static constexpr bool stored = Interpolation::degree > 1;
  alignas(64) T weight[V][taps][room];
  alignas(64) T slope[V][taps][room];
  alignas(64) int32_t offset[lines][kBlock];  // of the first stored tap of every line along x, in entries: y fastest
  alignas(64) int32_t k[V][kBlock];           // frequencies of the first tap
  alignas(64) int32_t place[kBlock];
  bool all_inside;

  // All taps are in the band, offsets have 32 bits, and either all are stored as they are, or some are mirrored.
  bool inside(int u) const { return place[u] == 2; }
  // Also where x = 0 may be stored either way, which is inside: numbers that are not finite go the way of the edge.
  bool at_edge(int u) const { return place[u] == 1 || (place[u] == 2 && sign[u] < 0 && k[0][u] == 0); }

  // Of as many as are located at once.
  bool all_inside_from(int u) const {
    int32_t all = 2;
    for (int lane = 0; lane < kLanes; ++lane) all &= place[u + lane];
    return all == 2;
  }

  // Whether memory may be read at the offsets of samples from u on; for assertions.
  bool readable(const Grid<V>& grid, int u, int samples) const {
    for (const auto& line : offset)
      for (int i = u; i < u + samples; ++i)
        if (line[i] < 0 || line[i] + taps > grid.size()) return false;
    return true;
  }

  // Count, to the end of a vector: what lies beyond is computed too, and not used.
  int whole() const { return int(unsigned(count + kLanes - 1) & ~unsigned(kLanes - 1)); }

  // If `owned`, taps get no weight that lie on planes other than low <= |k| < high, and are placed on one of these.
  template <bool slopes, bool owned = false>
  TORCH_PROJECTORS_APART void locate(const Volume<Interpolation, T, V>& volume, const Row<T, V>& row, int32_t low = 0,
                                     int32_t high = 0) {
    // Not copied: two at once would be, and wait for each to be stored.
    const T *TORCH_PROJECTORS_RESTRICT step = row.step, *TORCH_PROJECTORS_RESTRICT base = row.base;
    const int to = whole();
    for (int from = 0; from < to; from += kLanes) {
      const T start = T(first + from);
#pragma omp simd simdlen(kLanes)
      for (int lane = 0; lane < kLanes; ++lane) {
        const int u = from + lane;
        T p[V], f[V];
        for (int a = 0; a < V; ++a) p[a] = step[a] * (start + T(lane)) + base[a];
        T s;
        if (taps == 1) {
          s = std::floor(p[0] + T(0.5)) < 0 ? T(-1) : T(1);
          for (int a = 0; a < V; ++a) f[a] = s * std::floor(p[a] + T(0.5));
        } else {
          // The same taps as p has: on a grid point, that and the next one as p sees it.
          const T mirrored = p[0] < 0 ? T(1) : T(0);
          s = 1 - 2 * mirrored;
          for (int a = 0; a < V; ++a) f[a] = s * std::floor(p[a]) - mirrored;
        }
        sign[u] = s;
        int32_t band = int32_t(f[0] <= volume.high[0][lane]);
        for (int a = 1; a < V; ++a)
          band &= int32_t(f[a] >= volume.low[a][lane]) & int32_t(f[a] <= volume.high[a][lane]);
        // At x = 0 a tap is stored as it is, though others be mirrored.
        const int32_t in = band & int32_t(f[0] >= volume.low[0][lane]) &
                           (int32_t(f[0] > volume.above[lane]) | int32_t(s > 0));
        place[u] = band + in;
        for (int a = 0; a < V; ++a) {
          t[a][u] = s * p[a] - f[a];
          k[a][u] = int32_t(band ? f[a] : -T(Interpolation::first)) + Interpolation::first;
        }
      }
    }
    // Along a row, positions rise or fall.
    if (!owned) all_inside = inside(0) && inside(count - 1) && sign[0] == sign[count - 1];
    for (int a = 1; a < V && (stored || owned); ++a) {
#pragma omp simd simdlen(kLanes)
      for (int u = 0; u < to; ++u) {
        for (int i = 0; i < taps; ++i) {
          const T w = torch_projectors::weight<Interpolation>(i, t[a][u]);
          // low <= |k| < high: none other is as near to the middle.
          const int32_t plane = magnitude(2 * (k[a][u] + i)) - (low + high - 1);
          weight[a][i][u] = !owned || a < V - 1 || magnitude(plane) < high - low ? w : T(0);
          if (slopes) slope[a][i][u] = torch_projectors::slope<Interpolation>(i, t[a][u]);
        }
      }
    }
    const uint32_t columns = volume.columns, plane = volume.plane, all = volume.all;
    const int32_t last = high - 1;
#pragma omp simd simdlen(kLanes)
    for (int u = 0; u < to; ++u) {
      const uint32_t x = uint32_t(taps > 2 && k[0][u] < 0 ? 0 : k[0][u]), y = uint32_t(k[1][u]) * columns + x;
      const auto own = [&](int32_t k) {
        const int32_t minus = k >> 31;  // -1 or 0: selects would be made masks, one of another
        int32_t plane = (k ^ minus) - minus;
        plane = plane > low ? plane : low;
        plane = plane < last ? plane : last;
        return owned ? (plane ^ minus) - minus : k;
      };
      uint32_t line[taps];
      if (V == 2) {
        for (int i = 0; i < taps; ++i) {
          const int32_t at = own(k[1][u] + i);
          offset[i % lines][u] = int32_t(uint32_t(at) * columns + x + (at < 0 ? plane : 0));
        }
      } else {
        for (int i = 0; i < taps; ++i) line[i] = y + uint32_t(i) * columns + (k[1][u] + i < 0 ? plane : 0);
        for (int j = 0; j < taps; ++j) {
          const int32_t at = own(k[V - 1][u] + j);
          const uint32_t slice = uint32_t(at) * plane + (at < 0 ? all : 0);
          for (int i = 0; i < taps; ++i) offset[(j * taps + i) % lines][u] = int32_t(slice + line[i]);
        }
      }
    }
  }

  template <int numbers>
  TORCH_PROJECTORS_WITHIN void prefetch(const T* volume, int u) const {
    for (const auto& line : offset) LEVEL::prefetch(volume + numbers * int64_t(line[u]));
  }

  // Where the taps of a sample at the edge are stored; the first or the first two along x as their mates.
  struct Edge {
    const Block& block;
    const int u, kind;  // which: TapsAlongX
    int64_t mate[V][taps];

    Edge(const Block& block, const Volume<Interpolation, T, V>& volume, int u)
        : block(block),
          u(u),
          // x = 0 of a mirrored sample is stored as it is.
          kind(taps > 2 ? (block.sign[u] < 0 ? 0 : -1) - 2 * block.k[0][u] : 0) {
      int64_t stride = volume.columns;
      for (int a = 1; a < V; ++a) {
        for (int i = 0; i < taps; ++i) {
          const int64_t f = block.k[a][u] + i;
          mate[a][i] = (f > 0 ? volume.grid.shape[a] - f : -f) * stride;
        }
        stride *= volume.grid.shape[a];
      }
    }

    // Of the line of taps, or that of their mates: where x = 0 is stored.
    int64_t start(bool mates, int y, int z) const {
      if (mates) return mate[1][y] + (V == 3 ? mate[V - 1][z] : 0);
      return int64_t(block.offset[(z * taps + y) % lines][u]) - (block.k[0][u] > 0 ? block.k[0][u] : 0);
    }
  };
};

}  // namespace LEVEL
}  // namespace torch_projectors
