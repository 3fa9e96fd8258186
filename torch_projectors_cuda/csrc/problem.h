// What an operation is, beside its arrays.
#pragma once

#include <cstdint>

#include "launch.h"

namespace torch_projectors {

// Shapes are real-space shapes, x first. Strides count entries: from volume to volume, and from pose to pose.
struct Problem {
  int volume_dims, image_dims, interpolation;
  int64_t volume_shape[3], image_shape[3];
  double oversampling, cutoff;
  bool pairs_once;  // images count each Friedel pair once: entries of columns that hold both of its members count half
  int64_t batch, poses;
  const void* rotations;
  const void* shifts;  // or null
  int64_t rotation_strides[2], shift_strides[2], image_strides[2];  // the first is 0 where a batch shares them
  int64_t volume_stride;
  bool deterministic;  // sums of the same order in every run
  Stream stream;
};

// Images are added to a volume so many at a time, of float numbers: a sum of few, and then a sum of sums, loses less.
constexpr int64_t kPosesAtOnce = 2048;

enum class Scalar { float32, float64 };

// The kernels, of either scalar. `real` data are weights in place of complex numbers. All of every output is written;
// nothing in it is read before, but where something is added. Nothing waits for the device.
struct Kernels {
  void (*project)(const Problem&, bool real, const void* volume, void* images);
  // weights and weight_volume may both be null. `volume` is cleared by the caller, and so is weight_volume.
  void (*backproject)(const Problem&, bool real, const void* images, const void* weights, void* volume,
                      void* weight_volume);
  // Each of the gradients may be null. `sums` has room for
  // image_dims * (volume_dims + 1) numbers for every part of every image.
  void (*gradients)(const Problem&, bool real, const void* volume, const void* images, void* grad_images,
                    void* grad_rotations, void* grad_shifts, void* sums);
  // In place. weight_volume may be null.
  void (*add_mates)(const Problem&, bool real, void* volume, void* weight_volume);
  // to += from, of n numbers.
  void (*accumulate)(Stream, int64_t n, const void* from, void* to);
};

Kernels kernels(Scalar scalar);

// How an image is divided among blocks: so many of its rows to each.
constexpr int64_t kEntriesOfPart = 2048;

inline int64_t rows_of_part(const Problem& q) {
  const int64_t columns = q.image_shape[0] / 2 + 1;
  return columns >= kEntriesOfPart ? 1 : kEntriesOfPart / columns;
}

inline int64_t parts_of_image(const Problem& q) {
  const int64_t rows = q.image_shape[1] * q.image_shape[2], of_part = rows_of_part(q);
  return (rows + of_part - 1) / of_part;
}

}  // namespace torch_projectors
