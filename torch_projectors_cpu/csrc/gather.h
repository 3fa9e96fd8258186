// Reading a volume: projections, and the gradients of poses. A task is a few rows of one image.
#pragma once

#include <atomic>
#include <cassert>

#include "rows.h"

namespace torch_projectors {
namespace LEVEL {

// x weights of all taps at once, each as often as an entry has numbers: a polynomial in t with packs for coefficients.
template <class Interpolation, class T, int numbers, int samples = 1>
struct AlongX {
  static constexpr int taps = Interpolation::taps, lanes = taps * numbers;
  using P = Pack<T, lanes * samples>;

  static TORCH_PROJECTORS_WITHIN P coefficient(int power) {
    P c{};
    for (int i = 0; i < lanes * samples; ++i) c[i] = T(Interpolation::coefficients[power][i % lanes / numbers]);
    return c;
  }

  template <class U>
  static TORCH_PROJECTORS_WITHIN P weights(U t) {
    P w = coefficient(Interpolation::degree);
    for (int power = Interpolation::degree - 1; power >= 0; --power) w = w * t + coefficient(power);
    return w;
  }

  template <class U>
  static TORCH_PROJECTORS_WITHIN P slopes(U t) {
    if (Interpolation::degree == 0) return P{};
    P w = coefficient(Interpolation::degree) * T(Interpolation::degree);
    for (int power = Interpolation::degree - 1; power >= 1; --power) w = w * t + coefficient(power) * T(power);
    return w;
  }

  static TORCH_PROJECTORS_WITHIN P magnitude(P w) {
    if (!Interpolation::negative) return w;
    for (int i = 0; i < lanes * samples; ++i) w[i] = w[i] < 0 ? -w[i] : w[i];
    return w;
  }

  // Sum over taps: `numbers` numbers, to consecutive places.
  static TORCH_PROJECTORS_WITHIN void sum(const P& x, T* to) { sum_taps<T, lanes, samples, numbers>(x, to); }
};

// What samples read: the value, and its derivatives along (x, y[, z]) of the volume.
template <class T, int V, int numbers>
struct Values {
  alignas(64) T value[numbers * kBlock];
  alignas(64) T derivative[V][numbers * kBlock];
};

template <class Interpolation, class T, int V, bool real, bool slopes>
struct Reader {
  static constexpr int taps = Interpolation::taps, numbers = real ? 1 : 2;
  // Samples at once: as many as fill a vector.
  static constexpr int many = real ? 1 : together<T>(taps * numbers);

  Grid<V> grid;
  const T* volume;

  static T tap_weight(T w) { return real ? magnitude(w) : w; }

  static T tap_slope(T s, T w) { return real ? (w < 0 ? -s : w > 0 ? s : T(0)) : s; }

  template <int samples>
  static auto factor(const T* w) {
    if constexpr (real) return magnitude(*w);
    else return factor_each<T, taps * numbers, samples>(w);
  }

  template <int samples>
  static auto factor(const T* s, const T* w) {
    if constexpr (real) return tap_slope(*s, *w);
    else return factor_each<T, taps * numbers, samples>(s);
  }

  // Along y, and with slopes; one plane.
  template <int samples, class P>
  TORCH_PROJECTORS_WITHIN void plane(const Block<Interpolation, T, V>& b, int z, int u, P& sum, P& slope) const {
    for (int i = 0; i < taps; ++i) {
      const P line = load_each<T, taps * numbers, samples, numbers>(volume, &b.offset[z * taps + i][u]);
      const auto w = factor<samples>(&b.weight[1][i][u]);
      sum = i == 0 ? line * w : line * w + sum;
      if (!slopes) continue;
      const auto s = factor<samples>(&b.slope[1][i][u], &b.weight[1][i][u]);
      slope = i == 0 ? line * s : line * s + slope;
    }
  }

  template <int samples>
  TORCH_PROJECTORS_WITHIN void inside(const Block<Interpolation, T, V>& b, int u, Values<T, V, numbers>& to) const {
    using X = AlongX<Interpolation, T, numbers, samples>;
    using P = typename X::P;
    for (int i = 0; i < samples; ++i) assert(b.inside(u + i));
    P sum, along_y, along_z{};
    if (V == 2) {
      plane<samples>(b, 0, u, sum, along_y);
    } else {
      sum = along_y = P{};
      for (int i = 0; i < taps; ++i) {
        P s, d;
        plane<samples>(b, i, u, s, d);
        const auto w = factor<samples>(&b.weight[V - 1][i][u]);
        sum = s * w + sum;
        if (slopes) {
          along_y = d * w + along_y;
          along_z = s * factor<samples>(&b.slope[V - 1][i][u], &b.weight[V - 1][i][u]) + along_z;
        }
      }
    }
    const auto t = factor_each<T, taps * numbers, samples>(&b.t[0][u]);
    P x = X::weights(t);
    if (slopes) {
      P d = X::slopes(t);
      if (real)
        for (int i = 0; i < taps; ++i) d[i] = tap_slope(d[i], x[i]);
      X::sum(sum * d, to.derivative[0] + numbers * u);
    }
    if (real) x = X::magnitude(x);
    X::sum(sum * x, to.value + numbers * u);
    if (!slopes) return;
    X::sum(along_y * x, to.derivative[1] + numbers * u);
    if (V == 3) X::sum(along_z * x, to.derivative[V - 1] + numbers * u);
  }

  void at_edge(const Volume<Interpolation, T, V>& entries, const Block<Interpolation, T, V>& b, int u,
               Values<T, V, numbers>& to) const {
    using P = Pack<T, numbers>;
    P columns[slopes ? V : 1][taps] = {};  // interpolated along all axes but x, and with a slope along one
    const int mirrored = b.mirrored(u);
    b.each_line_at_edge(entries, u, [&](int y, int z, int64_t line, int64_t mates) {
      const T wy = b.weight[1][y][u], wz = V == 3 ? b.weight[V - 1][z][u] : T(1);
      for (int x = 0; x < taps; ++x) {
        const P stored = load<P>(volume + (x < mirrored ? mates - x : line + x) * numbers);
        columns[0][x] = columns[0][x] + stored * (tap_weight(wz) * tap_weight(wy));
        if (!slopes) continue;
        columns[1][x] = columns[1][x] + stored * (tap_weight(wz) * tap_slope(b.slope[1][y][u], wy));
        if (V == 3)
          columns[V - 1][x] = columns[V - 1][x] + stored * (tap_slope(b.slope[V - 1][z][u], wz) * tap_weight(wy));
      }
    });
    if (!real)
      for (auto& along : columns)
        for (int x = 0; x < mirrored; ++x) along[x][numbers - 1] = -along[x][numbers - 1];
    for (int c = 0; c < numbers; ++c) {
      T value = 0, derivative[V] = {};
      for (int x = 0; x < taps; ++x) {
        const T w = weight<Interpolation>(x, b.t[0][u]);
        value += tap_weight(w) * columns[0][x][c];
        if (!slopes) continue;
        derivative[0] += tap_slope(slope<Interpolation>(x, b.t[0][u]), w) * columns[0][x][c];
        for (int a = 1; a < V; ++a) derivative[a] += tap_weight(w) * columns[a][x][c];
      }
      to.value[numbers * u + c] = value;
      for (int a = 0; a < (slopes ? V : 0); ++a) to.derivative[a][numbers * u + c] = derivative[a];
    }
  }

  // A sample whose taps may be mirrored or out of the band. The block's sign mirrors results back, so they are mirrored.
  void anywhere(const Row<T, V>& row, const Block<Interpolation, T, V>& b, int u, Values<T, V, numbers>& to) const {
    T p[V], sums[V + 1][numbers] = {};
    for (int a = 0; a < V; ++a) p[a] = row.position(a, b.first + u);
    const T sign = b.sign[u];
    const bool finite = each_tap<Interpolation>(
        grid, p, [&](int64_t offset, bool mirrored, const T (&w)[V], const T (&s)[V]) {
          T value[numbers];
          for (int c = 0; c < numbers; ++c) value[c] = volume[offset * numbers + c];
          if (!real && mirrored) value[numbers - 1] = -value[numbers - 1];
          for (int d = 0; d <= (slopes ? V : 0); ++d) {
            T product = 1;
            for (int a = 0; a < V; ++a) product *= a == d - 1 ? tap_slope(s[a], w[a]) : tap_weight(w[a]);
            for (int c = 0; c < numbers; ++c) sums[d][c] += product * value[c];
          }
        });
    if (!finite)
      for (auto& sum : sums)
        for (T& x : sum) x = T(NAN);
    for (int c = 0; c < numbers; ++c) {
      const T back = c == 1 ? sign : T(1);
      to.value[numbers * u + c] = sums[0][c] * back;
      if (slopes)
        for (int a = 0; a < V; ++a) to.derivative[a][numbers * u + c] = sums[a + 1][c] * back * sign;
    }
  }

  // Calls visit(row, block, values) for all samples of some rows, in order.
  template <int I, class Visit>
  void each(const View<T, V, I>& view, int64_t from, int64_t to, const Visit& visit) const {
    const Volume<Interpolation, T, V> entries(grid);
    const bool far = is_far(grid, numbers * sizeof(T));
    Block<Interpolation, T, V> b;
    Values<T, V, numbers> values;
    for (int64_t index = from; index < to; ++index) {
      const Row<T, V> row = view.row(index);
      for (b.first = 0; b.first < row.count; b.first += kBlock) {
        b.count = int(row.count - b.first < kBlock ? row.count - b.first : kBlock);
        b.template locate<slopes>(entries, row);
        if (far) b.template prefetch<numbers>(volume);
        for (int u = 0; u < b.count; u += many) {
          // What lies beyond the row is read with its last samples.
          int32_t all = 1;
          if (!b.all_inside || u + many > b.count)
            for (int i = 0; i < many; ++i) all &= int32_t(b.inside(u + i));
          if (all) {
            inside<many>(b, u, values);
          } else {
            for (int i = u; i < b.count && i < u + many; ++i)
              b.inside(i)    ? inside<1>(b, i, values)
              : b.at_edge(i) ? at_edge(entries, b, i, values)
                             : anywhere(row, b, i, values);
          }
        }
        visit(row, b, values);
      }
    }
  }
};

constexpr int64_t kRows = 16;  // a task: neighbours share cache lines, and threads share the load

// Calls work(view, first row, last row) on the rows of all images: tasks, which threads take as they get free.
template <class T, int V, int I, class Work>
inline void each_task(const Problem& q, const Rows<I>& rows, const Parallel& parallel, const Work& work) {
  const int64_t parts = (rows.count() + kRows - 1) / kRows, tasks = q.batch * q.poses * parts;
  std::atomic<int64_t> next{0};
  parallel(tasks, [&](int64_t, int64_t) {
    View<T, V, I> view(q, rows);
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      const int64_t image = i / parts, from = i % parts * kRows;
      view.set(image / q.poses, image % q.poses);
      work(view, from, from + kRows < rows.count() ? from + kRows : rows.count());
    }
  });
}

// Values, mirrored back, times the phases of their places in the image.
template <class B, class T, int I>
inline void shift(const B& b, int n, const T* values, const Phases<T, I>& phases, Complex<T> c, T* out) {
  const T *xr = phases.re() + b.first, *xi = phases.im() + b.first;
#pragma omp simd simdlen(kLanes)
  for (int u = 0; u < n; ++u) {
    const T re = xr[u] * c.re - xi[u] * c.im, im = xr[u] * c.im + xi[u] * c.re;
    const T a = values[2 * u], d = values[2 * u + 1] * b.sign[u];
    out[2 * u] = a * re - d * im;
    out[2 * u + 1] = a * im + d * re;
  }
}

// Of real data.
template <class B, class T>
void count(const B& b, const T* values, const std::vector<T>& counts, T* out) {
  const T* by = counts.data() + b.first;
#pragma omp simd
  for (int u = 0; u < b.count; ++u) out[u] = values[u] * by[u];
}

// Zeros where an image has no samples.
template <class T, int I, int numbers>
void clear_beyond(const Rows<I>& rows, int64_t from, int64_t to, T* image) {
  const int64_t columns = rows.grid.columns();
  for (int64_t row = from; row < to; ++row) {
    const int64_t within = rows.columns(row);
    std::memset(image + (row * columns + within) * numbers, 0, size_t((columns - within) * numbers) * sizeof(T));
  }
}

template <class Interpolation, class T, int V, int I, bool real>
void project(const Problem& q, const void* volumes, void* images, const Parallel& parallel) {
  constexpr int numbers = real ? 1 : 2;
  const Grid<V> grid = grid_of<V>(q.volume_shape);
  const Rows<I> rows(grid_of<I>(q.image_shape), q.cutoff);
  const int64_t columns = rows.grid.columns();
  each_task<T, V, I>(q, rows, parallel, [&](const View<T, V, I>& view, int64_t from, int64_t to) {
    const Reader<Interpolation, T, V, real, false> reader{
        grid, static_cast<const T*>(volumes) + view.start_of_volume() * numbers};
    T* image = static_cast<T*>(images) + view.start() * numbers;
    reader.each(view, from, to, [&](const auto& row, const auto& b, const auto& v) {
      T* out = image + (row.index * columns + b.first) * numbers;
      const bool room = b.first + b.whole() <= columns;  // what is too much is cleared below
      if (real)
        count(b, v.value, view.counts, out);
      else if (room)
        shift(b, b.whole(), v.value, view.phases, row.phase, out);
      else
        shift(b, b.count, v.value, view.phases, row.phase, out);
    });
    clear_beyond<T, I, numbers>(rows, from, to, image);
  });
}

// Sums over some rows of one image: dL / d matrix, without the oversampling, and dL / d shift.
template <int V, int I>
struct PoseSums {
  double matrix[V][I] = {}, shift[I] = {};
};

template <class Interpolation, class T, int V, int I, bool real>
void gradients(const Problem& q, const void* volumes, const void* images, void* grad_images, void* grad_rotations,
               void* grad_shifts, const Parallel& parallel) {
  constexpr int numbers = real ? 1 : 2;
  const Grid<V> grid = grid_of<V>(q.volume_shape);
  const Rows<I> rows(grid_of<I>(q.image_shape), q.cutoff);
  // Partial sums of fixed parts, added up in a fixed order: the same for any number of threads.
  const int64_t parts = (rows.count() + kRows - 1) / kRows;
  std::vector<PoseSums<V, I>> sums(size_t(q.batch * q.poses * parts));
  each_task<T, V, I>(q, rows, parallel, [&](const View<T, V, I>& view, int64_t from, int64_t to) {
    const Reader<Interpolation, T, V, real, true> reader{
        grid, static_cast<const T*>(volumes) + view.start_of_volume() * numbers};
    T* grad_image = grad_images == nullptr ? nullptr : static_cast<T*>(grad_images) + view.start() * numbers;
    if (grad_image != nullptr) clear_beyond<T, I, numbers>(rows, from, to, grad_image);
    PoseSums<V, I>& sum = sums[size_t(view.number() * parts + from / kRows)];
    reader.each(view, from, to, [&](const auto& row, const auto& b, const auto& v) {
      const int64_t at = (row.index * rows.grid.columns() + b.first) * numbers;
      const T* in = static_cast<const T*>(images) + view.start() * numbers + at;
      T* out = grad_image == nullptr ? nullptr : grad_image + at;
      const int n = b.count;
      const Complex<T> c = row.phase;
      const auto& k = rows.frequencies(row.index);
      alignas(64) T gr[kBlock], gi[kBlock];  // the image, shifted back
      T torque = 0, twist = 0;
      const T first = T(b.first);
      if (real) {
        count(b, in, view.counts, gr);
        if (out != nullptr) count(b, v.value, view.counts, out);
      } else {
        const T *xr = view.phases.re() + b.first, *xi = view.phases.im() + b.first;
#pragma omp simd reduction(+ : torque, twist)
        for (int u = 0; u < n; ++u) {
          const T re = xr[u] * c.re - xi[u] * c.im, im = xr[u] * c.im + xi[u] * c.re;
          gr[u] = in[2 * u] * re + in[2 * u + 1] * im;
          gi[u] = in[2 * u + 1] * re - in[2 * u] * im;
          const T turn = gr[u] * v.value[2 * u + 1] * b.sign[u] - gi[u] * v.value[2 * u];
          torque += turn;
          twist += turn * (first + T(u));
        }
        if (out != nullptr) shift(b, n, v.value, view.phases, c, out);
      }
      sum.shift[0] += twist;
      for (int i = 1; i < I; ++i) sum.shift[i] += double(torque) * double(k[size_t(i - 1)]);
      if (grad_rotations == nullptr) return;
      for (int a = 0; a < V; ++a) {
        const T* d = v.derivative[a];
        T force = 0, lever = 0;
#pragma omp simd reduction(+ : force, lever)
        for (int u = 0; u < n; ++u) {
          const T f = real ? gr[u] * d[u] * b.sign[u]
                           : gr[u] * d[numbers * u] * b.sign[u] + gi[u] * d[numbers * u + numbers - 1];
          force += f;
          lever += f * (first + T(u));
        }
        sum.matrix[a][0] += lever;
        for (int i = 1; i < I; ++i) sum.matrix[a][i] += double(force) * double(k[size_t(i - 1)]);
      }
    });
  });
  const double turn = 2 * 3.14159265358979323846;
  const auto add = [&](void* to, const int64_t (&strides)[2], int64_t entries, auto value) {
    if (to == nullptr) return;
    const bool shared = strides[0] == 0;
    for (int64_t p = 0; p < q.poses; ++p)
      for (int64_t e = 0; e < entries; ++e) {
        double total = 0;
        for (int64_t b = 0; b < q.batch; ++b) {
          if (!shared) total = 0;
          for (int64_t i = 0; i < parts; ++i) total += value(sums[size_t((b * q.poses + p) * parts + i)], e);
          static_cast<T*>(to)[b * strides[0] + p * strides[1] + e] = T(total);
        }
      }
  };
  add(grad_rotations, q.rotation_strides, V * V, [&](const PoseSums<V, I>& s, int64_t e) {
    return e % V < I ? q.oversampling * s.matrix[e / V][e % V] : 0.0;
  });
  add(grad_shifts, q.shift_strides, I, [&](const PoseSums<V, I>& s, int64_t e) {
    return turn / double(q.image_shape[e]) * s.shift[e];
  });
}

template <class T>
void roof(const Problem& q, const void* volumes, void* images, const Parallel& parallel) {
  const Grid<3> grid = grid_of<3>(q.volume_shape);
  const Rows<2> rows(grid_of<2>(q.image_shape), q.cutoff);
  each_task<T, 3, 2>(q, rows, parallel, [&](const View<T, 3, 2>& view, int64_t from, int64_t to) {
    const T* volume = static_cast<const T*>(volumes) + view.start_of_volume() * 2;
    const Volume<Linear, T, 3> entries(grid);
    const bool far = is_far(grid, 2 * sizeof(T));
    Block<Linear, T, 3> b;
    for (int64_t index = from; index < to; ++index) {
      const Row<T, 3> row = view.row(index);
      T* out = static_cast<T*>(images) + (view.start() + index * rows.grid.columns()) * 2;
      for (b.first = 0; b.first < row.count; b.first += kBlock) {
        b.count = int(row.count - b.first < kBlock ? row.count - b.first : kBlock);
        b.template locate<false>(entries, row);
        if (far) b.template prefetch<2>(volume);
        for (int u = 0; u < b.count; ++u) {
          const auto line = [&](int i) { return load<Pack<T, 4>>(volume + 2 * int64_t(b.offset[i][u])); };
          const auto sum = (line(0) + line(1)) + (line(2) + line(3));
          out[2 * (b.first + u)] = sum[0];
          out[2 * (b.first + u) + 1] = sum[1];
        }
      }
    }
  });
}

}  // namespace LEVEL
}  // namespace torch_projectors
