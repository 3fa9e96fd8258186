/* Projects a volume that is a single point on a GPU, in C99 and without PyTorch, and finds the point where it belongs;
 * then checks that insertion, in the order of sums that is the same in every run, is the transpose of projection. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>

#include "torch_projectors_cuda.h"

#define N 8
#define COLUMNS (N / 2 + 1)
#define VOLUME (N * N * COLUMNS)
#define IMAGE (N * COLUMNS)

static const double two_pi = 6.283185307179586;

/* Complex numbers are pairs, real part first. */
typedef struct {
  double re, im;
} number;

static int frequency(int index) { return index > N / 2 ? index - N : index; }

/* A point's spectrum at frequency k turns by 2 pi k r / N. */
static number turned(double dot) {
  const number z = {cos(two_pi * dot / N), -sin(two_pi * dot / N)};
  return z;
}

static double real_product(const number* a, const number* b, int count) {
  double sum = 0;
  int i;
  for (i = 0; i < count; ++i) sum += a[i].re * b[i].re + a[i].im * b[i].im;
  return sum;
}

/* Device memory with a copy of the bytes; NULL if there is none. Given back when the program ends. */
static void* on_device(const void* from, size_t bytes) {
  void* to = NULL;
  if (cudaMalloc(&to, bytes) != cudaSuccess) return NULL;
  return cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) == cudaSuccess ? to : NULL;
}

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, torch_projectors_cuda_message());
  return 1;
}

int main(void) {
  static number volume[VOLUME], transposed[VOLUME], image[IMAGE], data[IMAGE];
  const double point[3] = {2, 1, -3}, shift[2] = {0.25, -1.5};
  /* A quarter turn about z, rows contiguous: (x, y, z) becomes (-y, x, z). */
  const double quarter_turn[9] = {0, -1, 0, 1, 0, 0, 0, 0, 1};
  torch_projectors_cuda_problem problem = {0};
  void *on_volume, *on_image, *on_data, *on_transposed;
  double error = 0, forward, backward;
  int x, y, z, a, i;

  if (torch_projectors_cuda_check_device(0) != TORCH_PROJECTORS_CUDA_OK) return failed("device 0");

  for (z = 0; z < N; ++z)
    for (y = 0; y < N; ++y)
      for (x = 0; x < COLUMNS; ++x)
        volume[(z * N + y) * COLUMNS + x] =
            turned(frequency(x) * point[0] + frequency(y) * point[1] + frequency(z) * point[2]);
  for (i = 0; i < IMAGE; ++i) data[i] = turned(i * i / 7.0);

  on_volume = on_device(volume, sizeof(volume));
  on_image = on_device(image, sizeof(image));
  on_data = on_device(data, sizeof(data));
  on_transposed = on_device(transposed, sizeof(transposed));
  problem.rotations = on_device(quarter_turn, sizeof(quarter_turn));
  problem.shifts = on_device(shift, sizeof(shift));
  if (!on_volume || !on_image || !on_data || !on_transposed || !problem.rotations || !problem.shifts) {
    fprintf(stderr, "no device memory\n");
    return 1;
  }

  problem.size = sizeof(problem);
  problem.scalar = TORCH_PROJECTORS_CUDA_FLOAT64;
  problem.interpolation = TORCH_PROJECTORS_CUDA_LINEAR;
  problem.volume_dims = 3;
  problem.image_dims = 2;
  for (a = 0; a < 3; ++a) problem.volume_shape[a] = N;
  for (a = 0; a < 2; ++a) problem.image_shape[a] = N;
  problem.oversampling = 1;
  problem.cutoff = N / 2;
  problem.batch = 1;
  problem.poses = 1;
  problem.deterministic = 1;
  /* The default stream of device 0. So few images in double need no workspace, and strides may be 0. */

  if (torch_projectors_cuda_forward_project(&problem, on_volume, on_image) != TORCH_PROJECTORS_CUDA_OK)
    return failed("forward_project");
  if (torch_projectors_cuda_backward_project(&problem, on_data, NULL, on_transposed, NULL) != TORCH_PROJECTORS_CUDA_OK)
    return failed("backward_project");
  /* These wait for the device. */
  if (cudaMemcpy(image, on_image, sizeof(image), cudaMemcpyDeviceToHost) != cudaSuccess ||
      cudaMemcpy(transposed, on_transposed, sizeof(transposed), cudaMemcpyDeviceToHost) != cudaSuccess) {
    fprintf(stderr, "the device failed\n");
    return 1;
  }

  /* The image is of the point as the inverse turn leaves it, seen along z, and shifted. */
  for (y = 0; y < N; ++y)
    for (x = 0; x < COLUMNS; ++x) {
      const int kx = frequency(x), ky = frequency(y), inside = 4 * (kx * kx + ky * ky) <= N * N;
      const number seen = turned(kx * (point[1] + shift[0]) + ky * (-point[0] + shift[1])), zero = {0, 0};
      const number expected = inside ? seen : zero, *actual = &image[y * COLUMNS + x];
      error = fmax(error, hypot(actual->re - expected.re, actual->im - expected.im));
    }
  /* <forward(volume), data> = <volume, backward(data)> */
  forward = real_product(image, data, IMAGE);
  backward = real_product(volume, transposed, VOLUME);

  printf("torch-projectors-cuda %s (%s): point within %.1e, products %.6f and %.6f\n", torch_projectors_cuda_version(),
         torch_projectors_cuda_architectures(), error, forward, backward);
  /* Values of size 1; products are sums of some hundred. */
  return error < 1e-14 && fabs(forward - backward) < 1e-12 ? 0 : 1;
}
