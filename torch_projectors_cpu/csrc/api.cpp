// The C API: arguments are checked, every one, before any work, and handed to the best kernels for the processor.
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "problem.h"
#include "torch_projectors/checked.h"
#include "torch_projectors_cpu.h"

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace torch_projectors {

namespace baseline {
Kernels kernels();
}
#if defined(TORCH_PROJECTORS_AVX2)
namespace avx2 {
Kernels kernels();
}
#endif
#if defined(TORCH_PROJECTORS_AVX512)
namespace avx512 {
Kernels kernels();
}
#endif

namespace {

// Without allocation, so that it can tell of a lack of memory.
thread_local char message[1024] = "";

}  // namespace

void refuse(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  throw Refused();
}

int32_t failure() {
  const auto say = [](const char* text) { std::snprintf(message, sizeof(message), "%s", text); };
  try {
    throw;
  } catch (const Refused&) {
    return TORCH_PROJECTORS_INVALID;
  } catch (const std::bad_alloc&) {
    say("out of memory");
    return TORCH_PROJECTORS_MEMORY;
  } catch (const std::length_error&) {
    say("out of memory: more would be needed than can be addressed");
    return TORCH_PROJECTORS_MEMORY;
  } catch (const std::exception& error) {
    say(error.what());
  } catch (...) {
    say("an exception of unknown type");
  }
  return TORCH_PROJECTORS_FAILED;
}

void begin_call() { message[0] = 0; }

namespace {

// Levels of vector instructions, the best last.

#if defined(TORCH_PROJECTORS_AVX2) && defined(_MSC_VER)
bool has(int leaf_register, int bit) {
  int registers[4];
  __cpuidex(registers, 7, 0);
  return registers[leaf_register] >> bit & 1;
}

bool saves(unsigned long long state) {
  int registers[4];
  __cpuid(registers, 1);
  return (registers[2] >> 27 & 1) && (_xgetbv(0) & state) == state;
}

bool has_avx2() {
  int registers[4];
  __cpuid(registers, 1);
  const bool fma = registers[2] >> 12 & 1;
  return saves(0x6) && fma && has(1, 5) && has(1, 8);
}

bool has_avx512() { return saves(0xe6) && has_avx2() && has(1, 16) && has(1, 17) && has(1, 30) && has(1, 31); }
#elif defined(TORCH_PROJECTORS_AVX2)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

struct Level {
  const char* name;
  bool (*supported)();
  Kernels (*kernels)();
};

const Level kLevels[] = {
    {"baseline", [] { return true; }, baseline::kernels},
#if defined(TORCH_PROJECTORS_AVX2)
    {"avx2", has_avx2, avx2::kernels},
#endif
#if defined(TORCH_PROJECTORS_AVX512)
    {"avx512", has_avx512, avx512::kernels},
#endif
};

Kernels choose() {
  const char* asked = std::getenv("TORCH_PROJECTORS_CPU_LEVEL");
  if (asked != nullptr && *asked == 0) asked = nullptr;
  bool known = asked == nullptr;
  for (const char* name : {"baseline", "avx2", "avx512"}) known = known || std::strcmp(asked, name) == 0;
  if (!known)
    refuse("TORCH_PROJECTORS_CPU_LEVEL: expected baseline, avx2 or avx512, got '%.100s'", asked);
  Kernels best = kLevels[0].kernels();
  for (const Level& level : kLevels) {
    if (!level.supported()) break;
    best = level.kernels();
    if (asked != nullptr && std::strcmp(asked, level.name) == 0) break;
  }
  return best;
}

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

// Threads.

constexpr int64_t kMostThreads = 1024;
// Work, in nanoseconds or so, that pays for a thread that waits for it, and for one that must be started.
constexpr double kPaysForPool = 40000, kPaysForThread = 100000;

// The body of a parallel loop, from which no exception escapes into a thread, and of which no part may be left out.
struct Body {
  torch_projectors_body body;
  void* context;
  std::atomic<int64_t> covered{0};
  std::mutex mutex;
  std::exception_ptr error;

  static void run(void* self, int64_t begin, int64_t end) noexcept {
    Body& b = *static_cast<Body*>(self);
    try {
      b.body(b.context, begin, end);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(b.mutex);
      if (!b.error) b.error = std::current_exception();
    }
    b.covered += end - begin;
  }
};

struct Team {
  torch_projectors_runner runner;
  void* pool;
  int64_t threads;  // 0: as many as there are cores
  double work;
};

// Threads that live no longer than the call: nothing that a fork would lose.
void run_on_threads(const Team& team, int64_t n, Body& body) {
  int64_t threads = team.threads;
  if (threads == 0) threads = int64_t(std::thread::hardware_concurrency());
  const double paid = 1 + team.work / kPaysForThread;
  const int64_t most = paid < double(kMostThreads) ? int64_t(paid) : kMostThreads;
  threads = threads < 1 ? 1 : threads < most ? threads : most;
  const int64_t count = threads < n ? threads : n;
  const auto limit = [&](int64_t i) { return n / count * i + (i < n % count ? i : n % count); };
  std::vector<std::thread> started;
  started.reserve(size_t(count - 1));
  int64_t i = 1;
  for (; i < count; ++i) {
    try {
      started.emplace_back(Body::run, &body, limit(i), limit(i + 1));
    } catch (...) {  // no more to be had: the rest is done here
      break;
    }
  }
  Body::run(&body, 0, limit(1));
  if (i < count) Body::run(&body, limit(i), n);
  for (std::thread& thread : started) thread.join();
}

void run_on_team(void* pool, int64_t n, torch_projectors_body work, void* context) {
  const Team& team = *static_cast<const Team*>(pool);
  if (n <= 0) return;
  Body body{work, context, {}, {}, {}};
  if (n == 1 || team.work < kPaysForPool)
    Body::run(&body, 0, n);
  else if (team.runner != nullptr)
    team.runner(team.pool, n, Body::run, &body);
  else
    run_on_threads(team, n, body);
  if (body.error) std::rethrow_exception(body.error);
  if (body.covered != n) throw std::runtime_error("the runner did not cover the whole range once");
}

// Arguments.

constexpr int64_t kLongestAxis = int64_t(1) << 30;

// What two axes of strides and a block of contiguous entries span.
struct Layout {
  int64_t counts[2], strides[2], entries;

  bool empty() const { return counts[0] == 0 || counts[1] == 0 || entries == 0; }

  int64_t span() const {
    return plus(plus(times(counts[0] - 1, strides[0]), times(counts[1] - 1, strides[1])), entries);
  }

  bool overlaps_itself() const {
    int64_t reach = entries;
    const int inner = strides[0] < strides[1] ? 0 : 1;
    for (const int axis : {inner, 1 - inner}) {
      if (counts[axis] <= 1) continue;
      if (strides[axis] < reach) return true;
      reach = plus(times(counts[axis] - 1, strides[axis]), reach);
    }
    return false;
  }
};

struct Array {
  const char* name;
  uintptr_t begin, end;
  bool output;
};

struct Call {
  Problem problem;
  Scalar scalar;
  bool real;
  bool any;  // image at all
  Layout volumes, images, rotations, shifts;
  Team team;
  Parallel parallel;
  int64_t number_size;
  Array arrays[8];
  int array_count;

  explicit Call(const torch_projectors_problem* q) {
    if (q == nullptr) refuse("problem: expected a pointer, got NULL");
    if (q->size != int32_t(sizeof(torch_projectors_problem)))
      refuse("size: expected %d, as in this version of the library, got %d", int(sizeof(torch_projectors_problem)),
             int(q->size));
    if (q->scalar != TORCH_PROJECTORS_FLOAT32 && q->scalar != TORCH_PROJECTORS_FLOAT64)
      refuse("scalar: expected 0 (float) or 1 (double), got %d", int(q->scalar));
    if (q->real != 0 && q->real != 1) refuse("real: expected 0 or 1, got %d", int(q->real));
    if (q->pairs_once != 0 && q->pairs_once != 1) refuse("pairs_once: expected 0 or 1, got %d", int(q->pairs_once));
    if (q->interpolation != TORCH_PROJECTORS_NEAREST && q->interpolation != TORCH_PROJECTORS_LINEAR &&
        q->interpolation != TORCH_PROJECTORS_CUBIC)
      refuse("interpolation: expected 0 (nearest), 1 (linear) or 3 (cubic), got %d", int(q->interpolation));
    const int v = q->volume_dims, i = q->image_dims;
    if (!((v == 2 && i == 2) || (v == 3 && i == 2) || (v == 3 && i == 3)))
      refuse("volume_dims, image_dims: expected 2 and 2, 3 and 2, or 3 and 3, got %d and %d", v, i);
    if (!(q->oversampling > 0) || std::isinf(q->oversampling))
      refuse("oversampling: expected a finite number > 0, got %g", q->oversampling);
    if (!(q->cutoff >= 0)) refuse("cutoff: expected a number >= 0, got %g", q->cutoff);
    if (q->batch < 0) refuse("batch: expected a number >= 0, got %lld", static_cast<long long>(q->batch));
    if (q->poses < 0) refuse("poses: expected a number >= 0, got %lld", static_cast<long long>(q->poses));
    if (q->threads < 0) refuse("threads: expected a number >= 0, got %d", int(q->threads));
    if (q->real == 1 && q->shifts != nullptr) refuse("shifts: expected NULL with real data, got a pointer");

    problem.volume_dims = v;
    problem.image_dims = i;
    problem.interpolation = q->interpolation;
    problem.oversampling = q->oversampling;
    problem.cutoff = q->cutoff;
    problem.pairs_once = q->pairs_once == 1;
    problem.batch = q->batch;
    problem.poses = q->poses;
    problem.rotations = q->rotations;
    problem.shifts = q->shifts;
    const int64_t volume_size = shape("volume_shape", q->volume_shape, v, problem.volume_shape);
    const int64_t image_size = shape("image_shape", q->image_shape, i, problem.image_shape);
    // Kernels place entries within a plane by 32-bit numbers.
    if (times(problem.volume_shape[0] / 2 + 1, problem.volume_shape[1]) > std::numeric_limits<int32_t>::max())
      refuse("volume_shape: expected planes of less than 2^31 entries, got %lld x %lld points",
             static_cast<long long>(problem.volume_shape[1]), static_cast<long long>(problem.volume_shape[0]));
    if (times(times(q->batch, q->poses), image_size) > kMost / 8)
      refuse("batch, poses: expected less than 2^60 samples, got %lld x %lld images of %lld",
             static_cast<long long>(q->batch), static_cast<long long>(q->poses), static_cast<long long>(image_size));

    for (int a = 0; a < 2; ++a) {
      problem.rotation_strides[a] = q->rotation_strides[a];
      problem.shift_strides[a] = q->shift_strides[a];
      problem.image_strides[a] = q->image_strides[a];
    }
    problem.volume_stride = q->volume_stride;
    volumes = {{q->batch, 1}, {q->volume_stride, 0}, volume_size};
    images = {{q->batch, q->poses}, {q->image_strides[0], q->image_strides[1]}, image_size};
    rotations = {{q->batch, q->poses}, {q->rotation_strides[0], q->rotation_strides[1]}, int64_t(v) * v};
    shifts = {{q->batch, q->poses}, {q->shift_strides[0], q->shift_strides[1]}, i};

    scalar = q->scalar == TORCH_PROJECTORS_FLOAT32 ? Scalar::float32 : Scalar::float64;
    real = q->real == 1;
    any = q->batch > 0 && q->poses > 0;
    number_size = scalar == Scalar::float32 ? 4 : 8;
    array_count = 0;
    add("rotations", q->rotations, rotations, false, true);
    if (q->shifts != nullptr) add("shifts", q->shifts, shifts, false, true);

    const int taps[] = {1, v == 3 ? 8 : 4, 0, v == 3 ? 64 : 16};
    team.runner = q->runner;
    team.pool = q->pool;
    team.threads = q->threads;
    team.work = double(q->batch) * double(q->poses) * double(image_size) * (5 + taps[q->interpolation] / 2.0);
    parallel = {run_on_team, &team};
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // An array of complex numbers, unless the data are real or it is `of_reals`.
  void add(const char* name, const void* data, const Layout& layout, bool output, bool of_reals) {
    for (int axis = 0; axis < 2; ++axis)
      if (layout.strides[axis] < 0)
        refuse("%s: expected strides >= 0, got %lld", name, static_cast<long long>(layout.strides[axis]));
    if (layout.empty()) return;
    if (data == nullptr) refuse("%s: expected a pointer, got NULL", name);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    if (begin % uintptr_t(number_size) != 0)
      refuse("%s: expected an address that is a multiple of %d", name, int(number_size));
    const int64_t bytes = times(layout.span(), of_reals || real ? number_size : 2 * number_size);
    if (bytes == kMost || uint64_t(bytes) > uint64_t(std::numeric_limits<uintptr_t>::max() - begin))
      refuse("%s: expected strides within memory, got %lld and %lld for %lld x %lld blocks", name,
             static_cast<long long>(layout.strides[0]), static_cast<long long>(layout.strides[1]),
             static_cast<long long>(layout.counts[0]), static_cast<long long>(layout.counts[1]));
    if (output && layout.overlaps_itself())
      refuse("%s: expected strides that keep its %lld x %lld blocks of %lld entries apart, got %lld and %lld", name,
             static_cast<long long>(layout.counts[0]), static_cast<long long>(layout.counts[1]),
             static_cast<long long>(layout.entries), static_cast<long long>(layout.strides[0]),
             static_cast<long long>(layout.strides[1]));
    const Array array{name, begin, begin + uintptr_t(bytes), output};
    for (int a = 0; a < array_count; ++a)
      if ((output || arrays[a].output) && array.begin < arrays[a].end && arrays[a].begin < array.end)
        refuse("%s: expected memory that no other array is in, got some of %s", name, arrays[a].name);
    arrays[array_count++] = array;
  }

  // As the kernels have it, x first. Returns how many entries are stored.
  static int64_t shape(const char* name, const int64_t* from, int dims, int64_t (&to)[3]) {
    int64_t size = 1;
    for (int a = 0; a < dims; ++a) {
      const int64_t n = from[dims - 1 - a];
      if (n < 1 || n > kLongestAxis)
        refuse("%s: expected from 1 to 2^30 points, got %lld", name, static_cast<long long>(n));
      to[a] = n;
      size = times(size, a == 0 ? n / 2 + 1 : n);
    }
    for (int a = dims; a < 3; ++a) to[a] = 1;
    return size;
  }

  void zero(void* data, const Layout& layout, bool of_reals) const {
    if (data == nullptr || layout.empty()) return;
    const size_t size = size_t(of_reals || real ? number_size : 2 * number_size);
    for (int64_t i = 0; i < layout.counts[0]; ++i)
      for (int64_t j = 0; j < layout.counts[1]; ++j)
        std::memset(static_cast<char*>(data) + size_t(i * layout.strides[0] + j * layout.strides[1]) * size, 0,
                    size_t(layout.entries) * size);
  }
};

// Gradients of what a batch shares are summed over it.
Layout summed(Layout layout) {
  if (layout.strides[0] == 0) layout.counts[0] = 1;
  return layout;
}

}  // namespace
}  // namespace torch_projectors

using namespace torch_projectors;

int32_t torch_projectors_cpu_forward_project(const torch_projectors_problem* problem, const void* volume,
                                             void* images) {
  return guarded([&] {
    Call call(problem);
    if (call.any) call.add("volume", volume, call.volumes, false, false);
    call.add("images", images, call.images, true, false);
    if (call.any) kernels().project(call.problem, call.scalar, call.real, volume, images, call.parallel);
  });
}

int32_t torch_projectors_cpu_backward_project(const torch_projectors_problem* problem, const void* images,
                                              const void* weights, void* volume, void* weight_volume) {
  return guarded([&] {
    Call call(problem);
    call.add("images", images, call.images, false, false);
    if (weight_volume != nullptr) call.add("weights", weights, call.images, false, true);
    if (weight_volume == nullptr && weights != nullptr)
      refuse("weight_volume: expected a pointer with weights, got NULL");
    call.add("volume", volume, call.volumes, true, false);
    if (weight_volume != nullptr) call.add("weight_volume", weight_volume, call.volumes, true, true);
    if (call.any) {
      kernels().backproject(call.problem, call.scalar, call.real, images, weights, volume, weight_volume,
                            call.parallel);
    } else {
      call.zero(volume, call.volumes, false);
      call.zero(weight_volume, call.volumes, true);
    }
  });
}

int32_t torch_projectors_cpu_project_gradients(const torch_projectors_problem* problem, const void* volume,
                                               const void* images, void* grad_volume, void* grad_images,
                                               void* grad_rotations, void* grad_shifts) {
  return guarded([&] {
    Call call(problem);
    const bool reads_volume = grad_images != nullptr || grad_rotations != nullptr || grad_shifts != nullptr;
    if (grad_shifts != nullptr && call.problem.shifts == nullptr)
      refuse("grad_shifts: expected NULL without shifts, got a pointer");
    const Layout rotations = summed(call.rotations), shifts = summed(call.shifts);
    if (call.any && reads_volume) call.add("volume", volume, call.volumes, false, false);
    if (grad_volume != nullptr || reads_volume) call.add("images", images, call.images, false, false);
    if (grad_volume != nullptr) call.add("grad_volume", grad_volume, call.volumes, true, false);
    if (grad_images != nullptr) call.add("grad_images", grad_images, call.images, true, false);
    if (grad_rotations != nullptr) call.add("grad_rotations", grad_rotations, rotations, true, true);
    if (grad_shifts != nullptr) call.add("grad_shifts", grad_shifts, shifts, true, true);
    if (call.any) {
      const Kernels& k = kernels();
      if (reads_volume)
        k.gradients(call.problem, call.scalar, call.real, volume, images, grad_images, grad_rotations, grad_shifts,
                    call.parallel);
      if (grad_volume != nullptr)
        k.backproject(call.problem, call.scalar, call.real, images, nullptr, grad_volume, nullptr, call.parallel);
    } else {
      call.zero(grad_volume, call.volumes, false);
      call.zero(grad_rotations, rotations, true);
      call.zero(grad_shifts, shifts, true);
    }
  });
}

int32_t torch_projectors_cpu_add_mates(const torch_projectors_problem* problem, void* volume, void* weight_volume) {
  return guarded([&] {
    Call call(problem);
    call.add("volume", volume, call.volumes, true, false);
    if (weight_volume != nullptr) call.add("weight_volume", weight_volume, call.volumes, true, true);
    const Problem& q = call.problem;
    call.team.work = double(q.batch) * double(q.volume_shape[1]) * double(q.volume_shape[2]) * 10;  // cache misses
    if (!call.volumes.empty()) kernels().add_mates(q, call.scalar, call.real, volume, weight_volume, call.parallel);
  });
}

int32_t torch_projectors_cpu_gather_roof(const torch_projectors_problem* problem, const void* volume, void* images) {
  return guarded([&] {
    Call call(problem);
    if (call.problem.volume_dims != 3 || call.problem.image_dims != 2 || call.real)
      refuse("volume_dims, image_dims, real: expected 3, 2 and 0, got %d, %d and %d", call.problem.volume_dims,
             call.problem.image_dims, int(call.real));
    for (const int64_t n : call.problem.volume_shape)
      if (n < 2) refuse("volume_shape: expected axes of at least 2 points, got one of %lld", static_cast<long long>(n));
    if (call.any) call.add("volume", volume, call.volumes, false, false);
    call.add("images", images, call.images, true, false);
    if (call.any) kernels().roof(call.problem, call.scalar, volume, images, call.parallel);
  });
}

const char* torch_projectors_cpu_message(void) { return message; }

const char* torch_projectors_cpu_level(void) {
  const char* level = "";
  guarded([&] { level = kernels().level; });
  return level;
}

const char* torch_projectors_cpu_version(void) { return TEXT(TORCH_PROJECTORS_VERSION); }
