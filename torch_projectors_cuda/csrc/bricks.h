// Adding to a volume without atomics: a block owns a brick of the volume, and lists the images whose samples may have
// taps there. Their samples are computed once by the block, a tile at a time, and each thread takes those with taps at
// the entries it owns, always in the same order.
//
// It takes fewer steps than owned.h; whether less time too, with few blocks that meet often, is to be measured.
#pragma once

#include <limits>

#include "owned.h"

namespace torch_projectors {

// Frequencies of entries, without the mates that are stored there.
template <int V>
struct Brick {
  // A cube or square, which fewer images touch than longer ones: two entries for each thread, or one.
  static constexpr int size = V == 3 ? 8 : 16, of_thread = V == 3 ? 2 : 1;

  int32_t low[V], high[V];
};

template <class T>
TORCH_PROJECTORS_DEVICE void cross(const T (&a)[3], const T (&b)[3], T (&product)[3]) {
  product[0] = a[1] * b[2] - a[2] * b[1];
  product[1] = a[2] * b[0] - a[0] * b[2];
  product[2] = a[0] * b[1] - a[1] * b[0];
}

// An image and one of the ways in which lattice points are stored in a brick, as they are or as mates, and where to
// look for the samples with taps at such points.
template <class Interpolation, class T, int V, int I>
struct Search {
  static_assert(2 * (1 - Interpolation::first - Interpolation::rounding) == Interpolation::taps,
                "taps are as far from a sample on both sides");
  static constexpr T epsilon = std::numeric_limits<T>::epsilon();
  static constexpr T everywhere = T(1e30);

  Pose<T, V, I> pose;
  int64_t number;  // of the pose
  bool mirrored, aliased[V];
  Range window[I];    // of frequencies of samples
  T low[V], high[V];  // of positions of samples
  // Coordinates in the image of a point, and how far from them samples with taps there may be. What the image lacks is
  // the distance from its plane: samples are at 0.
  T inverse[V][V], reach[V];
  T per_step[V], along[V];  // the same along rows, of each of the point's coordinates

  // The point stored at k, if it is stored there in this way.
  TORCH_PROJECTORS_DEVICE bool point(const Lattice<V>& grid, const int32_t (&k)[V], T (&at)[V]) const {
    bool stored = !mirrored || k[0] > 0;  // at x = 0 a point is stored as it is
    TORCH_PROJECTORS_UNROLL
    for (int a = 0; a < V; ++a) {
      stored = stored && (!aliased[a] || 2 * k[a] == grid.shape[a]);
      at[a] = T(mirrored != aliased[a] ? -k[a] : k[a]);
    }
    return stored;
  }

  // Whether a sample may have taps in the brick.
  TORCH_PROJECTORS_DEVICE bool reaches(const int32_t (&k)[I]) const {
    T p[V];
    pose.position(k, p);
    bool near = true;
    for (int a = 0; a < V; ++a) near = near && p[a] >= low[a] && p[a] <= high[a];
    return near;
  }

  TORCH_PROJECTORS_DEVICE T coordinate(int c, const T (&at)[V]) const {
    T sum = inverse[c][0] * at[0];
    for (int a = 1; a < V; ++a) sum += inverse[c][a] * at[a];
    return sum;
  }

  // Whether there may be samples with taps in the brick.
  TORCH_PROJECTORS_DEVICE bool begin(const Setting<T, V, I>& q, Brick<V> brick) {
    T middle[V], half[V];
    brick.low[0] = mirrored && brick.low[0] == 0 ? 1 : brick.low[0];
    for (int a = 0; a < V; ++a) {
      if (aliased[a]) brick.low[a] = brick.high[a];  // n/2, of -n/2
      middle[a] = T(brick.low[a] + brick.high[a]) / 2;
      if (mirrored != aliased[a]) middle[a] = -middle[a];
      half[a] = T(brick.high[a] - brick.low[a]) / 2;
    }
    if (brick.low[0] > brick.high[0]) return false;
    T around[V];  // a point, where samples with taps there are
    const bool invertible = invert();
    for (int a = 0; a < V; ++a) {
      T farthest = T(q.volume.shape[a] / 2);
      for (int c = 0; c < I; ++c) farthest += std::abs(pose.matrix[a][c]) * T(q.image.shape[c] / 2);
      around[a] = T(Interpolation::taps) / 2 + T(0.01) + 8 * epsilon * farthest;  // what rounding may be
      low[a] = middle[a] - half[a] - around[a];
      high[a] = middle[a] + half[a] + around[a];
      const T step = pose.matrix[a][0];
      const bool steps = std::abs(step) * T(q.image.columns) > T(0.5);
      per_step[a] = steps ? 1 / step : T(0);
      along[a] = steps ? around[a] / std::abs(step) : everywhere;
    }
    int64_t square = 0;  // of the frequency in the window that is nearest to 0
    for (int c = 0; c < V; ++c) {
      T reach_of_all = reach[c] = invertible ? T(0.01) : everywhere;
      for (int a = 0; a < V; ++a) {
        const T by = std::abs(inverse[c][a]);
        reach[c] += by * (around[a] + 200 * epsilon * T(q.volume.shape[a] / 2));
        reach_of_all += by * half[a];
      }
      reach_of_all += reach[c];
      const T at = coordinate(c, middle);
      if (c >= I) {
        if (std::abs(at) > reach_of_all) return false;
        continue;
      }
      const int32_t n = q.image.shape[c];
      Range& range = window[c];
      range = {c == 0 ? 0 : -((n - 1) / 2), n / 2 + 1};
      range.keep(at - reach_of_all, at + reach_of_all);
      if (range.from >= range.to) return false;
      const int64_t nearest = range.from > 0 ? range.from : range.to <= 0 ? 1 - range.to : 0;
      square += nearest * nearest;
    }
    return square <= q.farthest;
  }

  // Of three axes and an image of two, with the normal as third column. False, and zeros, where columns are nearly
  // parallel, or too large or small to tell.
  TORCH_PROJECTORS_DEVICE bool invert() {
    T column[V][V];
    for (int c = 0; c < I; ++c)
      for (int a = 0; a < V; ++a) column[c][a] = pose.matrix[a][c];
    if constexpr (V == 3) {
      if (I == 2) cross(column[0], column[1], column[2]);
      for (int c = 0; c < V; ++c) cross(column[(c + 1) % V], column[(c + 2) % V], inverse[c]);
    } else {
      inverse[0][0] = column[1][1], inverse[0][1] = -column[1][0];
      inverse[1][0] = -column[0][1], inverse[1][1] = column[0][0];
    }
    T determinant = 0, largest = 1;  // squared, were columns at right angles
    for (int c = 0; c < V; ++c) {
      T square = 0;
      for (int a = 0; a < V; ++a) square += column[c][a] * column[c][a];
      largest *= square;
    }
    for (int a = 0; a < V; ++a) determinant += inverse[0][a] * column[0][a];
    const bool invertible = determinant * determinant > T(0.0025) * largest;
    for (int c = 0; c < V; ++c)
      for (int a = 0; a < V; ++a) inverse[c][a] = invertible ? inverse[c][a] / determinant : T(0);
    return invertible;
  }
};

template <class Interpolation, class T, int V, int I, bool real>
struct BrickBackproject {
  using E = Entry<T, real>;
  static constexpr int own = Brick<V>::of_thread, warps = kThreads / kWarp;
  static constexpr int kSearches = kWarp, kSamples = 512, kAcross = 63;  // a tile's; odd, so rows begin at other banks

  struct alignas((real ? 2 : 4) * sizeof(T)) Sample {
    E value;
    T weight;
  };
  struct Shared {
    Brick<V> brick;  // not in registers, so that more warps have room
    uint32_t listed[warps];
    Search<Interpolation, T, V, I> searches[kSearches];
    Sample samples[2][kSamples];  // while some threads take from a tile, others fill the next
  };
  struct Sum {
    E value;
    T weight;
  };
  using Sums = PerThread<Sum[own]>;

  Setting<T, V, I> q;
  const E* images;
  const T* weights;  // or null
  E* volumes;
  T* weight_volumes;  // or null
  int32_t bricks[V];

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared& shared) const {
    int64_t of_volume = 1;
    for (int a = 0; a < V; ++a) of_volume *= bricks[a];
    for (int64_t task = block.index(); task < q.batch * of_volume; task += block.count())
      add_to(block, shared, task / of_volume, task % of_volume);
  }

  // Those in the middle, which most images touch, come first.
  TORCH_PROJECTORS_DEVICE Brick<V> brick_of(int64_t number) const {
    constexpr int size = Brick<V>::size;
    Brick<V> found;
    for (int a = 0; a < V; ++a) {
      const int32_t i = int32_t(number % bricks[a]), n = q.volume.shape[a], negative = (n - 1) / 2;
      number /= bricks[a];
      found.low[a] = a == 0 ? i * size : (negative / size + (i % 2 == 1 ? i / 2 + 1 : -(i / 2))) * size - negative;
      found.high[a] = found.low[a] + size - 1 < n / 2 ? found.low[a] + size - 1 : n / 2;
    }
    return found;
  }

  // Frequencies of an entry of a thread: a warp's are compact too. False outside of the volume.
  TORCH_PROJECTORS_DEVICE static bool entry(const Brick<V>& brick, int thread, int i, int32_t (&k)[V]) {
    const int lane = thread % kWarp, warp = thread / kWarp;
    if (V == 3) {
      k[0] = lane % 4 + warp % 2 * 4;
      k[1] = lane / 4 % 4 + warp / 2 % 2 * 4;
      k[V - 1] = lane / 16 + warp / 4 * 2 + i * 4;
    } else {
      k[0] = lane % 8 + warp % 2 * 8;
      k[1] = lane / 8 + warp / 2 * 4;
    }
    bool inside = true;
    TORCH_PROJECTORS_UNROLL
    for (int a = 0; a < V; ++a) {
      k[a] += brick.low[a];
      inside = inside && k[a] <= brick.high[a];
    }
    return inside;
  }

  TORCH_PROJECTORS_DEVICE void add_to(const Block& block, Shared& shared, int64_t b, int64_t number) const {
    block.meet();  // all are done with the one before
    block.each([&](int thread) {
      if (thread == 0) shared.brick = brick_of(number);
    });
    block.meet();
    const Brick<V>& brick = shared.brick;
    // Of even axes -n/2 is stored as n/2.
    const int ys = 2 * brick.high[1] == q.volume.shape[1] ? 2 : 1;
    const int ways = 2 * ys * (V == 3 && 2 * brick.high[V - 1] == q.volume.shape[V - 1] ? 2 : 1);
    Sums sums;
    block.each([&](int thread) {
      TORCH_PROJECTORS_UNROLL
      for (int i = 0; i < own; ++i) sums[thread][i] = {};
    });
    int tiles = 0;
    for (int64_t first = 0; first < q.poses * ways;) {
      const auto begin = [&](int thread, auto& search) {
        const int64_t i = first + thread;
        if (i >= q.poses * ways) return false;
        const int way = int(i % ways);
        search.number = i / ways;
        search.pose = Pose<T, V, I>(q, b, search.number);
        search.mirrored = way % 2 == 1;
        search.aliased[0] = false;
        search.aliased[1] = way / 2 % ys == 1;
        if (V == 3) search.aliased[V - 1] = way / 2 / ys == 1;
        T finite = 0;
        for (int a = 0; a < V; ++a)
          for (int c = 0; c < I; ++c) finite += search.pose.matrix[a][c] - search.pose.matrix[a][c];
        if (finite == 0) return search.begin(q, brick);
        const int64_t start = b * q.volume_stride;
        if (number == 0)
          spoil(volumes + start, weights == nullptr ? static_cast<T*>(nullptr) : weight_volumes + start);
        return false;
      };
      PerThread<bool> found;
      block.each([&](int thread) {
        Search<Interpolation, T, V, I> search;
        found[thread] = begin(thread, search);
      });
      block.vote(found, shared.listed);
      block.meet();
      // As many warps' as there is room for.
      int asked = 0, count = 0;
      for (; asked < warps && count + bits(shared.listed[asked]) <= kSearches; ++asked)
        count += bits(shared.listed[asked]);
      block.each([&](int thread) {
        const int warp = thread / kWarp;
        if (!found[thread] || warp >= asked) return;
        int place = bits(shared.listed[warp] & ((uint32_t(1) << thread % kWarp) - 1));
        for (int w = 0; w < warp; ++w) place += bits(shared.listed[w]);
        begin(thread, shared.searches[place]);
      });
      block.meet();
      for (int i = 0; i < count; ++i) add_image(block, shared, b, brick, shared.searches[i], sums, tiles);
      first += asked * kWarp;
    }
    block.each([&](int thread) {
      TORCH_PROJECTORS_UNROLL
      for (int i = 0; i < own; ++i) {
        int32_t k[V];
        if (!entry(brick, thread, i, k)) continue;
        const int32_t row = q.volume.index(1, k[1]);
        const int64_t at = b * q.volume_stride + int64_t(row) * q.volume.columns + k[0] +
                           (V == 3 ? int64_t(q.volume.index(V - 1, k[V - 1])) * q.volume.plane : 0);
        add_scaled(volumes[at], T(1), sums[thread][i].value);
        if (weights != nullptr) weight_volumes[at] += sums[thread][i].weight;
      }
    });
  }

  // A tile after the other. Threads meet once for each: who fills a tile has taken from the last but one, as all have.
  TORCH_PROJECTORS_DEVICE void add_image(const Block& block, Shared& shared, int64_t b, const Brick<V>& brick,
                                         const Search<Interpolation, T, V, I>& search, Sums& sums, int& tiles) const {
    const auto least = [](int32_t a, int32_t b) { return a < b ? a : b; };
    const Range(&window)[I] = search.window;
    int32_t size[3] = {1, 1, 1};
    for (int c = 0; c < I; ++c) size[c] = window[c].to - window[c].from;
    size[0] = least(size[0], kAcross);
    const int32_t stride = size[0] | 1;
    size[1] = least(size[1], kSamples / stride);
    size[2] = least(size[2], kSamples / stride / size[1]);
    const int32_t last = I == 3 ? window[I - 1].to : 1;
    for (int32_t z = I == 3 ? window[I - 1].from : 0; z < last; z += size[2])
      for (int32_t y = window[1].from; y < window[1].to; y += size[1])
        for (int32_t x = window[0].from; x < window[0].to; x += size[0]) {
          Range tile[3] = {{x, least(x + size[0], window[0].to)},
                           {y, least(y + size[1], window[1].to)},
                           {z, least(z + size[2], last)}};
          Sample(&samples)[kSamples] = shared.samples[tiles++ % 2];
          block.each([&](int thread) { fill(samples, tile, stride, search, b, thread); });
          block.meet();
          block.each([&](int thread) {
            TORCH_PROJECTORS_UNROLL
            for (int i = 0; i < own; ++i) {
              int32_t k[V];
              T at[V];
              if (entry(brick, thread, i, k) && search.point(q.volume, k, at))
                take(samples, tile, stride, search, at, sums[thread][i]);
            }
          });
        }
  }

  TORCH_PROJECTORS_DEVICE void fill(Sample (&samples)[kSamples], const Range (&tile)[3], int32_t stride,
                                    const Search<Interpolation, T, V, I>& search, int64_t b, int thread) const {
    const int32_t rows = tile[1].to - tile[1].from, all = (tile[2].to - tile[2].from) * rows * stride;
    for (int32_t i = thread; i < all; i += kThreads) {
      const uint32_t row = uint32_t(i) / uint32_t(stride), slice = row / uint32_t(rows);
      int32_t k[I];
      k[0] = tile[0].from + i - int32_t(row) * stride;
      if (I == 3) k[I - 1] = tile[2].from + int32_t(slice);
      k[1] = tile[1].from + int32_t(row) - int32_t(slice) * rows;
      Sample sample{};  // outside of the cutoff, nothing is added
      if (k[0] < tile[0].to && q.within(k) && search.reaches(k)) {
        const int32_t line = q.image.index(1, k[1]) + (I == 3 ? q.image.index(I - 1, k[I - 1]) * q.image.shape[1] : 0);
        const int64_t entry = q.start(b, search.number) + int64_t(line) * q.image.columns + k[0];
        const T counts = q.counts(k);
        sample.value = scaled(counts, product(conjugate(search.pose.phase(k)), read(images + entry)));
        if (search.mirrored) sample.value = conjugate(sample.value);
        if (weights != nullptr) sample.weight = counts * read(weights + entry);
      }
      samples[i] = sample;
    }
  }

  // The samples of a tile with taps at a point.
  TORCH_PROJECTORS_DEVICE void take(const Sample (&samples)[kSamples], const Range (&tile)[3], int32_t stride,
                                    const Search<Interpolation, T, V, I>& search, const T (&at)[V], Sum& sum) const {
    Range rows[3] = {tile[0], tile[1], tile[2]};
    TORCH_PROJECTORS_UNROLL
    for (int c = V - 1; c > 0; --c) {
      const T there = search.coordinate(c, at);
      if (c < I)
        rows[c].keep(there - search.reach[c], there + search.reach[c]);
      else if (std::abs(there) > search.reach[c])
        return;
    }
    const Pose<T, V, I>& pose = search.pose;
    for (int32_t z = rows[2].from; z < rows[2].to; ++z)
      for (int32_t y = rows[1].from; y < rows[1].to; ++y) {
        int32_t k[I] = {0, y};
        if (I == 3) k[I - 1] = z;
        T p[V], low = T(tile[0].from), high = T(tile[0].to - 1);
        pose.position(k, p);
        TORCH_PROJECTORS_UNROLL
        for (int a = 0; a < V; ++a) {
          const T there = (at[a] - p[a]) * search.per_step[a];
          if (there - search.along[a] > low) low = there - search.along[a];
          if (there + search.along[a] < high) high = there + search.along[a];
        }
        Range row = tile[0];
        row.keep(low, high);
        const Sample* line = samples + ((z - tile[2].from) * (tile[1].to - tile[1].from) + y - tile[1].from) * stride;
        for (k[0] = row.from; k[0] < row.to; ++k[0]) {
          pose.position(k, p);
          T all = 1;
          bool touched = true;
          TORCH_PROJECTORS_UNROLL
          for (int a = 0; a < V; ++a) touched = times_weight_at<Interpolation>(p[a], at[a], all) && touched;
          if (!touched) continue;
          const Sample sample = line[k[0] - tile[0].from];
          add_scaled(sum.value, real ? std::abs(all) : all, sample.value);
          sum.weight += std::abs(all) * sample.weight;
        }
      }
  }
};

template <class Interpolation, class T, int V, int I, bool real>
void bricks_backproject(const Problem& q, const void* images, const void* weights, void* volumes,
                        void* weight_volumes) {
  using E = Entry<T, real>;
  BrickBackproject<Interpolation, T, V, I, real> kernel{
      Setting<T, V, I>(q),      static_cast<const E*>(images),   static_cast<const T*>(weights),
      static_cast<E*>(volumes), static_cast<T*>(weight_volumes), {}};
  int64_t blocks = q.batch;
  for (int a = 0; a < V; ++a) {
    const int64_t stored = a == 0 ? q.volume_shape[0] / 2 + 1 : q.volume_shape[a];
    kernel.bricks[a] = int32_t((stored + Brick<V>::size - 1) / Brick<V>::size);
    blocks *= kernel.bricks[a];
  }
  launch(kernel, blocks, q.stream);
}

}  // namespace torch_projectors
