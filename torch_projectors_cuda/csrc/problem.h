// An operation, the stream that it is put on, and the kernels.
#pragma once

#include "launch.h"
#include "torch_projectors/operation.h"

namespace torch_projectors {

struct Problem : Operation {
  bool deterministic;  // sums of the same order in every run
  Stream stream;
};

// Images are added to a volume so many at a time, of float numbers: a sum of few, and then a sum of sums, loses less.
constexpr int64_t kPosesAtOnce = 2048;

// The kernels, of either scalar. `real` data are weights in place of complex numbers. All of every output is written;
// nothing in it is read before, but where something is added. Nothing waits for the device.
struct Kernels {
  void (*project)(const Problem&, bool real, const void* volume, void* images);
  // weights and weight_volume may both be null. `volume` is cleared by the caller, and so is weight_volume.
  void (*backproject)(const Problem&, bool real, const void* images, const void* weights, void* volume,
                      void* weight_volume);
  // The same sums, always in the same order, by another schedule.
  void (*backproject_bricks)(const Problem&, bool real, const void* images, const void* weights, void* volume,
                             void* weight_volume);
  // The same with weights, of float complex numbers, by another schedule; null for double. `sums` is cleared by the
  // caller and has room for four numbers for every entry of all volumes.
  void (*backproject_interleaved)(const Problem&, const void* images, const void* weights, void* sums, void* volume,
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
