// One sample: where it lies, and its taps.
#pragma once

#include <cmath>
#include <type_traits>

#include "problem.h"
#include "torch_projectors/interpolation.h"

namespace torch_projectors {

// What an entry of a volume or an image is: a complex number or, as a weight, a real one.
template <class T, bool real>
using Entry = std::conditional_t<real, T, Pair<T>>;

template <class T>
TORCH_PROJECTORS_DEVICE T scaled(T by, T x) {
  return by * x;
}
template <class T>
TORCH_PROJECTORS_DEVICE Pair<T> scaled(T by, Pair<T> x) {
  return {by * x.re, by * x.im};
}

// sum += by * x
template <class T>
TORCH_PROJECTORS_DEVICE void add_scaled(T& sum, T by, T x) {
  sum += by * x;
}
template <class T>
TORCH_PROJECTORS_DEVICE void add_scaled(Pair<T>& sum, T by, Pair<T> x) {
  sum.re += by * x.re;
  sum.im += by * x.im;
}

template <class T>
TORCH_PROJECTORS_DEVICE T conjugate(T x) {
  return x;
}
template <class T>
TORCH_PROJECTORS_DEVICE Pair<T> conjugate(Pair<T> x) {
  return {x.re, -x.im};
}

template <class T>
TORCH_PROJECTORS_DEVICE Pair<T> product(Pair<T> a, Pair<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class T>  // a weight has no phase
TORCH_PROJECTORS_DEVICE T product(Pair<T>, T b) {
  return b;
}

// Re(conj(a) b) and Im(conj(a) b)
template <class T>
TORCH_PROJECTORS_DEVICE T along(T a, T b) {
  return a * b;
}
template <class T>
TORCH_PROJECTORS_DEVICE T along(Pair<T> a, Pair<T> b) {
  return a.re * b.re + a.im * b.im;
}
template <class T>
TORCH_PROJECTORS_DEVICE T across(T, T) {
  return 0;
}
template <class T>
TORCH_PROJECTORS_DEVICE T across(Pair<T> a, Pair<T> b) {
  return a.re * b.im - a.im * b.re;
}

template <class T>
TORCH_PROJECTORS_DEVICE void set(T& x, T to) {
  x = to;
}
template <class T>
TORCH_PROJECTORS_DEVICE void set(Pair<T>& x, T to) {
  x = {to, to};
}

// A half spectrum, as core's Grid has it, in numbers that a device counts fast.
template <int D>
struct Lattice {
  int32_t shape[D];
  int32_t columns, plane;  // entries of a row, and of a slice

  explicit Lattice(const int64_t (&of)[3]) {
    for (int a = 0; a < D; ++a) shape[a] = int32_t(of[a]);
    columns = shape[0] / 2 + 1;
    plane = columns * shape[1];
  }

  TORCH_PROJECTORS_DEVICE int32_t frequency(int axis, int32_t index) const {
    return index > shape[axis] / 2 ? index - shape[axis] : index;
  }

  TORCH_PROJECTORS_DEVICE int32_t index(int axis, int32_t k) const { return k < 0 ? k + shape[axis] : k; }
};

// Some rows of one image.
struct Part {
  int64_t batch, pose;
  int32_t first, count;
};

template <class T, int V, int I>
struct Setting {
  Lattice<V> volume;
  Lattice<I> image;
  int64_t farthest;  // square of the cutoff, in whole numbers
  T oversampling;
  bool pairs_once;
  int64_t batch, poses;
  const T* rotations;
  const T* shifts;
  int64_t rotation_strides[2], shift_strides[2], image_strides[2], volume_stride;
  int32_t rows, rows_of_part, parts;

  explicit Setting(const Problem& q)
      : volume(q.volume_shape),
        image(q.image_shape),
        farthest(q.cutoff * q.cutoff < 4e18 ? int64_t(q.cutoff * q.cutoff) : int64_t(4e18)),
        oversampling(T(q.oversampling)),
        pairs_once(q.pairs_once),
        batch(q.batch),
        poses(q.poses),
        rotations(static_cast<const T*>(q.rotations)),
        shifts(static_cast<const T*>(q.shifts)),
        volume_stride(q.volume_stride),
        rows(int32_t(q.image_shape[1] * q.image_shape[2])),
        rows_of_part(int32_t(torch_projectors::rows_of_part(q))),
        parts(int32_t(parts_of_image(q))) {
    for (int a = 0; a < 2; ++a) {
      rotation_strides[a] = q.rotation_strides[a];
      shift_strides[a] = q.shift_strides[a];
      image_strides[a] = q.image_strides[a];
    }
  }

  TORCH_PROJECTORS_DEVICE int64_t tasks() const { return batch * poses * parts; }

  TORCH_PROJECTORS_DEVICE Part part(int64_t task) const {
    const int64_t number = task / parts;
    const int32_t first = int32_t(task - number * parts) * rows_of_part;
    return {number / poses, number % poses, first, rows - first < rows_of_part ? rows - first : rows_of_part};
  }

  // Of an image's first entry.
  TORCH_PROJECTORS_DEVICE int64_t start(int64_t b, int64_t p) const {
    return b * image_strides[0] + p * image_strides[1];
  }

  // Frequencies along all axes but x.
  TORCH_PROJECTORS_DEVICE void frequencies(int32_t row, int32_t (&k)[I]) const {
    k[1] = image.frequency(1, I == 2 ? row : row % image.shape[1]);
    if (I == 3) k[I - 1] = image.frequency(I - 1, row / image.shape[1]);
  }

  TORCH_PROJECTORS_DEVICE bool within(const int32_t (&k)[I]) const {
    int64_t square = 0;
    for (int a = 0; a < I; ++a) square += int64_t(k[a]) * k[a];
    return square <= farthest;
  }

  // How much an entry counts in the pairing of volumes and images.
  TORCH_PROJECTORS_DEVICE T counts(const int32_t (&k)[I]) const {
    return pairs_once && (k[0] == 0 || 2 * k[0] == image.shape[0]) ? T(0.5) : T(1);
  }

  // Calls visit(entry from the image's first, k) for a thread's share of the entries of a part.
  template <class Visit>
  TORCH_PROJECTORS_DEVICE void each_entry(const Part& part, int thread, const Visit& visit) const {
    for (int32_t i = thread; i < part.count * image.columns; i += kThreads) {
      int32_t k[I];
      const uint32_t row = uint32_t(i) / uint32_t(image.columns);
      k[0] = i - int32_t(row) * image.columns;
      frequencies(part.first + int32_t(row), k);
      visit(int64_t(part.first) * image.columns + i, k);
    }
  }
};

// How an image lies in its volume.
template <class T, int V, int I>
struct Pose {
  T matrix[V][I];  // times the oversampling
  T turns[I];      // of the phase, for each frequency
  bool shifted;

  Pose() = default;
  TORCH_PROJECTORS_DEVICE Pose(const Setting<T, V, I>& q, int64_t b, int64_t p) : shifted(q.shifts != nullptr) {
    const T* rotation = q.rotations + b * q.rotation_strides[0] + p * q.rotation_strides[1];
    TORCH_PROJECTORS_UNROLL
    for (int a = 0; a < V; ++a)
      for (int c = 0; c < I; ++c) matrix[a][c] = q.oversampling * read(rotation + a * V + c);
    for (int a = 0; a < I; ++a)
      turns[a] = shifted ? read(q.shifts + b * q.shift_strides[0] + p * q.shift_strides[1] + a) / T(q.image.shape[a])
                         : T(0);
  }

  TORCH_PROJECTORS_DEVICE void position(const int32_t (&k)[I], T (&p)[V]) const {
    TORCH_PROJECTORS_UNROLL
    for (int a = 0; a < V; ++a) {
      p[a] = matrix[a][I - 1] * T(k[I - 1]);
      for (int c = I - 2; c >= 0; --c) p[a] += matrix[a][c] * T(k[c]);
    }
  }

  TORCH_PROJECTORS_DEVICE Pair<T> phase(const int32_t (&k)[I]) const {
    if (!shifted) return {1, 0};
    T sum = turns[0] * T(k[0]);
    for (int a = 1; a < I; ++a) sum += turns[a] * T(k[a]);
    return turned(-sum);
  }
};

// Multiplies by the weight of a sample at p for the lattice point `at`, along one axis. False if there is no tap there.
template <class Interpolation, class T>
TORCH_PROJECTORS_DEVICE bool times_weight_at(T p, T at, T& product) {
  const T f = std::floor(p + T(Interpolation::rounding)), tap = at - (f + T(Interpolation::first));
  T w = 0;
  TORCH_PROJECTORS_UNROLL
  for (int i = 0; i < Interpolation::taps; ++i)
    if (tap == T(i)) w = weight<Interpolation>(i, p - f);
  product *= w;
  return tap >= 0 && tap < T(Interpolation::taps);
}

// The taps of a sample at p. Those outside of the band have no weight, and are taken to be where the next inside is.
// Of weights, interpolated by magnitude, the slopes are those of magnitudes.
template <class Interpolation, class T, int V, bool magnitudes, bool with_slopes>
struct Taps {
  static constexpr int taps = Interpolation::taps;

  int32_t k[V][taps];
  T weight[V][taps], slope[V][taps];
  bool finite;  // the position; without, there are no taps
  bool any;     // inside the band

  TORCH_PROJECTORS_DEVICE Taps(const Lattice<V>& grid, const T (&p)[V]) : finite(true), any(true) {
    TORCH_PROJECTORS_UNROLL
    for (int a = 0; a < V; ++a) {
      const T f = std::floor(p[a] + T(Interpolation::rounding)), t = p[a] - f;
      finite = finite && t - t == 0;
      const int32_t half = grid.shape[a] / 2;
      // What is far outside of the band may have no integer to be converted to.
      const int32_t far = half + 8;
      const int32_t start = (f < T(far) ? f > -T(far) ? int32_t(f) : -far : far) + Interpolation::first;
      any = any && start <= half && start + (taps - 1) >= -half;
      TORCH_PROJECTORS_UNROLL
      for (int i = 0; i < taps; ++i) {
        const int32_t at = start + i;
        const bool stored = at <= half && at >= -half;
        k[a][i] = at > half ? half : at < -half ? -half : at;
        const T w = torch_projectors::weight<Interpolation>(i, t);
        if (with_slopes) {
          const T s = torch_projectors::slope<Interpolation>(i, t);
          slope[a][i] = stored ? magnitudes ? (w < 0 ? -s : w > 0 ? s : T(0)) : s : T(0);
        }
        weight[a][i] = stored ? magnitudes && w < 0 ? -w : w : T(0);
      }
    }
    any = any && finite;
  }

  // The next tap along x becomes the first: loops over them need not be unrolled to keep arrays in registers.
  TORCH_PROJECTORS_DEVICE void next_column() {
    TORCH_PROJECTORS_UNROLL
    for (int i = 0; i + 1 < taps; ++i) {
      k[0][i] = k[0][i + 1];
      weight[0][i] = weight[0][i + 1];
      if (with_slopes) slope[0][i] = slope[0][i + 1];
    }
  }
};

// Where the taps of the first column, all mirrored or none, are stored: at entries line[..] of slices slice[..].
template <int V, int taps>
struct Column {
  bool mirrored;
  int32_t line[taps], slice[taps];

  template <class Taps>
  TORCH_PROJECTORS_DEVICE Column(const Lattice<V>& grid, const Taps& of) : mirrored(of.k[0][0] < 0) {
    const int32_t at = mirrored ? -of.k[0][0] : of.k[0][0];
    TORCH_PROJECTORS_UNROLL
    for (int i = 0; i < taps; ++i) {
      line[i] = at + grid.index(1, mirrored ? -of.k[1][i] : of.k[1][i]) * grid.columns;
      slice[i] = V == 3 ? grid.index(V - 1, mirrored ? -of.k[V - 1][i] : of.k[V - 1][i]) : 0;
    }
  }

  // The first entry of a slice.
  template <class E>
  TORCH_PROJECTORS_DEVICE E* of_slice(const Lattice<V>& grid, E* volume, int z) const {
    return V == 3 ? volume + int64_t(slice[z]) * grid.plane : volume;
  }
};

}  // namespace torch_projectors
