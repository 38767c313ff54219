// Products of matrices on vectors of 64 bytes, for the kernels of this folder. Compiled with NUMBER, float or double.

#pragma once

#include <string.h>

#define INLINE inline __attribute__((always_inline))

namespace {

typedef NUMBER Vec __attribute__((vector_size(64)));
const long LANES = 64 / sizeof(NUMBER);

#ifdef __AVX512F__
const int ROWS = 8, VECS = 2;  // of the part of a product that is held in registers
#else
const int ROWS = 6, VECS = 1;
#endif
const long PANEL = 2 * LANES;  // columns that lie together in the right matrix of a product

INLINE Vec load(const NUMBER *from) {
  Vec v;
  memcpy(&v, from, sizeof v);
  return v;
}
INLINE void store(NUMBER *to, Vec v) { memcpy(to, &v, sizeof v); }

// Put into R rows and VECS vectors of c, or with `add` add to them, the product of a, whose elements are `row` and `inner`
// apart, and a part of a panel of b.
template <int R>
INLINE void corner(long inner_size, const NUMBER *a, long row, long inner, const NUMBER *b, NUMBER *c, long width, bool add) {
  Vec sum[R][VECS];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) sum[r][v] = Vec{};
  for (long k = 0; k < inner_size; k++) {
    Vec right[VECS];
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) right[v] = load(b + k * PANEL + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int v = 0; v < VECS; v++) sum[r][v] += a[r * row + k * inner] * right[v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < VECS; v++) {
      NUMBER *to = c + r * width + v * LANES;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
}

// c [rows][width] = a b for one point and one panel, or with `add` c + a b. The inner dimension is summed in short parts,
// which loses least.
template <bool ALONG>
INLINE void product(long rows, long inner_size, const NUMBER *a, long stride, const NUMBER *b, NUMBER *c, long width, bool add) {
  const long row = ALONG ? stride : 1, inner = ALONG ? 1 : stride, SHORT = 16;
  for (long from = 0; from < inner_size; from += SHORT) {
    const long size = inner_size - from < SHORT ? inner_size - from : SHORT;
    const NUMBER *part = a + from * inner;
    for (long v = 0; v < PANEL; v += VECS * LANES) {
      const NUMBER *right = b + from * PANEL + v;
      long r = 0;
      for (; r + ROWS <= rows; r += ROWS) corner<ROWS>(size, part + r * row, row, inner, right, c + r * width + v, width, add || from);
      for (; r + 2 <= rows; r += 2) corner<2>(size, part + r * row, row, inner, right, c + r * width + v, width, add || from);
      for (; r < rows; r++) corner<1>(size, part + r * row, row, inner, right, c + r * width + v, width, add || from);
    }
  }
}

const long BLOCK = 96;  // rows of a product that one thread computes at a time

}  // namespace
