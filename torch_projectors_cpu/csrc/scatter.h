// Adding to a volume: the transpose of gathering, without atomics. A task owns what lies at low <= |k| < high along the
// slowest axis of the volume, and visits every row for the taps that are its own; so each entry gets its terms in one
// order, whoever owns it. Of both signs, since rows are mirrored where they cross x = 0, and their taps at x = 0 again.
#pragma once

#include <algorithm>

#include "gather.h"
#include "mates.h"
#include "shares.h"

namespace torch_projectors {
namespace LEVEL {

// Samples of a row are added every so many columns, then those beside them: taps of neighbours overlap, and reading a
// few numbers of which some were only just written waits until they are stored.
constexpr int kApart = 4;

// Columns from..to - 1 of a row, of which hole..behind - 1 are left out; without a hole, both are `to`.
struct Part {
  int32_t from, to, hole, behind;

  bool empty() const { return from >= to; }

  // Of columns begin..end - 1.
  Part within(int32_t begin, int32_t end) const {
    const int32_t a = std::max(from, begin), b = std::min(to, end);
    const Part part{a >= hole ? std::max(a, behind) : a, b <= behind ? std::min(b, hole) : b, hole, behind};
    return hole < part.to && behind > part.from ? part : Part{part.from, part.to, part.to, part.to};
  }
};

// Where samples may have taps that are an owner's, of each of some rows, in order.
template <class Interpolation, class T, int V, int I>
struct Plan {
  static constexpr int most = 128;  // rows
  alignas(64) int32_t from[most], to[most], hole[most], behind[most];
  int visits, row[most];  // the rows of which there is something

  Part part(int visit) const {
    const int r = row[visit];
    return {from[r], to[r], hole[r], behind[r]};
  }

  TORCH_PROJECTORS_APART void set(const View<T, V, I>& view, int64_t first, int64_t low, int64_t high) {
    const Rows<I>& rows = view.rows;
    const int count = int(std::min<int64_t>(most, rows.count() - first));
    // How far from a sample its taps lie, and some for rounding.
    const T reach = T(Interpolation::taps == 1 ? 0.51 : Interpolation::taps / 2 + 0.01);
    const T outer = T(high - 1) + reach, inner = T(low) - reach;
    const int32_t end_of_holes = inner > 0 ? std::numeric_limits<int32_t>::max() : 0;  // the innermost owner has none
    const T per = 1 / view.matrix[V - 1][0], z1 = view.matrix[V - 1][1], z2 = view.matrix[V - 1][I - 1];
    const int32_t *columns = rows.columns() + first, *k1 = rows.frequencies_along(1) + first,
                  *k2 = rows.frequencies_along(I - 1) + first;
#pragma omp simd simdlen(kLanes)
    for (int r = 0; r < count; ++r) {
      const T last = T(columns[r] - 1), base = z1 * T(k1[r]) + (I == 3 ? z2 * T(k2[r]) : T(0));
      int32_t begin, end, first_left, last_left;
      between(base, per, outer, last, begin, end);
      between(base, per, inner, last, first_left, last_left);
      last_left = smaller(last_left, end_of_holes);
      const bool none = first_left >= last_left;
      const int32_t left = none ? end : first_left, right = none ? end : last_left;
      // What begins or ends in the hole has none.
      from[r] = left > begin ? begin : right;
      to[r] = right < end ? end : left;
      hole[r] = left > begin && right < end ? left : to[r];
      behind[r] = left > begin && right < end ? right : to[r];
    }
    if (!view.finite)  // each sample is looked at by itself
      for (int r = 0; r < count; ++r) {
        from[r] = 0;
        to[r] = hole[r] = behind[r] = columns[r];
      }
    visits = 0;
    for (int r = 0; r < count; ++r) {
      row[visits] = r;
      visits += int(from[r] < to[r]);
    }
  }

 private:
  // All is by value, and without branches: else compilers take one row at a time.
  template <class N>
  static N larger(N a, N b) {
    return a > b ? a : b;
  }

  template <class N>
  static N smaller(N a, N b) {
    return a < b ? a : b;
  }

  // Columns from..to - 1, up to the last, with |base + column / columns_per_step| <= bound.
  static void between(T base, T columns_per_step, T bound, T last, int32_t& from, int32_t& to) {
    const T a = (-bound - base) * columns_per_step, b = (bound - base) * columns_per_step;
    const T least = smaller(larger(smaller(a, b), T(0)), last + 1);
    const T beyond = larger(smaller(larger(a, b), last) + 1, T(0));
    const int32_t whole = int32_t(least);
    from = whole + int32_t(T(whole) < least);
    to = int32_t(beyond);
  }
};

// A block, and what its samples add.
template <class Interpolation, class T, int V, int numbers>
struct Samples {
  Block<Interpolation, T, V> block;
  Row<T, V> row;
  int hole, behind;  // samples hole..behind - 1 have no own taps
  alignas(64) T values[numbers * kBlock], weights[kBlock];  // values are mirrored as the block is
  alignas(64) T nothing[kBlock];                            // 0 where both are finite
};

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
  int64_t low, high;  // own frequencies of the slowest axis: low <= |k| < high
  const Planes own;
  alignas(64) int32_t usual[kBlock];  // whether taps of a sample that are not own can be added, without weight, to own

  Writer(const Volume<Interpolation, T, V>& entries, T* volume, T* weights, int64_t low, int64_t high)
      : entries(entries),
        grid(entries.grid),
        volume(volume),
        weights(weights),
        low(low),
        high(high),
        own(grid, low, high) {}

  static T tap_size(T w) { return Interpolation::negative ? magnitude(w) : w; }
  static T tap_weight(T w) { return real ? tap_size(w) : w; }

  // `values` and `sizes` are those of `this`, which compilers would read again after every store.
  template <bool weighted>
  static TORCH_PROJECTORS_WITHIN void inside(const Block<Interpolation, T, V>& b, int u, const T* value, T weight,
                                             T* values, T* sizes) {
    assert(b.inside(u));
    constexpr int lines = V == 3 ? taps : 1;  // of a plane
    P y[lines], z[taps];
    Q y_size[lines], z_size[taps];
    const auto along_axis = [](T w, P& weight, Q& size) {
      weight = everywhere<P>(w);
      if (real) weight = X::magnitude(weight);
      size = R::magnitude(first_lanes<T, taps>(weight));
    };
    int64_t at[taps][lines];
    for (int i = 0; i < taps; ++i) {
      along_axis(b.weight[V - 1][i][u], z[i], z_size[i]);
      if (V == 3) along_axis(b.weight[1][i][u], y[i % lines], y_size[i % lines]);
      for (int j = 0; j < lines; ++j) at[i][j] = b.offset[i * lines + j][u];
    }
    const P t = everywhere<P>(b.t[0][u]), along = X::weights(t);
    const P x = spread<T, taps * numbers, numbers>(value) * (real ? X::magnitude(along) : along);
    Q w{};
    if (weighted) w = R::magnitude(R::weights(first_lanes<T, taps>(t))) * weight;
    for (int i = 0; i < taps; ++i) {
      const P plane = x * z[i];
      const Q size = w * z_size[i];
      for (int j = 0; j < lines; ++j) {
        T *to = values + numbers * at[i][j], *counted = sizes + at[i][j];
        store(to, load<P>(to) + (V == 3 ? plane * y[j] : plane));
        if (weighted) store(counted, load<Q>(counted) + (V == 3 ? size * y_size[j] : size));
      }
    }
  }

  // This and the next are apart, so that there is one copy, and all owners round alike. Both for the taps that are
  // stored as they are and for the mates of the others, a line is written from x = 0 on, of which some entries get
  // nothing.
  TORCH_PROJECTORS_APART void at_edge(const Block<Interpolation, T, V>& b, int u, const T* value, T weight) const {
    const typename Block<Interpolation, T, V>::Edge edge(b, entries, u);
    const P t = everywhere<P>(b.t[0][u]), all = spread<T, taps * numbers, numbers>(value);
    P values[2];
    Q sizes[2];
    for (const bool mates : {false, true}) {
      P along = X::weights(t, X::tables.at_edge[edge.kind][mates]);
      if (real) along = X::magnitude(along);
      values[mates] = X::only_taps(edge.kind, mates, along * all);
      const Q size = R::magnitude(R::weights(first_lanes<T, taps>(t), R::tables.at_edge[edge.kind][mates]));
      sizes[mates] = R::only_taps(edge.kind, mates, size * weight);
    }
    for (int slow = 0; slow < taps; ++slow) {
      const int64_t plane = magnitude(b.k[V - 1][u] + slow);  // and that of mates
      if (plane < low || plane >= high) continue;
      for (int line = 0; line < (V == 3 ? taps : 1); ++line) {
        const T w[] = {b.weight[V - 1][slow][u], V == 3 ? b.weight[1][line][u] : T(1)};
        const T product = tap_weight(w[0]) * tap_weight(w[1]), size = tap_size(w[0]) * tap_size(w[1]);
        for (const bool mate : {false, true}) {
          const int64_t start = V == 3 ? edge.start(mate, line, slow) : edge.start(mate, slow, 0);
          T *to = volume + start * numbers, *counted = weights + start;
          store(to, load<P>(to) + values[mate] * product);
          if (weights != nullptr) store(counted, load<Q>(counted) + sizes[mate] * size);
        }
      }
    }
  }

  TORCH_PROJECTORS_APART void anywhere(const T (&p)[V], const T* value, T weight, T sign) const {
    const T lowest = std::floor(p[V - 1] + T(Interpolation::rounding)) + T(Interpolation::first);
    const T highest = lowest + T(taps - 1), inner = std::max(std::max(lowest, -highest), T(0));
    if ((std::max(-lowest, highest) < T(low) || inner >= T(high)) && p[0] - p[0] == 0 && p[1] - p[1] == 0) return;
    const bool finite = each_tap<Interpolation>(
        grid, p, [&](int64_t offset, bool mirrored, const T (&w)[V], const T (&)[V]) {
          if (!own.hold(offset)) return;
          T product = 1, size = 1;
          for (int a = 0; a < V; ++a) {
            product *= tap_weight(w[a]);
            size *= magnitude(w[a]);
          }
          for (int c = 0; c < numbers; ++c) {
            const T turned = c == 1 ? (mirrored ? -sign : sign) * value[c] : value[c];
            volume[offset * numbers + c] += rounded(product * turned);
          }
          if (weights != nullptr) weights[offset] += rounded(size * weight);
        });
    if (finite || low > 0) return;
    // Nobody knows where to: let it be seen.
    for (int c = 0; c < numbers; ++c) volume[c] = T(NAN);
    if (weights != nullptr) weights[0] = T(NAN);
  }

  // Asks for the entries of the next ones meanwhile if they are far, which keeps up with the adding: asked for at once,
  // they would be waited for. Samples that are not usual come last, by functions that leave no registers to the others.
  template <bool weighted>
  void write(const Samples<Interpolation, T, V, numbers>& s, const Samples<Interpolation, T, V, numbers>& next,
             bool far) {
    const Block<Interpolation, T, V>& b = s.block;
    int32_t all_usual = 1;
#pragma omp simd simdlen(kLanes) reduction(& : all_usual)
    for (int u = 0; u < b.whole(); ++u) {
      usual[u] = int32_t(b.place[u] == 2) & int32_t(s.nothing[u] == 0);
      all_usual &= usual[u];
    }
    const auto ask = [&](int u) {
      next.block.template prefetch<numbers>(volume, u);
      if (weighted) next.block.template prefetch<1>(weights, u);
    };
    T *const to = volume, *const sizes = weights;
    const int first = int(b.first), count = b.count, parts = s.behind < count ? 2 : 1;
    const int asked = far ? next.block.count : 0;
    for (int column = 0; column < kApart; ++column) {
      for (int part = 0; part < parts; ++part) {
        const int from = part == 0 ? 0 : s.behind, end = part == 0 ? s.hole : count;
        for (int u = from + ((column - first - from) & (kApart - 1)); u < end; u += kApart) {
          if (u < asked) ask(u);
          if (usual[u]) inside<weighted>(b, u, s.values + numbers * u, weighted ? s.weights[u] : T(0), to, sizes);
        }
      }
    }
    for (int u = count; u < asked; ++u) ask(u);
    if (all_usual) return;
    for (int u = 0; u < count; ++u) {
      if (usual[u] || (u >= s.hole && u < s.behind)) continue;
      const T weight = weighted ? s.weights[u] : T(0);
      if (b.at_edge(u) && entries.roomy) {
        at_edge(b, u, s.values + numbers * u, weight);
      } else {
        T p[V];
        for (int a = 0; a < V; ++a) p[a] = s.row.position(a, b.first + u);
        anywhere(p, s.values + numbers * u, weight, b.sign[u]);
      }
    }
  }
};

// Adds images to ranges of |k| along the slowest axis of volumes.
template <class Interpolation, class T, int V, int I, bool real>
class Inserter {
  static constexpr int numbers = real ? 1 : 2;

 public:
  View<T, V, I> view;

  Inserter(const Problem& q, const Rows<I>& rows, const Volume<Interpolation, T, V>& entries, const void* images,
           const void* weights, const Sums<T, V, numbers>& sums)
      : view(q, rows),
        rows_(rows),
        entries_(entries),
        images_(static_cast<const T*>(images)),
        weights_(static_cast<const T*>(weights)),
        sums_(sums),
        far_(is_far(entries.grid, size_t(sums.bytes() / entries.grid.size()))) {}

  // The image that is the job's next.
  void add(const Job& job) {
    Writer<Interpolation, T, V, real> to{entries_, sums_.volume(job.batch, job.copy),
                                         sums_.weights(job.batch, job.copy), job.low, job.high};
    view.set(job.batch, job.pose);
    start_ = view.start();
    for (int64_t first = 0; first < rows_.count(); first += plan_.most) {
      plan_.set(view, first, job.low, job.high);
      for (int visit = 0; visit < plan_.visits; ++visit) {
        if (visit + kAhead < plan_.visits) fetch(first, visit + kAhead);
        add_row(first + plan_.row[visit], plan_.part(visit), to);
      }
    }
    write(samples_[now_], to);
    waiting_ = false;
  }

 private:
  using Mine = Samples<Interpolation, T, V, numbers>;

  int64_t start(int64_t row) const { return start_ + row * columns_; }

  void fetch(int64_t first, int visit) const {
    const Part part = plan_.part(visit);
    const int64_t from = start(first + plan_.row[visit]) + part.from, count = part.to - part.from;
    prefetch_all(images_ + from * numbers, count * numbers);
    if (weights_ != nullptr) prefetch_all(weights_ + from, count);
  }

  void add_row(int64_t index, const Part& all, Writer<Interpolation, T, V, real>& writer) {
    // Blocks of the row, whatever of them is own: the order within a block is the same for every owner.
    for (int32_t from = all.from / kBlock * kBlock; from < all.to; from += kBlock) {
      const Part part = all.within(from, from + kBlock);
      if (part.empty()) continue;
      Mine& next = samples_[1 - now_];
      next.row = view.row(index);
      next.block.first = part.from;
      next.block.count = part.to - part.from;
      next.hole = part.hole - part.from;
      next.behind = part.behind - part.from;
      next.block.template locate<false, true>(entries_, next.row, int32_t(writer.low), int32_t(writer.high));
      // In whole vectors where another row follows in memory.
      read(next, start(index) + part.from, index < roomy_ ? next.block.whole() : next.block.count);
      write(next, writer);
      now_ = 1 - now_;
      waiting_ = true;
    }
  }

  // The samples that wait, if any do, before the next ones.
  void write(const Mine& next, Writer<Interpolation, T, V, real>& writer) {
    if (!waiting_) return;
    if (weights_ == nullptr)
      writer.template write<false>(samples_[now_], next, far_);
    else
      writer.template write<true>(samples_[now_], next, far_);
  }

  // Values and weights of the block's samples, shifted back.
  void read(Mine& s, int64_t start, int count) {
    const T *in = images_ + start * numbers, *counts = view.counts.data() + s.block.first;
    if (real) {
#pragma omp simd
      for (int u = 0; u < count; ++u) {
        s.values[u] = in[u] * counts[u];
        s.nothing[u] = 0 * s.values[u];
      }
    } else {
      const Complex<T> c = s.row.phase;
      const T *xr = view.phases.re() + s.block.first, *xi = view.phases.im() + s.block.first;
#pragma omp simd
      for (int u = 0; u < count; ++u) {
        const T re = xr[u] * c.re - xi[u] * c.im, im = xr[u] * c.im + xi[u] * c.re;
        const T a = in[2 * u] * re + in[2 * u + 1] * im, d = (in[2 * u + 1] * re - in[2 * u] * im) * s.block.sign[u];
        s.values[numbers * u] = a;
        s.values[numbers * u + numbers - 1] = d;
        s.nothing[u] = 0 * a + 0 * d;
      }
    }
    if (weights_ != nullptr) {
      const T* w = weights_ + start;
#pragma omp simd
      for (int u = 0; u < count; ++u) {
        s.weights[u] = w[u] * counts[u];
        s.nothing[u] += 0 * s.weights[u];
      }
    }
  }

  const Rows<I>& rows_;
  const Volume<Interpolation, T, V>& entries_;
  const T *images_, *weights_;
  const Sums<T, V, numbers>& sums_;
  const bool far_;
  const int64_t columns_ = rows_.grid.columns();
  const int64_t roomy_ = columns_ >= kLanes ? rows_.count() - 1 : 0;  // rows that have a vector of numbers behind them
  int64_t start_ = 0;  // of the image, in entries
  Plan<Interpolation, T, V, I> plan_;
  Mine samples_[2];  // those to be written, and the next ones
  int now_ = 0;
  bool waiting_ = false;
};

template <class Interpolation, class T, int V, int I, bool real>
void backproject(const Problem& q, const void* images, const void* weights, void* volumes, void* weight_volumes,
                 const Parallel& parallel) {
  constexpr int numbers = real ? 1 : 2;
  const Rows<I> rows(grid_of<I>(q.image_shape), q.cutoff);
  const Sums<T, V, numbers> sums(q, q.poses * rows.samples(), static_cast<T*>(volumes), static_cast<T*>(weight_volumes));
  const Volume<Interpolation, T, V> entries(sums.grid, q.mates);
  const int64_t planes = sums.grid.shape[V - 1] / 2 + 1;
  const auto add_mates = [&](int64_t b, int64_t low, int64_t high) {
    if (q.mates) add_mates_between<T, V, numbers>(sums.grid, low, high, sums.volume(b, 0), sums.weights(b, 0));
  };
  Shares shares;
  parallel(kSlabs, [&](int64_t from, int64_t to) {
    if (from == to) return;  // a runner may ask for it beside the whole range, of which nobody else takes a part
    Inserter<Interpolation, T, V, I, real> inserter(q, rows, entries, images, weights, sums);
    const auto clear = [&](const Job& job) {
      if (!q.add || job.copy > 0) sums.clear(job.batch, job.copy, job.low, job.high);
    };
    const auto nothing = [](const Job&) {};
    const auto add = [&](const Job& job) { inserter.add(job); };
    const auto complete = [&](const Job& job) {
      if (sums.copies == 1) add_mates(job.batch, job.low, job.high);
    };
    const bool alone = to - from == kSlabs;
    const Limits limits = alone ? whole(planes) : slabs(inserter.view, q.poses, planes);
    for (int64_t first, last; shares.begin(from, to, first, last) || shares.begin(0, kSlabs, first, last);)
      sums.each_job(limits, first, last, [&](const Job& job) { shares.work(from, job, clear, add, complete); });
    for (Job job; !alone && shares.take(limits, job);) shares.work(from, job, nothing, add, complete);
  });
  if (sums.copies == 1) return;
  parallel(q.batch * planes, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const int64_t b = i / planes, k = i % planes;
      sums.add_copies(b, k, k + 1);
      add_mates(b, k, k + 1);
    }
  });
}

}  // namespace LEVEL
}  // namespace torch_projectors
