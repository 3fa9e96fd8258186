/* Fourier projection on the CPU, for any language: raw pointers, sizes, strides, and error codes with messages.
 *
 * Half spectra are laid out as rfftn does: DC at index 0, the last axis x stored for frequencies 0..W/2. Shapes are
 * real-space shapes in array order, (D,) H, W. Vectors are (x, y[, z]); matrices act on columns. Arrays are float or
 * double; complex numbers are pairs of them. Strides count entries (numbers or pairs), not bytes; within a volume, an
 * image, a matrix or a shift entries are contiguous. Strides of inputs may be 0, where several volumes or poses share
 * one of them. No array is written to but those that are not const, and those may overlap nothing.
 *
 * Every function returns 0, or an error code; torch_projectors_cpu_message() then says what was wrong. Functions may be
 * called from several threads at once. Nothing is kept between calls.
 */
#ifndef TORCH_PROJECTORS_CPU_H
#define TORCH_PROJECTORS_CPU_H

#include <stdint.h>

#if defined(_WIN32) && defined(TORCH_PROJECTORS_CPU_BUILD) /* the library itself is compiled */
#define TORCH_PROJECTORS_API __declspec(dllexport)
#elif defined(_WIN32)
#define TORCH_PROJECTORS_API __declspec(dllimport)
#else
#define TORCH_PROJECTORS_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum torch_projectors_error {
  TORCH_PROJECTORS_OK = 0,
  TORCH_PROJECTORS_INVALID = 1, /* an argument; the message names it, what was expected and what came */
  TORCH_PROJECTORS_MEMORY = 2,  /* not enough of it */
  TORCH_PROJECTORS_FAILED = 3   /* anything else */
};

enum torch_projectors_scalar { TORCH_PROJECTORS_FLOAT32 = 0, TORCH_PROJECTORS_FLOAT64 = 1 };

enum torch_projectors_interpolation {
  TORCH_PROJECTORS_NEAREST = 0,
  TORCH_PROJECTORS_LINEAR = 1,
  TORCH_PROJECTORS_CUBIC = 3
};

/* Runs body(context, begin, end) over ranges that cover 0..n once, on as many threads as it likes, and returns when all
 * are done. It is not called for problems too small to pay for threads. */
typedef void (*torch_projectors_body)(void* context, int64_t begin, int64_t end);
typedef void (*torch_projectors_runner)(void* pool, int64_t n, torch_projectors_body body, void* context);

typedef struct {
  int32_t size;    /* sizeof(torch_projectors_problem): tells versions apart */
  int32_t scalar;  /* of all arrays */
  int32_t real;    /* 0: volumes and images are complex; 1: real weights, read and added with |interpolation weight| */
  int32_t pairs_once; /* 1: images count each Friedel pair once: columns 0 and, of even W, W/2 count half, which hold
                       * both of its members */
  int32_t interpolation;
  int32_t volume_dims, image_dims; /* 2 and 2, 3 and 2, or 3 and 3 */
  int32_t add; /* 1: backward_project adds to what the volumes hold, which have to be there; 0: it overwrites them */
  int32_t mates; /* 1: backward_project is followed by add_mates, for less than both take */
  int64_t volume_shape[3], image_shape[3]; /* the first volume_dims, image_dims of them */
  double oversampling; /* a sample lies at oversampling * matrix * frequency */
  double cutoff;       /* images are 0 beyond this frequency; may be infinite */
  int64_t batch, poses; /* volumes, and images of each */
  const void* rotations; /* matrices volume_dims x volume_dims, rows contiguous */
  const void* shifts;    /* image_dims numbers each, in pixels; or NULL */
  /* From volume to volume, and from pose to pose. */
  int64_t rotation_strides[2], shift_strides[2], image_strides[2];
  int64_t volume_stride; /* from volume to volume */
  int32_t threads; /* 0: as many as there are cores; not used with a runner */
  torch_projectors_runner runner; /* or NULL, for threads that are started and joined in the call */
  void* pool;                     /* what the runner is given */
} torch_projectors_problem;

/* Images of volumes. */
TORCH_PROJECTORS_API int32_t torch_projectors_cpu_forward_project(const torch_projectors_problem* problem,
                                                                  const void* volume, void* images);

/* The exact transpose. weights: real, with the strides of images, or NULL; then weight_volume is NULL too. */
TORCH_PROJECTORS_API int32_t torch_projectors_cpu_backward_project(const torch_projectors_problem* problem,
                                                                   const void* images, const void* weights,
                                                                   void* volume, void* weight_volume);

/* Gradients of Re <forward_project(volume), images>; each is computed unless NULL. Their strides are those of what they
 * are gradients of; where a batch shares rotations or shifts, gradients are summed over it. */
TORCH_PROJECTORS_API int32_t torch_projectors_cpu_project_gradients(const torch_projectors_problem* problem,
                                                                    const void* volume, const void* images,
                                                                    void* grad_volume, void* grad_images,
                                                                    void* grad_rotations, void* grad_shifts);

/* Adds to every entry of columns that hold both members of each Friedel pair the conjugate of its mate, in place: what
 * makes the transpose an insertion. weight_volume, real, may be NULL. Of the problem, what describes volumes counts. */
TORCH_PROJECTORS_API int32_t torch_projectors_cpu_add_mates(const torch_projectors_problem* problem, void* volume,
                                                            void* weight_volume);

/* What a linear gather of volumes by images has to load, and nothing else: the limit to measure speed against. */
TORCH_PROJECTORS_API int32_t torch_projectors_cpu_gather_roof(const torch_projectors_problem* problem,
                                                              const void* volume, void* images);

/* Why the last call in this thread failed; empty if it did not. */
TORCH_PROJECTORS_API const char* torch_projectors_cpu_message(void);

/* Vector instructions in use: "avx512", "avx2" or "baseline". TORCH_PROJECTORS_CPU_LEVEL=name in the environment asks
 * for a lower one. */
TORCH_PROJECTORS_API const char* torch_projectors_cpu_level(void);

TORCH_PROJECTORS_API const char* torch_projectors_cpu_version(void);

/* The ABI of the torch ops below. */
TORCH_PROJECTORS_API int32_t torch_projectors_cpu_abi(void);

/* Registers kernels for the ops of torch_projectors with the torch that is in the process (2.10 or later). define_schemas: also define the ops, as a program without Python needs it. May be
 * called again. */
TORCH_PROJECTORS_API int32_t torch_projectors_cpu_register(int32_t define_schemas);

#ifdef __cplusplus
}
#endif
#endif
