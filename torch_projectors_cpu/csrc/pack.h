// A few neighbouring numbers: the taps of one row, real and imaginary parts in turn.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__GNUC__) && defined(__AVX__)
#include <immintrin.h>
#endif

// For what is done for each sample: in a file of so many kernels compilers stop inlining, and calls cost a third of an
// insertion.
#if defined(__GNUC__)
#define TORCH_PROJECTORS_WITHIN inline __attribute__((always_inline))
#else
#define TORCH_PROJECTORS_WITHIN __forceinline
#endif

namespace torch_projectors {
namespace LEVEL {

// Bytes of the level's vectors.
#if !defined(__GNUC__)
constexpr int kWidest = 0;
#elif defined(__AVX512F__)
constexpr int kWidest = 64;
#elif defined(__AVX__)
constexpr int kWidest = 32;
#else
constexpr int kWidest = 16;
#endif

template <class T, int N>
struct Halves;

template <class T, int N>
struct VectorOf {
#if defined(__GNUC__)
  typedef T type __attribute__((vector_size(N * sizeof(T))));
#else
  static_assert(N == 1, "there are no vectors");
  using type = T;
#endif
};

template <class T, int N>
struct HalvesOf {
  using type = Halves<T, N>;
};

// N numbers: a vector, or halves where it would be larger than there are: what compilers make of such vectors goes
// through memory by single numbers.
template <class T, int N>
using Pack = typename std::conditional_t<N == 1 || N * int(sizeof(T)) <= kWidest, VectorOf<T, N>, HalvesOf<T, N>>::type;

template <class T, int N>
struct Halves {
  Pack<T, N / 2> low, high;
};

template <class P>
constexpr bool split = false;
template <class T, int N>
constexpr bool split<Halves<T, N>> = true;

template <class T, int N>
TORCH_PROJECTORS_WITHIN Halves<T, N> operator+(const Halves<T, N>& a, const Halves<T, N>& b) {
  return {a.low + b.low, a.high + b.high};
}
template <class T, int N>
TORCH_PROJECTORS_WITHIN Halves<T, N> operator*(const Halves<T, N>& a, const Halves<T, N>& b) {
  return {a.low * b.low, a.high * b.high};
}
template <class T, int N>
TORCH_PROJECTORS_WITHIN Halves<T, N> operator*(const Halves<T, N>& a, T b) {
  return {a.low * b, a.high * b};
}

template <class P, class T>
TORCH_PROJECTORS_WITHIN P load(const T* p) {
  if constexpr (split<P>) {
    using Half = decltype(P::low);
    return {load<Half>(p), load<Half>(p + sizeof(Half) / sizeof(T))};
  } else {
    P x;
    std::memcpy(&x, p, sizeof(P));
    return x;
  }
}

template <class P, class T>
TORCH_PROJECTORS_WITHIN void store(T* p, const P& x) {
  if constexpr (split<P>) {
    store(p, x.low);
    store(p + sizeof(x.low) / sizeof(T), x.high);
  } else {
    std::memcpy(p, &x, sizeof(P));
  }
}

TORCH_PROJECTORS_WITHIN int32_t index_of(float) { return 0; }
TORCH_PROJECTORS_WITHIN int64_t index_of(double) { return 0; }

// Without signs: by bits, since to compare and choose takes four times the instructions.
template <class T, int N, class P>
TORCH_PROJECTORS_WITHIN P magnitudes(const P& x) {
  if constexpr (split<P>) {
    return {magnitudes<T, N / 2>(x.low), magnitudes<T, N / 2>(x.high)};
  } else {
#if defined(__GNUC__)
    using Bits = Pack<decltype(index_of(T())), N>;
    return (P)((Bits)x & (Bits{} + std::numeric_limits<decltype(index_of(T()))>::max()));
#else
    return std::abs(x);
#endif
  }
}

// 0 in lanes where `taken` is 0; elsewhere it is -1.
template <class T, int N, class P, class Bits>
TORCH_PROJECTORS_WITHIN P lanes_of(const P& x, const Bits* taken) {
  if constexpr (split<P>) {
    return {lanes_of<T, N / 2>(x.low, taken), lanes_of<T, N / 2>(x.high, taken + N / 2)};
  } else {
#if defined(__GNUC__)
    return (P)((Pack<Bits, N>)x & load<Pack<Bits, N>>(taken));
#else
    return *taken == 0 ? T(0) : x;
#endif
  }
}

// x in every lane.
template <class P, class T>
TORCH_PROJECTORS_WITHIN P everywhere(T x) {
  if constexpr (split<P>) {
    const auto half = everywhere<decltype(P::low)>(x);
    return {half, half};
  } else {
    return x - P{};  // x - 0 is x, and x + 0 not always
  }
}

// x, rounded: compilers would make one operation of the product that x is and the sum that follows, in one copy of the
// code and not in another, and results would depend on which is run.
template <class P>
TORCH_PROJECTORS_WITHIN P rounded(P x) {
#if defined(__GNUC__)
  __asm__("" : "+m"(x));
#endif
  return x;
}

// Into the second cache: a block is more than the first holds beside the rest. Any address may be named. The empty
// statement is because compilers take a function that only prefetches for one that does nothing.
template <class T>
TORCH_PROJECTORS_WITHIN void prefetch(const T* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
  __asm__ volatile("");
#endif
}

// What is read soon, whole.
template <class T>
TORCH_PROJECTORS_WITHIN void prefetch_all(const T* p, int64_t count) {
#if defined(__GNUC__)
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + i, 0, 3);
  __asm__ volatile("");
#endif
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TORCH_PROJECTORS_SHUFFLE
#endif
#endif

// Bytes of the level's vectors, if the compiler can join and spread them.
#if defined(TORCH_PROJECTORS_SHUFFLE)
constexpr int kVector = kWidest;
#else
constexpr int kVector = 0;
#endif

// The lanes of a pack are `samples` groups, in which the taps of a sample follow each other, each with `numbers` numbers.
#if defined(TORCH_PROJECTORS_SHUFFLE)
template <class P, std::size_t... lane>
TORCH_PROJECTORS_WITHIN auto joined(const P& a, const P& b, std::index_sequence<lane...>) {
  return __builtin_shufflevector(a, b, int(lane)...);
}

// What compilers make of these shuffles takes twice the instructions of what there is for it; from clang, the same.
template <class T, int N>
TORCH_PROJECTORS_WITHIN Pack<T, 2 * N> beside(const Pack<T, N>& a, const Pack<T, N>& b) {
#if defined(__AVX__)
  if constexpr (sizeof(a) == 16)
    return (Pack<T, 2 * N>)_mm256_insertf128_ps(_mm256_castps128_ps256((__m128)a), (__m128)b, 1);
#endif
#if defined(__AVX512F__)
  if constexpr (sizeof(a) == 32)
    return (Pack<T, 2 * N>)_mm512_maskz_insertf64x4(0xff, _mm512_castpd256_pd512((__m256d)a), (__m256d)b, 1);
#endif
  return joined(a, b, std::make_index_sequence<2 * N>());
}

template <int shift, class P, std::size_t... lane>
TORCH_PROJECTORS_WITHIN P rotated(const P& x, std::index_sequence<lane...>) {
  return __builtin_shufflevector(x, x, int((lane + shift) % sizeof...(lane))...);
}

template <int group, int apart, class P, std::size_t... lane>
TORCH_PROJECTORS_WITHIN P spread(const P& x, std::index_sequence<lane...>) {
  return __builtin_shufflevector(x, x, int(lane / group * apart)...);
}

template <int half, int numbers, class P>
TORCH_PROJECTORS_WITHIN P folded(const P& x) {
  if constexpr (half < numbers) return x;
  else
    return folded<half / 2, numbers>(x + rotated<half>(x, std::make_index_sequence<sizeof(P) / sizeof(x[0])>()));
}

// Every other `many` numbers of a, from the first or from the next ones on, each followed by such of b.
template <int many, bool odd, class P, std::size_t... lane>
TORCH_PROJECTORS_WITHIN P halves(const P& a, const P& b, std::index_sequence<lane...>) {
  constexpr std::size_t group = 2 * many, of_b = sizeof...(lane);
  return __builtin_shufflevector(
      a, b, int(lane % group / many * of_b + lane / group * group + odd * many + lane % many)...);
}

// As numbers of 8 bytes where that can be: compilers know more instructions for them.
template <int many, bool odd, class T, class P>
TORCH_PROJECTORS_WITHIN P halves(const P& a, const P& b) {
  if constexpr (many > 1 && sizeof(T) < 8) {
    using Wide = Pack<double, sizeof(P) / 8>;
    return (P)halves<many / 2, odd, double>((Wide)a, (Wide)b);
  } else {
    return halves<many, odd>(a, b, std::make_index_sequence<sizeof(P) / sizeof(T)>());
  }
}

// Of packs that hold all taps of samples 0, n, 2 n, ..., of 1, n + 1, ... and so on: one tap of all samples, in order.
template <int tap, class T, int numbers, int taps, class P>
TORCH_PROJECTORS_WITHIN P column(const P (&packs)[taps]) {
  if constexpr (taps == 1) return packs[0];
  else if constexpr (taps == 2) return halves<numbers, tap == 1, T>(packs[0], packs[1]);
  else
    return halves<2 * numbers, tap / 2 == 1, T>(halves<numbers, tap % 2 == 1, T>(packs[0], packs[1]),
                                                halves<numbers, tap % 2 == 1, T>(packs[2], packs[3]));
}
#endif

// Which sample each lane is of.
template <class T, int lanes, int first, int apart, std::size_t... lane>
TORCH_PROJECTORS_WITHIN auto sample_of_each(std::index_sequence<lane...>) {
  return Pack<decltype(index_of(T())), int(sizeof...(lane))>{decltype(index_of(T()))(lane / lanes * apart + first)...};
}

// Of every sample, `lanes` numbers that begin at its offset; samples are `apart` from each other.
template <class T, int lanes, int samples, int numbers, int apart>
TORCH_PROJECTORS_WITHIN Pack<T, lanes * samples> load_each(const T* from, const int32_t* offset) {
  if constexpr (samples == 1) {
    return load<Pack<T, lanes>>(from + numbers * int64_t(offset[0]));
  } else {
#if defined(TORCH_PROJECTORS_SHUFFLE)
    constexpr int half = samples / 2;
    return beside<T, lanes * half>(load_each<T, lanes, half, numbers, apart>(from, offset),
                                   load_each<T, lanes, half, numbers, apart>(from, offset + half * apart));
#endif
  }
}

// The own factor of samples first, first + apart, ... in all of their lanes. As many numbers may be read as there are
// lanes.
template <class T, int lanes, int samples, int first, int apart>
TORCH_PROJECTORS_WITHIN auto factor_each(const T* from) {
  if constexpr (samples == 1) {
    return from[first];
  } else {
#if defined(__AVX512F__) && defined(TORCH_PROJECTORS_SHUFFLE)
    if constexpr (lanes * samples * sizeof(T) == 64 && samples * apart * sizeof(T) == 32) {
      // No more than are used: most loads of a whole vector would touch two cache lines.
      const __m512 some = _mm512_castps256_ps512(_mm256_loadu_ps(reinterpret_cast<const float*>(from)));
      const auto each = sample_of_each<T, lanes, first, apart>(std::make_index_sequence<lanes * samples>());
      if constexpr (sizeof(T) == 4)
        return (Pack<T, lanes * samples>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)each, some);
      else
        return (Pack<T, lanes * samples>)_mm512_maskz_permutexvar_pd(0xff, (__m512i)each, _mm512_castps_pd(some));
    }
#endif
#if defined(TORCH_PROJECTORS_SHUFFLE)
    return spread<lanes, apart>(load<Pack<T, lanes * samples>>(from + first),
                                std::make_index_sequence<lanes * samples>());
#endif
  }
}

// The first lanes of a pack.
#if defined(TORCH_PROJECTORS_SHUFFLE)
template <class P, std::size_t... lane>
TORCH_PROJECTORS_WITHIN auto first_lanes(const P& x, std::index_sequence<lane...>) {
  return __builtin_shufflevector(x, x, int(lane)...);
}
#endif

template <class T, int N, class P>
TORCH_PROJECTORS_WITHIN Pack<T, N> first_lanes(const P& x) {
  if constexpr (std::is_same_v<P, Pack<T, N>>) {
    return x;
  } else if constexpr (split<P>) {
    return first_lanes<T, N>(x.low);
  } else {
#if defined(TORCH_PROJECTORS_SHUFFLE)
    return first_lanes(x, std::make_index_sequence<N>());
#else
    Pack<T, N> first;
    std::memcpy(&first, &x, sizeof(first));
    return first;
#endif
  }
}

// The same `numbers` for every tap.
template <class T, int lanes, int numbers>
TORCH_PROJECTORS_WITHIN Pack<T, lanes> spread(const T* from) {
  using P = Pack<T, lanes>;
  if constexpr (numbers == 1) {
    return everywhere<P>(from[0]);
  } else if constexpr (lanes == numbers) {
    return load<P>(from);
  } else if constexpr (split<P>) {
    const auto half = spread<T, lanes / 2, numbers>(from);
    return {half, half};
  } else {
    // Not by a shuffle of all lanes: compilers store the numbers, and read them as a longer vector, which waits for all
    // that was stored before.
#if defined(TORCH_PROJECTORS_SHUFFLE)
    if constexpr (numbers * sizeof(T) == 8) {
      return (P)everywhere<Pack<int64_t, lanes / numbers>>(load<int64_t>(from));
    } else {
      const auto half = spread<T, lanes / 2, numbers>(from);
      return beside<T, lanes / 2>(half, half);
    }
#else
    P x{};
    for (int i = 0; i < lanes; ++i) x[i] = from[i % numbers];
    return x;
#endif
  }
}

// Sums over the taps of a sample: `numbers` of them.
template <class T, int lanes, int numbers>
TORCH_PROJECTORS_WITHIN void sum_taps(const Pack<T, lanes>& x, T* to) {
  if constexpr (lanes == numbers) {
    store(to, x);
  } else if constexpr (split<Pack<T, lanes>>) {
    sum_taps<T, lanes / 2, numbers>(x.low + x.high, to);
  } else {
#if defined(TORCH_PROJECTORS_SHUFFLE)
    const auto sum = folded<lanes / 2, numbers>(x);
    std::memcpy(to, &sum, numbers * sizeof(T));
#else
    for (int c = 0; c < numbers; ++c) {
      T s = x[c];
      for (int i = numbers; i < lanes; i += numbers) s += x[i + c];
      to[c] = s;
    }
#endif
  }
}

}  // namespace LEVEL
}  // namespace torch_projectors
