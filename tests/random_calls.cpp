// Random calls of the C API, for sanitizers to watch: random_calls ROUNDS [SEED]. Round i has the seed SEED + i, so
// that it can be repeated alone. Every array is an allocation of its own, of exactly the size that is needed.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "torch_projectors_cpu.h"

#if defined(__ELF__)
// Programs without a sanitizer do not have it.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());
#endif

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kUntouched = 12345.678;  // what outputs hold before a call; sums of short fractions are never that

std::atomic<uint64_t> round_seed{0};
std::atomic<int64_t> calls{0};
thread_local const char* problem_text = "";

void say_how_to_repeat() {
  std::fprintf(stderr, "To repeat this round: .ci/sanitize %llu 1\n",
               static_cast<unsigned long long>(round_seed.load()));
}

[[noreturn]]
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\nThe problem: %s\n", problem_text);
  say_how_to_repeat();
  std::_Exit(1);
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  uint64_t bits() { return engine_(); }
  int64_t between(int64_t least, int64_t most) { return least + int64_t(engine_() % uint64_t(most - least + 1)); }
  bool once_in(int64_t n) { return between(1, n) == 1; }
  double uniform(double from, double to) { return from + (to - from) * (double(engine_() >> 11) / 9007199254740992.0); }

  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[between(0, int64_t(choices.size()) - 1)];
  }

 private:
  std::mt19937_64 engine_;
};

// Blocks of contiguous entries, from volume to volume and from pose to pose.
struct Layout {
  int64_t counts[2], strides[2], entries;
  int numbers;  // of an entry

  int64_t size() const {
    if (counts[0] == 0 || counts[1] == 0) return 0;
    return ((counts[0] - 1) * strides[0] + (counts[1] - 1) * strides[1] + entries) * numbers;
  }

  int64_t start(int64_t i, int64_t j) const { return (i * strides[0] + j * strides[1]) * numbers; }

  // Calls visit(i, j, number, place) for all numbers of all blocks.
  template <class Visit>
  void each(const Visit& visit) const {
    for (int64_t i = 0; i < counts[0]; ++i)
      for (int64_t j = 0; j < counts[1]; ++j)
        for (int64_t n = 0; n < entries * numbers; ++n) visit(i, j, n, start(i, j) + n);
  }

  Layout of_reals() const { return {{counts[0], counts[1]}, {strides[0], strides[1]}, entries, 1}; }

  // The first block of an axis serves all of it.
  Layout shared(int axis) const {
    Layout layout = *this;
    layout.counts[axis] = std::min<int64_t>(counts[axis], 1);
    layout.strides[axis] = 0;
    return layout;
  }
};

// Numbers between blocks are not for use.
template <class T>
struct Array {
  Layout layout{};
  std::unique_ptr<T[]> data;

  Array() = default;

  Array(const Layout& layout, double filler) : layout(layout), data(new T[size_t(layout.size())]) {
    std::fill_n(data.get(), layout.size(), T(filler));
  }

  // The same numbers laid out otherwise; of those that are shared, the first, or as many as are asked for.
  Array laid(const Layout& other) const {
    Array array(other, kNan);
    other.each([&](int64_t i, int64_t j, int64_t n, int64_t at) { array.data[at] = data[layout.start(i, j) + n]; });
    return array;
  }
};

template <class T>
double dot(const Array<T>& a, const Array<T>& b) {
  double sum = 0;
  a.layout.each([&](int64_t, int64_t, int64_t, int64_t at) { sum += double(a.data[at]) * double(b.data[at]); });
  return sum;
}

// Calls ranges out of order, on threads of its own.
void run_shuffled(void* pool, int64_t n, torch_projectors_body body, void* context) {
  Random random(*static_cast<const uint64_t*>(pool));
  std::vector<int64_t> limits{0, n};
  for (int64_t i = random.between(1, 6); i > 0; --i) limits.push_back(random.between(0, n));
  std::sort(limits.begin(), limits.end());
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (size_t i = 1; i < limits.size(); ++i) ranges.emplace_back(limits[i - 1], limits[i]);
  for (size_t i = ranges.size(); i > 1; --i)
    std::swap(ranges[i - 1], ranges[size_t(random.between(0, int64_t(i) - 1))]);
  const size_t count = size_t(random.between(1, 4));
  std::vector<std::thread> threads;
  for (size_t t = 0; t < count; ++t)
    threads.emplace_back([&, t] {
      for (size_t i = t; i < ranges.size(); i += count) body(context, ranges[i].first, ranges[i].second);
    });
  for (std::thread& thread : threads) thread.join();
}

int64_t stored(const int64_t* shape, int dims) {
  int64_t n = shape[dims - 1] / 2 + 1;
  for (int a = 0; a < dims - 1; ++a) n *= shape[a];
  return n;
}

// A random problem with its arrays, and what must hold for it.
template <class T>
class Trial {
 public:
  Trial(uint64_t seed, double work) : random_(seed) {
    draw_geometry(work);
    draw_arrays();
    describe();
  }

  const char* text() const { return text_; }

  void run() {
    problem_text = text_;
    check_refusal();
    const Array<T> images = check_forward();
    const Array<T> volume = check_backward();
    check_gradients(images, volume);
    if (weighted_) check_weights();
    check_mates();
    const bool two_points = *std::min_element(q_.volume_shape, q_.volume_shape + q_.volume_dims) > 1;
    if (q_.volume_dims == 3 && q_.image_dims == 2 && q_.real == 0 && two_points) check_roof();
  }

 private:
  using Problem = torch_projectors_problem;
  using Arrays = std::vector<Array<T>>;
  using Pointers = std::vector<T*>;

  void draw_geometry(double work) {
    q_.size = int32_t(sizeof(q_));
    q_.scalar = std::is_same<T, double>::value ? TORCH_PROJECTORS_FLOAT64 : TORCH_PROJECTORS_FLOAT32;
    q_.real = random_.once_in(4);
    q_.pairs_once = random_.once_in(2);
    q_.interpolation = random_.one_of({TORCH_PROJECTORS_NEAREST, TORCH_PROJECTORS_LINEAR, TORCH_PROJECTORS_CUBIC});
    const int64_t kind = random_.between(0, 2);
    q_.volume_dims = kind == 0 ? 2 : 3;
    q_.image_dims = kind == 2 ? 3 : 2;
    q_.batch = random_.one_of({0, 1, 1, 1, 1, 2, 2, 3});
    q_.poses = random_.one_of({0, 1, 1, 2, 2, 3, 4, 5, 40});
    draw_shape(q_.volume_shape, q_.volume_dims, random_.one_of({3, 12, 40}));
    draw_shape(q_.image_shape, q_.image_dims, work < 1e6 ? random_.one_of({3, 12, 40}) : random_.one_of({20, 60, 120}));
    // Entries of large volumes are asked for ahead.
    if (random_.once_in(30)) {
      q_.batch = 1;
      std::fill_n(q_.volume_shape, q_.volume_dims, q_.volume_dims == 2 ? 1100 : 106);
    }
    // Of a volume larger than caches, an owner takes a part after the other.
    if (q_.scalar == TORCH_PROJECTORS_FLOAT64 && q_.volume_dims == 2 && q_.real == 0 && random_.once_in(40)) {
      q_.batch = 1;
      q_.volume_shape[0] = q_.volume_shape[1] = 2100;
    }
    while (work_of_call() > work) {
      int64_t& n = *std::max_element(q_.image_shape, q_.image_shape + q_.image_dims - random_.between(0, 1));
      n -= (n + 3) / 4 * (n > 1);
    }
    // Rounding is left out of some problems: all numbers are integers and short fractions.
    exact_ = random_.once_in(3) && samples() < 32000 &&
             (q_.interpolation != TORCH_PROJECTORS_CUBIC || q_.scalar == TORCH_PROJECTORS_FLOAT64);
    q_.oversampling = exact_ ? random_.one_of({1.0, 2.0}) : random_.one_of({1.0, 1.5, random_.uniform(1, 2.5)});
    const double longest = double(*std::max_element(q_.image_shape, q_.image_shape + q_.image_dims));
    q_.cutoff = random_.one_of({kInfinity, 1e200, longest / 2, 0.5, random_.uniform(0.5, 0.5 + longest / 2)});
  }

  void draw_shape(int64_t* shape, int dims, int64_t most) {
    for (int a = 0; a < dims; ++a) shape[a] = random_.between(1, most);
    if (random_.once_in(3)) std::fill_n(shape, dims, shape[0]);
    // Rows that take more than a block.
    if (random_.once_in(6)) shape[dims - 1] = random_.between(126, 300);
  }

  // Of each volume.
  int64_t samples() const { return q_.poses * stored(q_.image_shape, q_.image_dims); }

  int taps() const {
    const int n = q_.interpolation == TORCH_PROJECTORS_CUBIC ? 4 : q_.interpolation == TORCH_PROJECTORS_LINEAR ? 2 : 1;
    return q_.volume_dims == 3 ? n * n * n : n * n;
  }

  double work_of_call() const { return double(q_.batch) * double(samples()) * (8 + taps()); }

  Layout layout(int64_t batch, int64_t poses, int64_t entries, int numbers) {
    const bool spread = random_.once_in(2);
    const int inner = spread && random_.once_in(3) ? 0 : 1;
    Layout layout{{batch, poses}, {0, 0}, entries, numbers};
    int64_t reach = entries;
    for (const int axis : {inner, 1 - inner}) {
      layout.strides[axis] = reach + (spread ? random_.between(0, 5) : 0);
      reach = layout.strides[axis] * std::max<int64_t>(layout.counts[axis], 1);
    }
    return layout;
  }

  template <class Value>
  Array<T> input(const Layout& layout, const Value& value) {
    Array<T> array(layout, kNan);
    layout.each([&](int64_t, int64_t, int64_t n, int64_t at) { array.data[at] = T(value(n)); });
    return array;
  }

  void draw_arrays() {
    finite_ = exact_ || !random_.once_in(5);
    const int numbers = q_.real == 1 ? 1 : 2, v = q_.volume_dims, i = q_.image_dims;
    volumes_ = layout(q_.batch, 1, stored(q_.volume_shape, v), numbers);
    images_ = layout(q_.batch, q_.poses, stored(q_.image_shape, i), numbers);
    rotations_ = layout(q_.batch, q_.poses, v * v, 1);
    shifts_ = layout(q_.batch, q_.poses, i, 1);
    for (int axis = 0; axis < 2; ++axis) {
      if (random_.once_in(3)) rotations_ = rotations_.shared(axis);
      if (random_.once_in(3)) shifts_ = shifts_.shared(axis);
      q_.image_strides[axis] = images_.strides[axis];
      q_.rotation_strides[axis] = rotations_.strides[axis];
      q_.shift_strides[axis] = shifts_.strides[axis];
    }
    q_.volume_stride = volumes_.strides[0];

    double matrix[9];
    rotation_data_ = input(rotations_, [&](int64_t n) {
      if (n == 0) draw_matrix(matrix);
      return matrix[n];
    });
    q_.rotations = rotation_data_.data.get();
    if (q_.real == 0 && !exact_ && random_.once_in(2)) {
      shift_data_ = input(shifts_, [&](int64_t) {
        if (!finite_ && random_.once_in(6)) return random_.one_of({kNan, kInfinity, 1e30});
        return random_.one_of({0.0, 1.0, random_.uniform(-50, 50), random_.uniform(-1e5, 1e5)});
      });
      q_.shifts = shift_data_.data.get();
    }

    // What may be shared has the same numbers in the arrays of all.
    shared_volume_ = random_.once_in(4);
    shared_axis_ = int(random_.between(-3, 1));
    const auto number = [&](int64_t) { return exact_ ? double(random_.between(-4, 4)) : random_.uniform(-1, 1); };
    volume_ = input(shared_volume_ ? volumes_.shared(0) : volumes_, number).laid(volumes_);
    const Layout images = shared_axis_ >= 0 ? images_.shared(shared_axis_) : images_;
    image_data_ = input(images, number).laid(images_);
    weighted_ = random_.once_in(2);
    weights_ = input(images.of_reals(), number).laid(images_.of_reals());  // with the strides of images
    runner_seed_ = random_.bits();
    threads_ = random_.one_of({0, 2, 3, 4});
    asked_ = int(random_.between(0, 15));
  }

  void draw_matrix(double (&m)[9]) {
    const int d = q_.volume_dims;
    double r[9];
    draw_rotation(r);
    const int64_t kind = random_.between(0, finite_ ? 6 : 9), turn = random_.between(0, d - 1);
    const double size = kind == 1   ? random_.uniform(0.1, 3)
                        : kind == 2 ? random_.one_of({1e4, 1e8, 1e9, 1e12, 1e20, 1e30})
                        : kind == 7 ? double(std::numeric_limits<T>::max()) / 8  // products are infinite
                                    : 1;
    for (int i = 0; i < d; ++i)
      for (int j = 0; j < d; ++j) {
        double x = r[i * d + j] * size;
        if (kind == 3) x = 0;
        if (kind == 4) x = (j == (i + turn) % d) * random_.one_of({1, -1});           // along axes
        if (kind == 5) x = (i == j) + random_.uniform(-1e-7, 1e-7);                    // or nearly so
        if (kind == 6) x = random_.one_of({0.0, -0.0, 1.0, -0.5, 1e-30, -1e-300});   // singular
        if (kind == 8) x = random_.one_of({kInfinity, -kInfinity});
        if (kind == 9 && random_.once_in(3)) x = random_.one_of({kNan, kInfinity});
        m[i * d + j] = exact_ && kind < 3 ? double(random_.between(-6, 6)) / 4 : exact_ ? std::round(2 * x) / 2 : x;
      }
  }

  void draw_rotation(double (&r)[9]) {
    if (q_.volume_dims == 2) {
      const double angle = random_.uniform(0, 6.3);
      r[0] = r[3] = std::cos(angle);
      r[2] = std::sin(angle);
      r[1] = -r[2];
      return;
    }
    double u[4], norm = 1e-12;  // a quaternion
    for (double& x : u) {
      x = random_.uniform(-1, 1);
      norm += x * x;
    }
    for (double& x : u) x /= std::sqrt(norm);
    for (int i = 0; i < 3; ++i) {
      const int j = (i + 1) % 3, k = (i + 2) % 3;
      r[3 * i + i] = 1 - 2 * (u[j] * u[j] + u[k] * u[k]);
      r[3 * i + j] = 2 * (u[i] * u[j] - u[k] * u[3]);
      r[3 * j + i] = 2 * (u[i] * u[j] + u[k] * u[3]);
    }
  }

  void describe() {
    char shapes[2][100], strides[3][60];
    const auto number = [](int64_t x) { return static_cast<long long>(x); };
    const auto shape = [&](char(&to)[100], const int64_t* n, int dims) {
      std::snprintf(to, sizeof(to), dims == 3 ? "%lld x %lld x %lld" : "%lld x %lld", number(n[0]), number(n[1]),
                    number(n[2]));
    };
    const auto pair = [&](char(&to)[60], const int64_t* n) {
      std::snprintf(to, sizeof(to), "(%lld, %lld)", number(n[0]), number(n[1]));
    };
    shape(shapes[0], q_.volume_shape, q_.volume_dims);
    shape(shapes[1], q_.image_shape, q_.image_dims);
    pair(strides[0], q_.rotation_strides);
    pair(strides[1], q_.shift_strides);
    pair(strides[2], q_.image_strides);
    std::snprintf(text_, sizeof(text_),
                  "%s %s, volume %s, images %s, interpolation %d, oversampling %g, cutoff %g, pairs_once %d, "
                  "batch %lld, poses %lld, %s poses, %s, rotation_strides %s, shifts %s, shift_strides %s, "
                  "image_strides %s, volume_stride %lld, threads %d",
                  q_.real == 1 ? "real" : "complex", q_.scalar == TORCH_PROJECTORS_FLOAT64 ? "double" : "float",
                  shapes[0], shapes[1], int(q_.interpolation), q_.oversampling, q_.cutoff, int(q_.pairs_once),
                  number(q_.batch), number(q_.poses), finite_ ? "finite" : "any", exact_ ? "exact" : "rounded",
                  strides[0], q_.shifts == nullptr ? "none" : "some", strides[1], strides[2],
                  number(q_.volume_stride), int(threads_));
  }

  enum class How { serial, threads, runner };

  // What call(problem, outputs) writes.
  template <class Call>
  Arrays once(const char* name, const std::vector<Layout>& layouts, How how, const Call& call) {
    Problem q = q_;
    q.threads = how == How::threads ? threads_ : 1;
    q.runner = how == How::runner ? run_shuffled : nullptr;
    q.pool = how == How::runner ? &runner_seed_ : nullptr;
    Arrays outputs;
    Pointers pointers;
    for (const Layout& layout : layouts) {
      outputs.emplace_back(layout, kUntouched);
      pointers.push_back(outputs.back().data.get());
    }
    const int32_t code = call(q, pointers);
    ++calls;
    const char* message = torch_projectors_cpu_message();
    if (code != TORCH_PROJECTORS_OK || message[0] != 0) fail("%s: expected 0, got %d: %s", name, int(code), message);
    return outputs;
  }

  // The same, checked to be so whoever does the work.
  template <class Call>
  Arrays results(const char* name, const std::vector<Layout>& layouts, const Call& call) {
    Arrays expected = once(name, layouts, How::serial, call);
    for (const Array<T>& output : expected) check_written(name, int(&output - expected.data()), output);
    for (const How how : {How::threads, How::runner}) {
      const Arrays actual = once(name, layouts, how, call);
      for (size_t i = 0; i < actual.size(); ++i)
        check_same(name, how == How::threads ? "on several threads" : "by a runner", actual[i], expected[i]);
    }
    return expected;
  }

  void check_written(const char* name, int output, const Array<T>& array) {
    std::vector<char> own(size_t(array.layout.size()), 0);
    array.layout.each([&](int64_t, int64_t, int64_t, int64_t at) { own[size_t(at)] = 1; });
    for (size_t at = 0; at < own.size(); ++at) {
      const T x = array.data[at];
      const char* wrong = (x == T(kUntouched)) == bool(own[at]) ? own[at] ? "is not written" : "is written beside"
                          : finite_ && !std::isfinite(x)         ? "is not finite"
                                                                 : nullptr;
      if (wrong != nullptr) fail("%s: output %d %s, at %lld", name, output, wrong, static_cast<long long>(at));
    }
  }

  // To the last bit, but for two things. Which of two NaNs becomes their sum is for the compiler to say. And an entry of
  // a volume can be -0 where its terms are too small for any number, which an owner makes 0 by terms without weight.
  void check_same(const char* name, const char* how, const Array<T>& actual, const Array<T>& expected) {
    const Layout& layout = expected.layout;
    const bool of_volume = layout.counts[1] == 1 && layout.entries == volumes_.entries;
    for (int64_t at = 0; at < layout.size(); ++at) {
      const T a = actual.data[at], b = expected.data[at];
      if (std::memcmp(&a, &b, sizeof(T)) != 0 && !(std::isnan(a) && std::isnan(b)) && !(of_volume && a == b))
        fail("%s %s: expected the same, got %a for %a at %lld", name, how, double(a), double(b),
             static_cast<long long>(at));
    }
  }

  // Terms of what was completed at once may come in another order: then a rounding is at most epsilon times the sum of
  // the sizes of all terms.
  void check_completed(const Array<T>& actual, const Array<T>& expected) {
    const double terms = 4 * double(samples());
    const double bound = exact_ ? 0 : double(std::numeric_limits<T>::epsilon()) * double(samples() + taps()) * terms;
    expected.layout.each([&](int64_t, int64_t, int64_t, int64_t at) {
      const double a = double(actual.data[at]), b = double(expected.data[at]);
      if (!std::isfinite(a) ? std::isnan(a) == std::isnan(b) && (std::isnan(a) || a == b) : std::abs(a - b) <= bound)
        return;
      fail("backward_project with mates: expected %.17g, as with mates after it, got %.17g", b, a);
    });
  }

  // <P V, Y> = <V, P^T Y>. A rounding is at most epsilon times the sum of the sizes of all terms: those of a sample
  // have weights whose sizes add up to 2 or less, and two numbers of sqrt(2) or less.
  void check_adjoint(const char* what, const Array<T>& images, const Array<T>& y, const Array<T>& v,
                     const Array<T>& volume) {
    const double operations = double(q_.batch * samples() + taps() + 100);
    const double terms = 4 * double(q_.batch * samples());
    const double bound = exact_ ? 0 : double(std::numeric_limits<T>::epsilon()) * operations * terms;
    const double a = dot(images, y), b = dot(v, volume);
    if (!(std::abs(a - b) <= bound)) fail("%s: expected %.17g, got %.17g, off by more than %g", what, a, b, bound);
  }

  // What is refused has a message, which is gone after the next call: `once` looks.
  void check_refusal() {
    Problem q = q_;
    q.threads = -int32_t(random_.between(1, 1000));
    char expected[100];
    std::snprintf(expected, sizeof(expected), "threads: expected a number >= 0, got %d", int(q.threads));
    const int32_t code = torch_projectors_cpu_forward_project(&q, nullptr, nullptr);
    ++calls;
    if (code != TORCH_PROJECTORS_INVALID || std::strcmp(torch_projectors_cpu_message(), expected) != 0)
      fail("expected to be refused, got %d: %s", int(code), torch_projectors_cpu_message());
  }

  Array<T> check_forward() {
    Arrays images = results("forward_project", {images_}, [&](const Problem& q, const Pointers& to) {
      return torch_projectors_cpu_forward_project(&q, volume_.data.get(), to[0]);
    });
    if (shared_volume_) {
      const Array<T> one = volume_.laid(volumes_.shared(0));
      const Arrays same = once("forward_project", {images_}, How::threads, [&](Problem& q, const Pointers& to) {
        q.volume_stride = 0;
        return torch_projectors_cpu_forward_project(&q, one.data.get(), to[0]);
      });
      check_same("forward_project", "of one volume for all", same[0], images[0]);
    }
    return std::move(images[0]);
  }

  Array<T> check_backward() {
    Arrays volumes = results("backward_project", {volumes_}, [&](const Problem& q, const Pointers& to) {
      return torch_projectors_cpu_backward_project(&q, image_data_.data.get(), nullptr, to[0], nullptr);
    });
    if (shared_axis_ >= 0) {
      const Layout layout = images_.shared(shared_axis_);
      const Array<T> one = image_data_.laid(layout);
      const Arrays same = once("backward_project", {volumes_}, How::threads, [&](Problem& q, const Pointers& to) {
        std::copy_n(layout.strides, 2, q.image_strides);
        return torch_projectors_cpu_backward_project(&q, one.data.get(), nullptr, to[0], nullptr);
      });
      check_same("backward_project", "of one image for all", same[0], volumes[0]);
    }
    return std::move(volumes[0]);
  }

  void check_weights() {
    const T *images = image_data_.data.get(), *weights = weights_.data.get();
    const auto backward = [&](const Problem& q, const Pointers& to) {
      return torch_projectors_cpu_backward_project(&q, images, weights, to[0], to[1]);
    };
    const Arrays volumes = results("backward_project with weights", {volumes_, volumes_.of_reals()}, backward);
    const auto complete = [&](const Problem& q, const Pointers& to) {
      Problem completed = q;
      completed.mates = 1;
      return backward(completed, to);
    };
    const auto complete_later = [&](Problem& q, const Pointers& to) {
      for (size_t i = 0; i < 2; ++i)
        volumes[i].layout.each([&](int64_t, int64_t, int64_t, int64_t at) { to[i][at] = volumes[i].data[at]; });
      return torch_projectors_cpu_add_mates(&q, to[0], to[1]);
    };
    const Arrays done = results("backward_project with mates", {volumes_, volumes_.of_reals()}, complete);
    const Arrays same = once("add_mates", {volumes_, volumes_.of_reals()}, How::threads, complete_later);
    for (size_t i = 0; i < 2; ++i) check_completed(done[i], same[i]);
    check_added(volumes, backward);
    if (!finite_) return;
    const Array<T> v = input(volumes_.of_reals(), [&](int64_t) { return double(random_.between(-1, 1)); });
    const auto forward = [&](Problem& q, const Pointers& to) {
      q.real = 1;
      q.shifts = nullptr;
      return torch_projectors_cpu_forward_project(&q, v.data.get(), to[0]);
    };
    const Arrays read = results("forward_project of weights", {images_.of_reals()}, forward);
    check_adjoint("the transpose of weights", read[0], weights_, v, volumes[1]);
  }

  // To what volumes hold.
  template <class Call>
  void check_added(const Arrays& alone, const Call& backward) {
    const auto number = [&](int64_t) { return double(random_.between(-4, 4)); };
    const Array<T> before[] = {input(alone[0].layout, number), input(alone[1].layout, number)};
    const auto add = [&](const Problem& q, const Pointers& to) {
      Problem added = q;
      added.add = 1;
      for (size_t i = 0; i < 2; ++i)
        before[i].layout.each([&](int64_t, int64_t, int64_t, int64_t at) { to[i][at] = before[i].data[at]; });
      return backward(added, to);
    };
    const Arrays sums = results("backward_project that adds", {alone[0].layout, alone[1].layout}, add);
    if (!finite_) return;
    const double terms = 4 * double(samples()) + 4;
    const double bound = exact_ ? 0 : double(std::numeric_limits<T>::epsilon()) * double(samples() + taps() + 1) * terms;
    for (size_t i = 0; i < 2; ++i)
      alone[i].layout.each([&](int64_t, int64_t, int64_t, int64_t at) {
        const double expected = double(before[i].data[at]) + double(alone[i].data[at]), found = double(sums[i].data[at]);
        if (!(std::abs(found - expected) <= bound))
          fail("backward_project that adds: expected %.17g, got %.17g", expected, found);
      });
  }

  void check_mates() {
    const Array<T> v = input(volumes_.of_reals(), [&](int64_t) { return random_.uniform(0, 1); });
    const Arrays done = results("add_mates", {volumes_, v.layout}, [&](const Problem& q, const Pointers& to) {
      volume_.layout.each([&](int64_t, int64_t, int64_t, int64_t at) { to[0][at] = volume_.data[at]; });
      v.layout.each([&](int64_t, int64_t, int64_t, int64_t at) { to[1][at] = v.data[at]; });
      return torch_projectors_cpu_add_mates(&q, to[0], weighted_ ? to[1] : nullptr);
    });
    const int dims = q_.volume_dims;
    const int64_t width = q_.volume_shape[dims - 1], columns = width / 2 + 1;
    const auto mate = [&](int64_t entry) {
      int64_t rest = entry / columns, stride = columns, to = entry % columns;
      for (int a = dims - 2; a >= 0; --a) {
        const int64_t n = q_.volume_shape[a], k = rest % n;
        to += (k == 0 ? 0 : n - k) * stride;
        stride *= n;
        rest /= n;
      }
      return to;
    };
    const auto check = [&](const Array<T>& before, const Array<T>& after, bool added) {
      const int64_t numbers = before.layout.numbers;
      before.layout.each([&](int64_t i, int64_t j, int64_t n, int64_t at) {
        const int64_t x = n / numbers % columns, other = mate(n / numbers) * numbers + n % numbers;
        T expected = before.data[at];
        if (added && (x == 0 || 2 * x == width))
          expected += (n % numbers == 1 ? -1 : 1) * before.data[before.layout.start(i, j) + other];
        if (after.data[at] != expected)
          fail("add_mates: expected %.17g, got %.17g, at %lld", double(expected), double(after.data[at]),
               static_cast<long long>(at));
      });
    };
    check(volume_, done[0], true);
    check(v, done[1], weighted_);
  }

  // Those of `which`, a bit for each.
  Arrays gradients(int which, const How* how) {
    Layout layouts[] = {volumes_, images_, rotations_, shifts_};
    for (Layout& layout : layouts)
      if (layout.strides[0] == 0) layout.counts[0] = 1;  // a sum over the batch, be it empty
    std::vector<Layout> asked;
    for (int i = 0; i < 4; ++i)
      if (which >> i & 1) asked.push_back(layouts[i]);
    // What is not read need not be there.
    const T* volume = (which & ~1) != 0 ? volume_.data.get() : nullptr;
    const T* images = which != 0 ? image_data_.data.get() : nullptr;
    const auto call = [&](const Problem& q, const Pointers& to) {
      T* out[4];
      for (int i = 0, next = 0; i < 4; ++i) out[i] = which >> i & 1 ? to[size_t(next++)] : nullptr;
      return torch_projectors_cpu_project_gradients(&q, volume, images, out[0], out[1], out[2], out[3]);
    };
    return how == nullptr ? results("project_gradients", asked, call) : once("project_gradients", asked, *how, call);
  }

  void check_gradients(const Array<T>& images, const Array<T>& volume) {
    if (finite_) check_adjoint("the transpose", images, image_data_, volume_, volume);
    // Not summed over poses, other than over a batch.
    const bool of_rotations = rotations_.strides[1] != 0 || q_.poses == 1;
    const bool of_shifts = q_.shifts != nullptr && (shifts_.strides[1] != 0 || q_.poses == 1);
    const int all = 3 + 4 * of_rotations + 8 * of_shifts, some = all & asked_;
    const Arrays expected = gradients(all, nullptr);
    const How how = random_.one_of({How::serial, How::threads, How::runner});
    const Arrays actual = gradients(some, &how);
    for (size_t i = 0, of_all = 0, of_some = 0; i < 4; ++i) {
      if (some >> i & 1) check_same("project_gradients", "without others", actual[of_some++], expected[of_all]);
      of_all += all >> i & 1;
    }
    check_same("grad_volume", "and backward_project", expected[0], volume);
    if (!finite_) return;
    const double bound = exact_ ? 0 : double(std::numeric_limits<T>::epsilon()) * (taps() + 100) * 4;
    images_.each([&](int64_t, int64_t, int64_t, int64_t at) {
      const double a = double(expected[1].data[at]), b = double(images.data[at]);
      if (!(std::abs(a - b) <= bound)) fail("grad_images: expected %.17g, as projected, got %.17g", b, a);
    });
  }

  void check_roof() {
    for (const How how : {How::serial, How::threads, How::runner})
      once("gather_roof", {images_}, how, [&](const Problem& q, const Pointers& to) {
        return torch_projectors_cpu_gather_roof(&q, volume_.data.get(), to[0]);
      });
  }

  Random random_;
  Problem q_{};
  Layout volumes_{}, images_{}, rotations_{}, shifts_{};
  Array<T> volume_, image_data_, weights_, rotation_data_, shift_data_;
  bool exact_ = false, finite_ = false, shared_volume_ = false, weighted_ = false;
  int shared_axis_ = -1, asked_ = 0;
  int32_t threads_ = 1;
  uint64_t runner_seed_ = 0;
  char text_[1000];
};

void run_trial(uint64_t seed, double work, bool verbose) {
  const auto run = [&](auto&& trial) {
    if (verbose) std::printf("%s\n", trial.text());
    std::fflush(stdout);
    trial.run();
  };
  if (seed % 2 == 0)
    run(Trial<float>(seed, work));
  else
    run(Trial<double>(seed, work));
}

// A trial, or several at the same time.
void run_round(uint64_t seed, bool verbose) {
  round_seed = seed;
  Random random(seed);
  const int64_t others = random.once_in(5) ? random.between(1, 3) : 0;
  // From a million on, several threads pay.
  const double work = others > 0 ? random.one_of({1e5, 1e6}) : random.one_of({1e4, 1e5, 1e6, 4e6});
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < others; ++i) threads.emplace_back(run_trial, random.bits(), work, verbose);
  run_trial(random.bits(), work, verbose);
  for (std::thread& thread : threads) thread.join();
}

// Threads that are the first to choose a level, and to look for torch.
void begin_together() {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([] {
      if (torch_projectors_cpu_level()[0] == 0) fail("level: %s", torch_projectors_cpu_message());
      if (torch_projectors_cpu_register(0) != TORCH_PROJECTORS_INVALID) fail("register: expected not to find torch");
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count > 3) {
    std::fprintf(stderr, "usage: %s ROUNDS [SEED]\n", arguments[0]);
    return 2;
  }
#if defined(__ELF__)
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_how_to_repeat);
#endif
  const uint64_t rounds = std::strtoull(arguments[1], nullptr, 10);
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 0;
  begin_together();
  std::printf("%s, seed %llu\n", torch_projectors_cpu_level(), static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  for (uint64_t i = 0; i < rounds; ++i) run_round(seed + i, rounds == 1);
  std::printf("%llu rounds of %lld calls passed\n", static_cast<unsigned long long>(rounds),
              static_cast<long long>(calls.load()));
  return 0;
}
