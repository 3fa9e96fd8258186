// Who adds what to a volume, when: entries get their terms in one order, for any number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>

#include "rows.h"

namespace torch_projectors {
namespace LEVEL {

// Ranges of |k| along the slowest axis, of about equal load, which threads divide among each other.
constexpr int kSlabs = 64;
using Limits = std::array<int64_t, kSlabs + 1>;

// All in one.
inline Limits whole(int64_t planes) {
  Limits limits;
  limits.fill(planes);
  limits[0] = 0;
  return limits;
}

// By where a few of the samples lie along that axis.
template <class T, int V, int I>
Limits slabs(View<T, V, I>& view, int64_t poses, int64_t planes) {
  std::vector<double> load(size_t(planes), 1e-3);
  const int64_t count = view.rows.count(), row_step = std::max<int64_t>(1, count / 8);
  const int64_t pose_step = std::max<int64_t>(1, poses / 64);
  for (int64_t p = 0; p < poses; p += pose_step) {
    view.set(0, p);
    for (int64_t index = p % row_step; index < count; index += row_step) {
      const Row<T, V> row = view.row(index);
      const int64_t column_step = std::max<int64_t>(1, row.count / 8);
      for (int64_t j = 0; j < row.count; j += column_step) {
        const double at = std::abs(double(row.position(V - 1, j)));
        if (at < double(load.size())) load[size_t(at)] += 1;
      }
    }
  }
  double total = 0, sum = 0;
  for (double x : load) total += x;
  Limits limits = whole(planes);
  size_t have = 1;
  for (size_t k = 0; k < load.size(); ++k) {
    sum += load[k];
    while (have < kSlabs && sum >= total * double(have) / kSlabs) limits[have++] = int64_t(k) + 1;
  }
  return limits;
}

// The planes low <= |k| < high along the slowest axis, as entries first[i]..last[i] - 1.
struct Planes {
  int64_t first[2], last[2];

  template <int V>
  Planes(const Grid<V>& grid, int64_t low, int64_t high) {
    const int64_t n = grid.shape[V - 1], plane = grid.size() / n;
    first[0] = low * plane;
    last[0] = high * plane;
    // -n/2 of an even axis is stored as n/2.
    first[1] = std::max(n - high + 1, n / 2 + 1) * plane;
    last[1] = std::max(std::min(n - low + 1, n) * plane, first[1]);
  }

  bool hold(int64_t at) const { return (at >= first[0] && at < last[0]) || (at >= first[1] && at < last[1]); }
};

// Images pose..end - 1, to be added to low <= |k| < high of a copy of a volume.
struct Job {
  int64_t batch, copy, low, high, pose, end;
};

// Of more memory than the first, a thread adds to as much as the second at once: it stays in cache as all images pass.
constexpr int64_t kCachedRange = 32 << 20, kSlabBytes = 8 << 20;

// What images are added to: volumes or, where images are many and volumes small, copies of each, one for every so many
// images, which are summed at last. Every owner of planes visits nearly all rows of all images, and if it has few planes
// that takes longer than adding. How many copies there are is for sizes to say, not for threads: so sums are the same.
template <class T, int V, int numbers>
class Sums {
 public:
  const Grid<V> grid;
  const bool weighted, small;
  const int64_t copies;  // of each volume, itself included

  Sums(const Problem& q, int64_t samples, T* volumes, T* weights)
      : grid(grid_of<V>(q.volume_shape)),
        weighted(weights != nullptr),
        small(bytes() <= kSmall),
        copies(copies_for(q, samples)),
        batch_(q.batch),
        poses_(q.poses),
        stride_(q.volume_stride),
        volumes_(volumes),
        weights_(weights),
        more_(copies > 1 ? new T[size_t(q.batch * (copies - 1) * grid.size() * (numbers + weighted))] : nullptr) {}

  int64_t bytes() const { return grid.size() * int64_t(sizeof(T)) * (numbers + weighted); }

  T* volume(int64_t batch, int64_t copy) const {
    return copy == 0 ? volumes_ + batch * stride_ * numbers : more(batch, copy);
  }

  // Or null.
  T* weights(int64_t batch, int64_t copy) const {
    if (!weighted) return nullptr;
    return copy == 0 ? weights_ + batch * stride_ : more(batch, copy) + grid.size() * numbers;
  }

  void clear(int64_t batch, int64_t copy, int64_t low, int64_t high) const {
    each(low, high, [&](int64_t first, int64_t count) {
      std::memset(volume(batch, copy) + first * numbers, 0, size_t(count * numbers) * sizeof(T));
      if (weighted) std::memset(weights(batch, copy) + first, 0, size_t(count) * sizeof(T));
    });
  }

  void add_copies(int64_t batch, int64_t low, int64_t high) const {
    each(low, high, [&](int64_t first, int64_t count) {
      for (int64_t copy = 1; copy < copies; ++copy) {
        add(volume(batch, copy) + first * numbers, count * numbers, volume(batch, 0) + first * numbers);
        if (weighted) add(weights(batch, copy) + first, count, weights(batch, 0) + first);
      }
    });
  }

  // Calls f(job) for each of the slabs first..last - 1: of all copies of all volumes one after the other if these are
  // small, else of each volume.
  template <class F>
  void each_job(const Limits& limits, int64_t first, int64_t last, const F& f) const {
    const int64_t targets = small ? batch_ * copies : 1, plane_bytes = 2 * bytes() / grid.shape[V - 1];
    for (int64_t b = 0; b < batch_; b += small ? batch_ : 1) {
      for (int64_t target = first * targets / kSlabs; target * kSlabs < last * targets; ++target) {
        const int64_t copy = target % copies, slabs_before = target * kSlabs;
        const int64_t begin = limits[size_t(std::max<int64_t>(first * targets - slabs_before, 0))];
        const int64_t end = limits[size_t(std::min<int64_t>(last * targets - slabs_before, kSlabs))];
        const int64_t step =
            (end - begin) * plane_bytes <= kCachedRange ? end - begin : std::max<int64_t>(1, kSlabBytes / plane_bytes);
        for (int64_t low = begin; low < end; low += step)
          f(Job{b + target / copies, copy, low, std::min(low + step, end), poses_ * copy / copies,
                poses_ * (copy + 1) / copies});
      }
    }
  }

 private:
  // Bytes of a volume that stays in the cache of one core, and of all copies; and how many pay for more tasks.
  static constexpr int64_t kSmall = 4 << 20, kCopies = 8 << 20, kMost = 16;

  int64_t copies_for(const Problem& q, int64_t samples) const {
    // To clear and add a copy takes a tenth of what adding so many samples does.
    const int64_t paid = grid.size() / 2 * 3;
    int64_t n = 1;
    while (small && 2 * n <= std::min(q.poses, kMost) && (2 * n - 1) * q.batch * bytes() <= kCopies &&
           samples >= 2 * n * paid)
      n *= 2;
    return n;
  }

  template <class F>
  void each(int64_t low, int64_t high, const F& f) const {
    const Planes planes(grid, low, high);
    for (int i = 0; i < 2; ++i)
      if (planes.first[i] < planes.last[i]) f(planes.first[i], planes.last[i] - planes.first[i]);
  }

  static void add(const T* from, int64_t count, T* to) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }

  T* more(int64_t batch, int64_t copy) const {
    return more_.get() + (batch * (copies - 1) + copy - 1) * grid.size() * (numbers + weighted);
  }

  const int64_t batch_, poses_, stride_;
  T *const volumes_, *const weights_;
  const std::unique_ptr<T[]> more_;
};

// What each thread is at. One that has nothing left takes what nobody has begun, then a part of what another has, from
// the next image on: cores are not all as fast, nor free at once. Entries still get their terms in order.
class Shares {
 public:
  // Neighbours among slabs from..to - 1 that nobody has begun: first..last - 1.
  bool begin(int64_t from, int64_t to, int64_t& first, int64_t& last) {
    for (first = from; first < to && begun_[size_t(first)].exchange(true); ++first) {
    }
    for (last = first + 1; last < to && !begun_[size_t(last)].exchange(true); ++last) {
    }
    return first < to;
  }

  // Calls add(what is left of the job) for each of its images, which is `pose` then, after start(job), and at last
  // end(what is left of it).
  template <class Start, class Add, class End>
  void work(int64_t share, const Job& job, const Start& start, const Add& add, const End& end) {
    Share& mine = shares_[size_t(share)];
    {
      const std::lock_guard<std::mutex> lock(mine.mutex);
      mine.job = job;
      mine.job.pose = job.pose - 1;
      mine.open = true;
    }
    start(job);
    const auto next = [&](bool open) {
      const std::lock_guard<std::mutex> lock(mine.mutex);
      ++mine.job.pose;
      mine.open = open;
      mine.begun.fetch_add(1, std::memory_order_release);
      return mine.job;
    };
    for (int64_t p = job.pose; p < job.end; ++p) add(next(true));
    end(next(false));
  }

  // Half of what another thread has left, once that has added all that comes before.
  bool take(const Limits& limits, Job& job) {
    for (Share& other : shares_) {
      int64_t before;
      {
        const std::lock_guard<std::mutex> lock(other.mutex);
        if (!other.open || other.job.pose + 1 >= other.job.end) continue;
        const int64_t middle = split(limits, other.job.low, other.job.high);
        if (middle == other.job.low) continue;
        job = other.job;
        job.low = middle;
        ++job.pose;
        other.job.high = middle;
        before = other.begun.load(std::memory_order_relaxed);
      }
      while (other.begun.load(std::memory_order_acquire) == before) std::this_thread::yield();
      return true;
    }
    return false;
  }

 private:
  struct Share {
    std::mutex mutex;
    Job job{};  // its pose is the image that is being added
    bool open = false;
    std::atomic<int64_t> begun{0};  // images, and ends of jobs
  };

  // A limit between, or `low` if there is none.
  static int64_t split(const Limits& limits, int64_t low, int64_t high) {
    const auto first = std::upper_bound(limits.begin(), limits.end(), low);
    const auto last = std::lower_bound(first, limits.end(), high);
    return first == last ? low : *(first + (last - first) / 2);
  }

  std::array<Share, kSlabs> shares_;
  std::array<std::atomic<bool>, kSlabs> begun_{};
};

}  // namespace LEVEL
}  // namespace torch_projectors
