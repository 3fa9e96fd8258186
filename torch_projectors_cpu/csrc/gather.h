// Reading a volume: projections, and the gradients of poses. A task is a few rows of one image.
#pragma once

#include <atomic>
#include <cassert>

#include "along_x.h"
#include "rows.h"

namespace torch_projectors {
namespace LEVEL {

// The weight or slope of one tap, for each lane of t.
template <class Interpolation, bool slope, class T, class P>
TORCH_PROJECTORS_WITHIN P weights_each(int tap, const P& t) {
  P w{};
  for (int power = Interpolation::degree; power >= (slope ? 1 : 0); --power) {
    const T c = T(Interpolation::coefficients[power][tap]) * (slope ? T(power) : T(1));
    w = power == Interpolation::degree ? P{} + c : c == 0 ? w * t : w * t + c;
  }
  return w;
}

// Calls read(row, block, next) for all samples of some rows, in order. Where entries are far, the next block is there
// already, so that its entries can be asked for at the pace at which others are read: asked for at once, they would be
// waited for. Else, and at the end, it is null.
template <bool slopes, class Interpolation, class T, int V, int I, class Read>
void each_block(const Volume<Interpolation, T, V>& entries, const View<T, V, I>& view, int64_t from, int64_t to,
                bool far, const Read& read) {
  Block<Interpolation, T, V> blocks[2];
  Row<T, V> rows[2];
  int now = 0, waiting = -1;
  for (int64_t index = from, first = 0;;) {
    for (; index < to && first >= view.rows.columns(index); ++index) first = 0;
    const bool more = index < to;
    if (more) {
      rows[now] = view.row(index);
      blocks[now].first = first;
      blocks[now].count = int(std::min<int64_t>(rows[now].count - first, kBlock));
      blocks[now].template locate<slopes>(entries, rows[now]);
      first += kBlock;
    }
    const int ready = far ? waiting : more ? now : -1;
    if (ready >= 0) read(rows[ready], blocks[ready], more && far ? &blocks[now] : nullptr);
    if (!more) return;
    waiting = now;
    if (far) now = 1 - now;
  }
}

// What samples read: the value, and its derivatives along (x, y[, z]) of the volume.
template <class T, int V, int numbers>
struct Values {
  alignas(64) T value[numbers * kBlock];
  alignas(64) T derivative[V][numbers * kBlock];
};

template <class Interpolation, class T, int V, bool real, bool slopes>
struct Reader {
  static constexpr int taps = Interpolation::taps, numbers = real ? 1 : 2;
  using X = AlongX<Interpolation, T, numbers>;
  // Samples at once: as many as results fill a vector, of which a pack of as many bytes holds the taps of some.
  static constexpr int filling = kVector / int(numbers * sizeof(T)), many = real || filling < taps ? 1 : filling;
  static_assert(many <= kLanes, "what lies beyond a row is read as far as it is located");

  const Volume<Interpolation, T, V>& entries;
  const T* volume;

  static T tap_weight(T w) { return real ? magnitude(w) : w; }

  static T tap_slope(T s, T w) { return real ? (w < 0 ? -s : w > 0 ? s : T(0)) : s; }

  template <class P>
  static P tap_slopes(const P& slopes_along, const P& weights) {
    T s[X::lanes], w[X::lanes];
    store(s, slopes_along);
    store(w, weights);
    for (int i = 0; i < X::lanes; ++i) s[i] = tap_slope(s[i], w[i]);
    return load<P>(s);
  }

  // Weights or slopes along y or z of one tap of the samples u + first, u + first + apart, ... of a pack.
  template <bool slope, int samples, int first, int apart>
  static TORCH_PROJECTORS_WITHIN auto factor(const Block<Interpolation, T, V>& b, int axis, int tap, int u) {
    if constexpr (samples * apart == 1) {
      const T t = b.t[axis][u], w = weight<Interpolation>(tap, t);
      return slope ? tap_slope(torch_projectors::slope<Interpolation>(tap, t), w) : tap_weight(w);
    } else if constexpr (Block<Interpolation, T, V>::stored) {
      return factor_each<T, taps * numbers, samples, first, apart>(&(slope ? b.slope : b.weight)[axis][tap][u]);
    } else {
      const auto t = factor_each<T, taps * numbers, samples, first, apart>(&b.t[axis][u]);
      return weights_each<Interpolation, slope, T>(tap, t);
    }
  }

  // Interpolated along all axes but x, and with slopes along one of them, of lines read(y, z).
  template <int samples, int first, int apart, class P, class Read>
  static TORCH_PROJECTORS_WITHIN void across(const Block<Interpolation, T, V>& b, int u, P& sum, P& along_y, P& along_z,
                                             const Read& read) {
    for (int z = 0; z < (V == 3 ? taps : 1); ++z) {
      P s{}, d{};
      for (int y = 0; y < taps; ++y) {
        const P line = read(y, z);
        const auto w = factor<false, samples, first, apart>(b, 1, y, u);
        s = y == 0 ? line * w : line * w + s;
        if (!slopes) continue;
        const auto slope = factor<true, samples, first, apart>(b, 1, y, u);
        d = y == 0 ? line * slope : line * slope + d;
      }
      if (V == 2) {
        sum = s;
        if (slopes) along_y = d;
        continue;
      }
      const auto w = factor<false, samples, first, apart>(b, V - 1, z, u);
      sum = z == 0 ? s * w : s * w + sum;
      if (!slopes) continue;
      const auto slope = factor<true, samples, first, apart>(b, V - 1, z, u);
      along_y = z == 0 ? d * w : d * w + along_y;
      along_z = z == 0 ? s * slope : s * slope + along_z;
    }
  }

  void inside(const Block<Interpolation, T, V>& b, int u, Values<T, V, numbers>& to) const {
    assert(b.inside(u));
    using P = typename X::P;
    P sum{}, along_y{}, along_z{};
    across<1, 0, 1>(b, u, sum, along_y, along_z, [&](int y, int z) {
      return load<P>(volume + numbers * int64_t(b.offset[(z * taps + y) % b.lines][u]));
    });
    const P t = everywhere<P>(b.t[0][u]);
    P x = X::weights(t);
    if (slopes) {
      P d = X::slopes(t);
      if (real) d = tap_slopes(d, x);
      X::sum(sum * d, to.derivative[0] + numbers * u);
    }
    if (real) x = X::magnitude(x);
    X::sum(sum * x, to.value + numbers * u);
    if (!slopes) return;
    X::sum(along_y * x, to.derivative[1] + numbers * u);
    if (V == 3) X::sum(along_z * x, to.derivative[V - 1] + numbers * u);
  }

  // Both of the taps that are stored as they are and of the mates of the others, a line is read from x = 0 on, of which
  // some entries are left out, whatever they are.
  TORCH_PROJECTORS_APART void at_edge(const Block<Interpolation, T, V>& b, int u, Values<T, V, numbers>& to) const {
    using P = typename X::P;
    const typename Block<Interpolation, T, V>::Edge edge(b, entries, u);
    const P t = everywhere<P>(b.t[0][u]);
    P value{}, derivative[3] = {};
    for (const bool mates : {false, true}) {
      P sum{}, along_y{}, along_z{};
      across<1, 0, 1>(b, u, sum, along_y, along_z, [&](int y, int z) {
        return X::only_taps(edge.kind, mates, load<P>(volume + numbers * edge.start(mates, y, z)));
      });
      const auto& along = X::tables.at_edge[edge.kind][mates];
      P x = X::weights(t, along);
      if (slopes) {
        P d = X::slopes(t, along);
        if (real) d = tap_slopes(d, x);
        derivative[0] = sum * d + derivative[0];
      }
      if (real) x = X::magnitude(x);
      value = sum * x + value;
      if (!slopes) continue;
      derivative[1] = along_y * x + derivative[1];
      derivative[2] = along_z * x + derivative[2];
    }
    X::sum(value, to.value + numbers * u);
    for (int a = 0; slopes && a < V; ++a) X::sum(derivative[a], to.derivative[a] + numbers * u);
  }

#if defined(TORCH_PROJECTORS_SHUFFLE)
  // Sums over the taps along x, with weights or slopes at t: for the samples in order, their numbers.
  template <bool slope, class P, std::size_t... tap>
  static TORCH_PROJECTORS_WITHIN P sum_columns(const P (&packs)[taps], const P& t, std::index_sequence<tap...>) {
    P sum = column<0, T, numbers>(packs) * weights_each<Interpolation, slope, T>(0, t);
    ((sum = tap == 0 ? sum : column<tap, T, numbers>(packs) * weights_each<Interpolation, slope, T>(tap, t) + sum), ...);
    return sum;
  }

  // All of some neighbours, whether they are inside or not.
  template <std::size_t... tap>
  TORCH_PROJECTORS_WITHIN void together(const Block<Interpolation, T, V>& b, int u, Values<T, V, numbers>& to,
                                        std::index_sequence<tap...> all) const {
    assert(b.readable(entries.grid, u, many));
    using P = Pack<T, many * numbers>;
    P sum[taps] = {}, along_y[taps] = {}, along_z[taps] = {};
    (across<many / taps, tap, taps>(
         b, u, sum[tap], along_y[tap], along_z[tap],
         [&](int y, int z) {
           const int32_t* offset = &b.offset[(z * taps + y) % b.lines][u + int(tap)];
           return load_each<T, taps * numbers, many / taps, numbers, taps>(volume, offset);
         }),
     ...);
    const P t = factor_each<T, numbers, many, 0, 1>(&b.t[0][u]);
    store(to.value + numbers * u, sum_columns<false>(sum, t, all));
    if (!slopes) return;
    store(to.derivative[0] + numbers * u, sum_columns<true>(sum, t, all));
    store(to.derivative[1] + numbers * u, sum_columns<false>(along_y, t, all));
    if (V == 3) store(to.derivative[V - 1] + numbers * u, sum_columns<false>(along_z, t, all));
  }
#endif

  // A sample whose taps may be mirrored or out of the band. The block's sign mirrors results back, so they are mirrored.
  void anywhere(const Row<T, V>& row, const Block<Interpolation, T, V>& b, int u, Values<T, V, numbers>& to) const {
    T p[V], sums[V + 1][numbers] = {};
    for (int a = 0; a < V; ++a) p[a] = row.position(a, b.first + u);
    const T sign = b.sign[u];
    const bool finite = each_tap<Interpolation>(
        entries.grid, p, [&](int64_t offset, bool mirrored, const T (&w)[V], const T (&s)[V]) {
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

  // The block's samples. Asks for the entries of the next ones meanwhile, if they are far.
  void read(const Row<T, V>& row, const Block<Interpolation, T, V>& b, const Block<Interpolation, T, V>* next,
            Values<T, V, numbers>& to) const {
    bool done = false;  // what is inside
    const int all = next == nullptr ? 0 : next->count;
    int asked = 0;
#if defined(TORCH_PROJECTORS_SHUFFLE)
    if constexpr (many > 1) {
      done = entries.roomy;
      for (int u = 0; done && u < b.count; u += many) {
        for (const int end = std::min(asked + many, all); asked < end; ++asked)
          next->template prefetch<numbers>(volume, asked);
        together(b, u, to, std::make_index_sequence<taps>());
      }
    }
#endif
    for (; asked < all; ++asked) next->template prefetch<numbers>(volume, asked);
    for (int from = 0; from < b.count && !(done && b.all_inside); from += kLanes) {
      if (done && b.all_inside_from(from)) continue;
      for (int u = from; u < b.count && u < from + kLanes; ++u) {
        if (b.inside(u)) {
          if (!done) inside(b, u, to);
        } else if (b.at_edge(u) && entries.roomy) {
          at_edge(b, u, to);
        } else {
          anywhere(row, b, u, to);
        }
      }
    }
  }

  // Calls visit(row, block, values) for all samples of some rows, in order.
  template <int I, class Visit>
  void each(const View<T, V, I>& view, int64_t from, int64_t to, const Visit& visit) const {
    const bool far = is_far(entries.grid, numbers * sizeof(T));
    Values<T, V, numbers> values;
    each_block<slopes>(entries, view, from, to, far, [&](const auto& row, const auto& b, const auto* next) {
      read(row, b, next, values);
      visit(row, b, values);
    });
  }
};

constexpr int kAhead = 2;  // rows: images that are read once or twice come from memory, and are asked for
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
  const Volume<Interpolation, T, V> entries(grid_of<V>(q.volume_shape));
  const Rows<I> rows(grid_of<I>(q.image_shape), q.cutoff);
  const int64_t columns = rows.grid.columns();
  each_task<T, V, I>(q, rows, parallel, [&](const View<T, V, I>& view, int64_t from, int64_t to) {
    const Reader<Interpolation, T, V, real, false> reader{
        entries, static_cast<const T*>(volumes) + view.start_of_volume() * numbers};
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
  const Volume<Interpolation, T, V> entries(grid_of<V>(q.volume_shape));
  const Rows<I> rows(grid_of<I>(q.image_shape), q.cutoff);
  // Partial sums of fixed parts, added up in a fixed order: the same for any number of threads.
  const int64_t parts = (rows.count() + kRows - 1) / kRows;
  std::vector<PoseSums<V, I>> sums(size_t(q.batch * q.poses * parts));
  each_task<T, V, I>(q, rows, parallel, [&](const View<T, V, I>& view, int64_t from, int64_t to) {
    const Reader<Interpolation, T, V, real, true> reader{
        entries, static_cast<const T*>(volumes) + view.start_of_volume() * numbers};
    T* grad_image = grad_images == nullptr ? nullptr : static_cast<T*>(grad_images) + view.start() * numbers;
    if (grad_image != nullptr) clear_beyond<T, I, numbers>(rows, from, to, grad_image);
    PoseSums<V, I>& sum = sums[size_t(view.number() * parts + from / kRows)];
    reader.each(view, from, to, [&](const auto& row, const auto& b, const auto& v) {
      const int64_t at = (row.index * rows.grid.columns() + b.first) * numbers;
      const T* in = static_cast<const T*>(images) + view.start() * numbers + at;
      T* out = grad_image == nullptr ? nullptr : grad_image + at;
      const int n = b.count;
      const Complex<T> c = row.phase;
      if (row.index + kAhead < rows.count()) prefetch_all(in + kAhead * rows.grid.columns() * numbers, n * numbers);
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
  const Volume<Linear, T, 3> entries(grid_of<3>(q.volume_shape));
  const Rows<2> rows(grid_of<2>(q.image_shape), q.cutoff);
  each_task<T, 3, 2>(q, rows, parallel, [&](const View<T, 3, 2>& view, int64_t from, int64_t to) {
    const T* volume = static_cast<const T*>(volumes) + view.start_of_volume() * 2;
    const bool far = is_far(entries.grid, 2 * sizeof(T));
    each_block<false>(entries, view, from, to, far, [&](const auto& row, const auto& b, const auto* next) {
      T* out = static_cast<T*>(images) + (view.start() + row.index * rows.grid.columns() + b.first) * 2;
      for (int u = 0; u < b.count; ++u) {
        if (next != nullptr && u < next->count) next->template prefetch<2>(volume, u);
        const auto line = [&](int i) { return load<Pack<T, 4>>(volume + 2 * int64_t(b.offset[i][u])); };
        const auto sum = (line(0) + line(1)) + (line(2) + line(3));
        store(out + 2 * u, first_lanes<T, 2>(sum));
      }
    });
  });
}

}  // namespace LEVEL
}  // namespace torch_projectors
