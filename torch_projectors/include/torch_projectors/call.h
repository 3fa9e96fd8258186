// What the C APIs of all backends check, and what becomes of their errors. For the one source of a library that has its
// C API.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>

#include "checked.h"
#include "interpolation.h"
#include "operation.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace torch_projectors {

// The codes of errors, and of scalars, that are the same in every C API.
constexpr int32_t kInvalid = 1, kOutOfMemory = 2, kFailed = 3;
constexpr int32_t kFloat32 = 0, kFloat64 = 1;

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

void begin_call() { message[0] = 0; }

namespace {

// Returns the code.
#if defined(__GNUC__)
int32_t say(int32_t code, const char* format, ...) __attribute__((format(printf, 2, 3)));
#endif
int32_t say(int32_t code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  return code;
}

// Of the exception that is being handled. `own` has codes of what only this library throws, and throws on the others.
template <class Own>
int32_t failure_beside(const Own& own) {
  try {
    return own();
  } catch (const Refused&) {
    return kInvalid;
  } catch (const std::bad_alloc&) {
    return say(kOutOfMemory, "out of memory");
  } catch (const std::length_error&) {
    return say(kOutOfMemory, "out of memory: more would be needed than can be addressed");
  } catch (const std::exception& error) {
    return say(kFailed, "%s", error.what());
  } catch (...) {
    return say(kFailed, "an exception of unknown type");
  }
}

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

  // Gradients of what a batch shares are summed over it.
  Layout summed() const {
    Layout own = *this;
    if (strides[0] == 0) own.counts[0] = 1;
    return own;
  }
};

struct Array {
  const char* name;
  uintptr_t begin, end;
  bool output;
};

// A call's arguments. Structure is the C API's, Problem the kernels', which is an Operation. What both have beside is the
// caller's to check and to copy, before any array is added.
template <class Structure, class Problem, bool pairs_are_aligned>
struct Call {
  Problem problem;
  Scalar scalar;
  bool real;
  bool any;  // image at all
  Layout volumes, images, rotations, shifts, grad_rotations, grad_shifts;
  int64_t number_size;

  explicit Call(const Structure* q) {
    if (q == nullptr) refuse("problem: expected a pointer, got NULL");
    if (q->size != int32_t(sizeof(Structure)))
      refuse("size: expected %d, as in this version of the library, got %d", int(sizeof(Structure)), int(q->size));
    if (q->scalar != kFloat32 && q->scalar != kFloat64)
      refuse("scalar: expected 0 (float) or 1 (double), got %d", int(q->scalar));
    if (q->real != 0 && q->real != 1) refuse("real: expected 0 or 1, got %d", int(q->real));
    if (q->pairs_once != 0 && q->pairs_once != 1) refuse("pairs_once: expected 0 or 1, got %d", int(q->pairs_once));
    if (q->add != 0 && q->add != 1) refuse("add: expected 0 or 1, got %d", int(q->add));
    if (q->mates != 0 && q->mates != 1) refuse("mates: expected 0 or 1, got %d", int(q->mates));
    if (q->interpolation != Nearest::code && q->interpolation != Linear::code && q->interpolation != Cubic::code)
      refuse("interpolation: expected 0 (nearest), 1 (linear) or 3 (cubic), got %d", int(q->interpolation));
    const int v = q->volume_dims, i = q->image_dims;
    if (!((v == 2 && i == 2) || (v == 3 && i == 2) || (v == 3 && i == 3)))
      refuse("volume_dims, image_dims: expected 2 and 2, 3 and 2, or 3 and 3, got %d and %d", v, i);
    if (!(q->oversampling > 0) || std::isinf(q->oversampling))
      refuse("oversampling: expected a finite number > 0, got %g", q->oversampling);
    if (!(q->cutoff >= 0)) refuse("cutoff: expected a number >= 0, got %g", q->cutoff);
    if (q->batch < 0) refuse("batch: expected a number >= 0, got %lld", static_cast<long long>(q->batch));
    if (q->poses < 0) refuse("poses: expected a number >= 0, got %lld", static_cast<long long>(q->poses));
    if (q->real == 1 && q->shifts != nullptr) refuse("shifts: expected NULL with real data, got a pointer");

    problem.volume_dims = v;
    problem.image_dims = i;
    problem.interpolation = q->interpolation;
    problem.oversampling = q->oversampling;
    problem.cutoff = q->cutoff;
    problem.pairs_once = q->pairs_once == 1;
    problem.add = q->add == 1;
    problem.mates = q->mates == 1;
    problem.batch = q->batch;
    problem.poses = q->poses;
    problem.rotations = q->rotations;
    problem.shifts = q->shifts;
    const int64_t volume_size = shape("volume_shape", q->volume_shape, v, problem.volume_shape);
    const int64_t image_size = shape("image_shape", q->image_shape, i, problem.image_shape);
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
    grad_rotations = rotations.summed();
    grad_shifts = shifts.summed();

    scalar = q->scalar == kFloat32 ? Scalar::float32 : Scalar::float64;
    real = q->real == 1;
    any = q->batch > 0 && q->poses > 0;
    number_size = scalar == Scalar::float32 ? 4 : 8;
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  int64_t entry_size(bool of_reals) const { return of_reals || real ? number_size : 2 * number_size; }

  // Of each operation, all arrays. Those that may be null are what need not be computed.

  void forward_project(const void* volume, const void* image) {
    poses();
    if (any) add("volume", volume, volumes, false, false);
    add("images", image, images, true, false);
  }

  void backward_project(const void* image, const void* weights, const void* volume, const void* weight_volume) {
    poses();
    add("images", image, images, false, false);
    if (weight_volume != nullptr) add("weights", weights, images, false, true);
    if (weight_volume == nullptr && weights != nullptr)
      refuse("weight_volume: expected a pointer with weights, got NULL");
    sums(volume, weight_volume);
  }

  void project_gradients(const void* volume, const void* image, const void* grad_volume, const void* grad_images,
                         const void* of_rotations, const void* of_shifts) {
    problem.add = problem.mates = false;
    poses();
    const bool reads_volume = grad_images != nullptr || of_rotations != nullptr || of_shifts != nullptr;
    if (of_shifts != nullptr && problem.shifts == nullptr)
      refuse("grad_shifts: expected NULL without shifts, got a pointer");
    if (any && reads_volume) add("volume", volume, volumes, false, false);
    if (grad_volume != nullptr || reads_volume) add("images", image, images, false, false);
    if (grad_volume != nullptr) add("grad_volume", grad_volume, volumes, true, false);
    if (grad_images != nullptr) add("grad_images", grad_images, images, true, false);
    if (of_rotations != nullptr) add("grad_rotations", of_rotations, grad_rotations, true, true);
    if (of_shifts != nullptr) add("grad_shifts", of_shifts, grad_shifts, true, true);
  }

  void add_mates(const void* volume, const void* weight_volume) {
    poses();
    sums(volume, weight_volume);
  }

  // Clears, by clear(data, bytes), where the layout has its blocks, and nothing else.
  template <class Clear>
  void zero(void* data, const Layout& layout, bool of_reals, const Clear& clear) const {
    if (data == nullptr || layout.empty()) return;
    const int64_t size = entry_size(of_reals);
    int64_t blocks[2] = {layout.counts[0], layout.counts[1]}, entries = layout.entries;
    for (int axis = 1; axis >= 0; --axis) {  // at once what is without gaps
      if (blocks[axis] > 1 && layout.strides[axis] != entries) break;
      entries *= blocks[axis];
      blocks[axis] = 1;
    }
    for (int64_t i = 0; i < blocks[0]; ++i)
      for (int64_t j = 0; j < blocks[1]; ++j)
        clear(static_cast<char*>(data) + (i * layout.strides[0] + j * layout.strides[1]) * size, entries * size);
  }

 private:
  Array arrays_[8];
  int array_count_ = 0;

  void poses() {
    add("rotations", problem.rotations, rotations, false, true);
    if (problem.shifts != nullptr) add("shifts", problem.shifts, shifts, false, true);
  }

  void sums(const void* volume, const void* weight_volume) {
    add("volume", volume, volumes, true, false);
    if (weight_volume != nullptr) add("weight_volume", weight_volume, volumes, true, true);
  }

  // An array of complex numbers, unless the data are real or it is `of_reals`.
  void add(const char* name, const void* data, const Layout& layout, bool output, bool of_reals) {
    for (int axis = 0; axis < 2; ++axis)
      if (layout.strides[axis] < 0)
        refuse("%s: expected strides >= 0, got %lld", name, static_cast<long long>(layout.strides[axis]));
    if (layout.empty()) return;
    if (data == nullptr) refuse("%s: expected a pointer, got NULL", name);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
    const int64_t aligned = pairs_are_aligned ? entry_size(of_reals) : number_size;
    if (begin % uintptr_t(aligned) != 0)
      refuse("%s: expected an address that is a multiple of %d", name, int(aligned));
    const int64_t bytes = times(layout.span(), entry_size(of_reals));
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
    for (int a = 0; a < array_count_; ++a)
      if ((output || arrays_[a].output) && array.begin < arrays_[a].end && arrays_[a].begin < array.end)
        refuse("%s: expected memory that no other array is in, got some of %s", name, arrays_[a].name);
    arrays_[array_count_++] = array;
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
};

}  // namespace
}  // namespace torch_projectors
