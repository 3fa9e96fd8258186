// Adding to a volume: the transpose of gathering. A block has some rows of one image, and adds by atomics.
#pragma once

#include "sample.h"

namespace torch_projectors {

// Where no position is a number, nobody knows where to add: let it be seen.
TORCH_PROJECTORS_DEVICE void spoil(Quad* volume, float*) { volume[0] = {NAN, NAN, NAN, 0}; }
template <class T, class E>
TORCH_PROJECTORS_DEVICE void spoil(E* volume, T* weights) {
  set(volume[0], T(NAN));
  if (weights != nullptr) weights[0] = T(NAN);
}

// One atomic a tap for data and weights together, where these are interleaved.
TORCH_PROJECTORS_DEVICE void add_weighted(Quad* sums, float*, int32_t at, Pair<float> value, float weight) {
  add(sums + at, Quad{value.re, value.im, weight, 0});
}
template <class T, class E>
TORCH_PROJECTORS_DEVICE void add_weighted(E* sums, T* weight_sums, int32_t at, E value, T weight) {
  add(sums + at, value);
  add(weight_sums + at, weight);
}

// Sum is an entry, or a Quad, which has the weights in it.
template <class Interpolation, class T, int V, int I, bool real, class Sum = Entry<T, real>>
struct Backproject {
  using E = Entry<T, real>;
  static constexpr int taps = Interpolation::taps;
  struct Shared {};

  Setting<T, V, I> q;
  const E* images;
  const T* weights;  // or null
  Sum* volumes;
  T* weight_volumes;  // or null

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared&) const {
    for (int64_t task = block.index(); task < q.tasks(); task += block.count()) {
      const Part part = q.part(task);
      const int64_t start = q.start(part.batch, part.pose);
      Sum* volume = volumes + part.batch * q.volume_stride;
      T* weight_volume = weight_volumes == nullptr ? nullptr : weight_volumes + part.batch * q.volume_stride;
      block.each([&](int thread) {
        const Pose<T, V, I> pose(q, part.batch, part.pose);
        q.each_entry(part, thread, [&](int64_t entry, const int32_t (&k)[I]) {
          if (!q.within(k)) return;
          T p[V];
          pose.position(k, p);
          const Taps<Interpolation, T, V, real, false> of(q.volume, p);
          if (!of.finite) return spoil(volume, weight_volume);
          if (!of.any) return;
          const T counts = q.counts(k);
          const E value = scaled(counts, product(conjugate(pose.phase(k)), read(images + start + entry)));
          if constexpr (std::is_same_v<Sum, E>) {
            if (weights == nullptr) return add<false>(of, value, T(0), volume, weight_volume);
          }
          add<true>(of, value, counts * read(weights + start + entry), volume, weight_volume);
        });
      });
    }
  }

  template <bool weighted>
  TORCH_PROJECTORS_DEVICE void add(Taps<Interpolation, T, V, real, false> of, E value, T weight, Sum* volume,
                                   T* weight_volume) const {
    TORCH_PROJECTORS_UNROLL_COLUMNS
    for (int x = 0; x < taps; ++x, of.next_column()) {
      const Column<V, taps> column(q.volume, of);
      const E along_x = scaled(of.weight[0][0], column.mirrored ? conjugate(value) : value);
      const T weight_x = std::abs(of.weight[0][0]) * weight;
      TORCH_PROJECTORS_UNROLL
      for (int z = 0; z < (V == 3 ? taps : 1); ++z) {
        Sum* slice = column.of_slice(q.volume, volume, z);
        T* weight_slice = column.of_slice(q.volume, weight_volume, z);
        const T w = V == 3 ? of.weight[V - 1][z] : T(1);
        const E in_plane = scaled(w, along_x);
        const T weight_in_plane = std::abs(w) * weight_x;
        TORCH_PROJECTORS_UNROLL
        for (int y = 0; y < taps; ++y) {
          const E here = scaled(of.weight[1][y], in_plane);
          if constexpr (weighted)
            add_weighted(slice, weight_slice, column.line[y], here, std::abs(of.weight[1][y]) * weight_in_plane);
          else
            torch_projectors::add(slice + column.line[y], here);
        }
      }
    }
  }
};

// to += from
template <class T>
struct Accumulate {
  struct Shared {};

  int64_t n;
  const T* from;
  T* to;

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared&) const {
    block.each([&](int thread) {
      for (int64_t i = block.index() * kThreads + thread; i < n; i += block.count() * kThreads) to[i] += read(from + i);
    });
  }
};

template <class T>
void accumulate(Stream stream, int64_t n, const void* from, void* to) {
  // Enough to fill any device.
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  launch(Accumulate<T>{n, static_cast<const T*>(from), static_cast<T*>(to)}, blocks < 8192 ? blocks : 8192, stream);
}

template <class Interpolation, class T, int V, int I, bool real>
void backproject(const Problem& q, const void* images, const void* weights, void* volumes, void* weight_volumes) {
  using E = Entry<T, real>;
  const Setting<T, V, I> setting(q);
  launch(Backproject<Interpolation, T, V, I, real>{setting, static_cast<const E*>(images),
                                                   static_cast<const T*>(weights), static_cast<E*>(volumes),
                                                   static_cast<T*>(weight_volumes)},
         q.batch * q.poses * setting.parts, q.stream);
}

// Volumes and weights from sums that have both.
struct Separate {
  struct Shared {};

  int64_t n, size, stride;  // sums, those of a volume, and from volume to volume
  const Quad* sums;
  Pair<float>* volumes;
  float* weight_volumes;

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared&) const {
    block.each([&](int thread) {
      for (int64_t i = block.index() * kThreads + thread; i < n; i += block.count() * kThreads) {
        const Quad x = sums[i];
        const int64_t to = i / size * stride + i % size;
        volumes[to] = {x.re, x.im};
        weight_volumes[to] = x.weight;
      }
    });
  }
};

template <class Interpolation, class T, int V, int I, bool real>
struct InterleavedBackproject : Backproject<Interpolation, T, V, I, real, Quad> {};

// A schedule to measure beside backproject: sums, cleared, have room for one Quad an entry.
template <class Interpolation, int V, int I>
void backproject_interleaved(const Problem& q, const void* images, const void* weights, void* sums, void* volumes,
                             void* weight_volumes) {
  Problem packed = q;
  packed.volume_stride = (q.volume_shape[0] / 2 + 1) * q.volume_shape[1] * q.volume_shape[2];
  const Setting<float, V, I> setting(packed);
  launch(InterleavedBackproject<Interpolation, float, V, I, false>{{setting, static_cast<const Pair<float>*>(images),
                                                                    static_cast<const float*>(weights),
                                                                    static_cast<Quad*>(sums), nullptr}},
         q.batch * q.poses * setting.parts, q.stream);
  const int64_t n = q.batch * packed.volume_stride, blocks = (n + kThreads - 1) / kThreads;
  launch(Separate{n, packed.volume_stride, q.volume_stride, static_cast<const Quad*>(sums),
                  static_cast<Pair<float>*>(volumes), static_cast<float*>(weight_volumes)},
         blocks, q.stream);
}

}  // namespace torch_projectors
