// Reading a volume: projections, and the gradients of poses. A block has some rows of one image.
#pragma once

#include "sample.h"

namespace torch_projectors {

// What a sample reads: the value, and its derivatives along (x, y[, z]) of the volume.
template <class T, int V, bool real>
struct Sample {
  using E = Entry<T, real>;
  E value{}, derivative[V]{};

  template <class Interpolation, bool slopes>
  TORCH_PROJECTORS_DEVICE void gather(const Lattice<V>& grid, const E* volume, const T (&p)[V]) {
    constexpr int taps = Interpolation::taps;
    Taps<Interpolation, T, V, real, slopes> of(grid, p);
    if (!of.any) {
      if (of.finite) return;
      set(value, T(NAN));
      for (E& d : derivative) set(d, T(NAN));
      return;
    }
    TORCH_PROJECTORS_UNROLL_COLUMNS
    for (int x = 0; x < taps; ++x, of.next_column()) {
      const Column<V, taps> column(grid, of);
      E sum{}, along_y{}, along_z{};
      TORCH_PROJECTORS_UNROLL
      for (int z = 0; z < (V == 3 ? taps : 1); ++z) {
        const E* slice = column.of_slice(grid, volume, z);
        E in_plane{}, slope{};
        TORCH_PROJECTORS_UNROLL
        for (int y = 0; y < taps; ++y) {
          const E entry = read(slice + column.line[y]);
          add_scaled(in_plane, of.weight[1][y], entry);
          if (slopes) add_scaled(slope, of.slope[1][y], entry);
        }
        const T w = V == 3 ? of.weight[V - 1][z] : T(1);
        add_scaled(sum, w, in_plane);
        if (slopes) {
          add_scaled(along_y, w, slope);
          if (V == 3) add_scaled(along_z, of.slope[V - 1][z], in_plane);
        }
      }
      const auto turned_back = [&](E e) { return column.mirrored ? conjugate(e) : e; };
      sum = turned_back(sum);
      add_scaled(value, of.weight[0][0], sum);
      if (slopes) {
        add_scaled(derivative[0], of.slope[0][0], sum);
        add_scaled(derivative[1], of.weight[0][0], turned_back(along_y));
        if (V == 3) add_scaled(derivative[V - 1], of.weight[0][0], turned_back(along_z));
      }
    }
  }
};

template <class Interpolation, class T, int V, int I, bool real>
struct Project {
  using E = Entry<T, real>;
  struct Shared {};

  Setting<T, V, I> q;
  const E* volumes;
  E* images;

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared&) const {
    for (int64_t task = block.index(); task < q.tasks(); task += block.count()) {
      const Part part = q.part(task);
      const E* volume = volumes + part.batch * q.volume_stride;
      E* image = images + q.start(part.batch, part.pose);
      block.each([&](int thread) {
        const Pose<T, V, I> pose(q, part.batch, part.pose);
        q.each_entry(part, thread, [&](int64_t entry, const int32_t (&k)[I]) {
          Sample<T, V, real> sample;
          if (q.within(k)) {
            T p[V];
            pose.position(k, p);
            sample.template gather<Interpolation, false>(q.volume, volume, p);
            sample.value = scaled(q.counts(k), product(pose.phase(k), sample.value));
          }
          image[entry] = sample.value;
        });
      });
    }
  }
};

// Sums over a part of one image: dL / d matrix, without the oversampling, and dL / d shift, without 2 pi / N.
template <int V, int I>
constexpr int kPoseSums = V * I + I;

template <class Interpolation, class T, int V, int I, bool real>
struct Gradients {
  using E = Entry<T, real>;
  static constexpr int sums = kPoseSums<V, I>, warps = kThreads / kWarp;
  struct Shared {
    T of_warp[warps][sums];
  };

  Setting<T, V, I> q;
  const E* volumes;
  const E* images;
  E* grad_images;  // or null
  T* of_parts;     // [task, sums], or null

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared& shared) const {
    for (int64_t task = block.index(); task < q.tasks(); task += block.count()) {
      const Part part = q.part(task);
      const E* volume = volumes + part.batch * q.volume_stride;
      const int64_t start = q.start(part.batch, part.pose);
      PerThread<T[sums]> sum;
      block.each([&](int thread) {
        const Pose<T, V, I> pose(q, part.batch, part.pose);
        T local[sums] = {};
        q.each_entry(part, thread, [&](int64_t entry, const int32_t (&k)[I]) {
          Sample<T, V, real> sample;
          if (q.within(k)) {
            T p[V];
            pose.position(k, p);
            sample.template gather<Interpolation, true>(q.volume, volume, p);
            const Pair<T> phase = pose.phase(k);
            const T counts = q.counts(k);
            const E unshifted = scaled(counts, product(conjugate(phase), read(images + start + entry)));
            TORCH_PROJECTORS_UNROLL
            for (int a = 0; a < V; ++a) {
              const T force = along(unshifted, sample.derivative[a]);
              for (int c = 0; c < I; ++c) local[a * I + c] += force * T(k[c]);
            }
            const T torque = across(unshifted, sample.value);
            for (int c = 0; c < I; ++c) local[V * I + c] += torque * T(k[c]);
            sample.value = scaled(counts, product(phase, sample.value));
          }
          if (grad_images != nullptr) grad_images[start + entry] = sample.value;
        });
        TORCH_PROJECTORS_UNROLL
        for (int i = 0; i < sums; ++i) sum[thread][i] = local[i];
      });
      if (of_parts == nullptr) continue;
      TORCH_PROJECTORS_UNROLL
      for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) block.add_from(sum, lanes);
      block.meet();  // the last task's sums are read
      block.each([&](int thread) {
        if (thread % kWarp != 0) return;
        TORCH_PROJECTORS_UNROLL
        for (int i = 0; i < sums; ++i) shared.of_warp[thread / kWarp][i] = sum[thread][i];
      });
      block.meet();
      block.each([&](int thread) {
        if (thread >= sums) return;
        T total = 0;
        for (int warp = 0; warp < warps; ++warp) total += shared.of_warp[warp][thread];
        of_parts[task * sums + thread] = total;
      });
    }
  }
};

// The gradients of poses: sums of parts, in one order, and over a batch that shares them.
template <class T, int V, int I>
struct AddParts {
  struct Shared {};
  static constexpr int sums = kPoseSums<V, I>, numbers = V * V + I;

  Setting<T, V, I> q;
  const T* of_parts;
  T* grad_rotations;  // or null
  T* grad_shifts;     // or null

  TORCH_PROJECTORS_DEVICE void operator()(const Block& block, Shared&) const {
    const int64_t count = q.batch * q.poses * numbers;
    block.each([&](int thread) {
      for (int64_t i = block.index() * kThreads + thread; i < count; i += block.count() * kThreads) {
        const int64_t image = i / numbers, b = image / q.poses, p = image % q.poses;
        const int number = int(i % numbers), e = number < V * V ? number : number - V * V;
        if (number < V * V) {
          if (grad_rotations == nullptr || (b > 0 && q.rotation_strides[0] == 0)) continue;
          const double sum = e % V < I ? total(b, p, q.rotation_strides[0] == 0, e / V * I + e % V) : 0;
          grad_rotations[b * q.rotation_strides[0] + p * q.rotation_strides[1] + e] = T(double(q.oversampling) * sum);
        } else {
          if (grad_shifts == nullptr || (b > 0 && q.shift_strides[0] == 0)) continue;
          const double turn = 2 * 3.14159265358979323846 / double(q.image.shape[e]);
          grad_shifts[b * q.shift_strides[0] + p * q.shift_strides[1] + e] =
              T(turn * total(b, p, q.shift_strides[0] == 0, V * I + e));
        }
      }
    });
  }

  TORCH_PROJECTORS_DEVICE double total(int64_t first, int64_t p, bool shared, int number) const {
    double sum = 0;
    for (int64_t b = first; b < (shared ? q.batch : first + 1); ++b)
      for (int32_t part = 0; part < q.parts; ++part)
        sum += double(of_parts[((b * q.poses + p) * q.parts + part) * sums + number]);
    return sum;
  }
};

template <class Interpolation, class T, int V, int I, bool real>
void project(const Problem& q, const void* volumes, void* images) {
  using E = Entry<T, real>;
  const Setting<T, V, I> setting(q);
  launch(Project<Interpolation, T, V, I, real>{setting, static_cast<const E*>(volumes), static_cast<E*>(images)},
         q.batch * q.poses * setting.parts, q.stream);
}

template <class Interpolation, class T, int V, int I, bool real>
void gradients(const Problem& q, const void* volumes, const void* images, void* grad_images, void* grad_rotations,
               void* grad_shifts, void* sums) {
  using E = Entry<T, real>;
  const Setting<T, V, I> setting(q);
  const bool poses = grad_rotations != nullptr || grad_shifts != nullptr;
  T* of_parts = poses ? static_cast<T*>(sums) : nullptr;
  launch(Gradients<Interpolation, T, V, I, real>{setting, static_cast<const E*>(volumes), static_cast<const E*>(images),
                                                 static_cast<E*>(grad_images), of_parts},
         q.batch * q.poses * setting.parts, q.stream);
  if (!poses) return;
  const int64_t numbers = q.batch * q.poses * (V * V + I);
  launch(AddParts<T, V, I>{setting, of_parts, static_cast<T*>(grad_rotations), static_cast<T*>(grad_shifts)},
         (numbers + kThreads - 1) / kThreads, q.stream);
}

}  // namespace torch_projectors
