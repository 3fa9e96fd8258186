// A few neighbouring numbers: the taps of one row, real and imaginary parts in turn.
#pragma once

#include <cstring>
#include <utility>

namespace torch_projectors {
namespace LEVEL {

#if defined(__GNUC__)
template <class T, int N>
struct PackOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Pack = typename PackOf<T, N>::type;
#else
template <class T, int N>
struct Pack {
  T v[N];
  T operator[](int i) const { return v[i]; }
  T& operator[](int i) { return v[i]; }
};
template <class T, int N>
inline Pack<T, N> operator+(Pack<T, N> a, const Pack<T, N>& b) {
  for (int i = 0; i < N; ++i) a[i] += b[i];
  return a;
}
template <class T, int N>
inline Pack<T, N> operator*(Pack<T, N> a, const Pack<T, N>& b) {
  for (int i = 0; i < N; ++i) a[i] *= b[i];
  return a;
}
template <class T, int N>
inline Pack<T, N> operator*(Pack<T, N> a, T b) {
  for (int i = 0; i < N; ++i) a[i] *= b;
  return a;
}
#endif

template <class P, class T>
inline P load(const T* p) {
  P x;
  std::memcpy(&x, p, sizeof(P));
  return x;
}

template <class P, class T>
inline void store(T* p, const P& x) {
  std::memcpy(p, &x, sizeof(P));
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TORCH_PROJECTORS_SHUFFLE
#endif
#endif

#if defined(TORCH_PROJECTORS_SHUFFLE)
template <int shift, class P, std::size_t... lane>
inline P rotated(const P& x, std::index_sequence<lane...>) {
  return __builtin_shufflevector(x, x, int((lane + shift) % sizeof...(lane))...);
}

template <int numbers, class P, std::size_t... lane>
inline auto spread_lanes(const P& x, std::index_sequence<lane...>) {
  return __builtin_shufflevector(x, x, int(lane % numbers)...);
}

template <int half, int numbers, class P>
inline P folded(const P& x) {
  if constexpr (half < numbers) return x;
  else return folded<half / 2, numbers>(x + rotated<half>(x, std::make_index_sequence<sizeof(P) / sizeof(x[0])>()));
}
#endif

// The same `numbers` for every tap.
template <class T, int lanes, int numbers>
inline Pack<T, lanes> spread(const T* from) {
  Pack<T, lanes> x{};
#if defined(TORCH_PROJECTORS_SHUFFLE)
  // Not by way of a part of x: compilers send that through memory, which waits for the store.
  if constexpr (numbers == 1) return x + from[0];
  else return spread_lanes<numbers>(load<Pack<T, numbers>>(from), std::make_index_sequence<lanes>());
#else
  for (int i = 0; i < lanes; ++i) x[i] = from[i % numbers];
  return x;
#endif
}

// Sums over taps, whose numbers follow each other: `numbers` of them.
template <class T, int lanes, int numbers>
inline void sum_taps(const Pack<T, lanes>& x, T* to) {
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

}  // namespace LEVEL
}  // namespace torch_projectors
