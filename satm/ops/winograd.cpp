// Convolutions of 3 x 3 with stride 1 and padding 1 by Winograd's algorithm F(4 x 4, 3 x 3), on maps [n][h][w][c].
//
// Tiles of 4 x 4 results are computed from tiles of 6 x 6 inputs by 36 matrix products in place of 144. With the
// matrices of one dimension, A (6 x 4), B (6 x 6), G (6 x 3), for the points 0, 2/3, -2/3, 3/2, -3/2 and infinity,
//
//     y = A' [ (G w G') o (B' x B) ] A        dw = G' [ sum over tiles (B' x B) o (A dy A') ] G
//
// where o multiplies elements of a tile, and over channels is a matrix product. The gradient of x is the convolution of
// dy with the mirrored and transposed w. These points lose the least, and products are summed in short parts, so that
// results in float32 are as near to the exact ones as those of the plain sum, and dw within twice its distance; with the
// points 1 and 2 and sums in one part it would be ten times.
//
// Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"; the construction for other points
// is that of Cook and Toom.
//
// Compiled with NUMBER, float or double. Nothing is included but the C library.

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

const int TILE = 4, SIDE = 6, POINTS = SIDE * SIDE;

constexpr NUMBER A[SIDE][TILE] = {
    {1, 0, 0, 0},
    {1, 2. / 3, 4. / 9, 8. / 27},
    {1, -2. / 3, 4. / 9, -8. / 27},
    {1, 3. / 2, 9. / 4, 27. / 8},
    {1, -3. / 2, 9. / 4, -27. / 8},
    {0, 0, 0, 1},
};
constexpr NUMBER G[SIDE][3] = {
    {1, 0, 0}, {1, 2. / 3, 4. / 9}, {1, -2. / 3, 4. / 9}, {1, 3. / 2, 9. / 4}, {1, -3. / 2, 9. / 4}, {0, 0, 1},
};
constexpr NUMBER B[SIDE][SIDE] = {
    // transposed
    {1, 0, -97. / 36, 0, 1, 0},
    {0, 243. / 260, 729. / 520, -27. / 65, -81. / 130, 0},
    {0, -243. / 260, 729. / 520, 27. / 65, -81. / 130, 0},
    {0, -16. / 195, -32. / 585, 12. / 65, 8. / 65, 0},
    {0, 16. / 195, -32. / 585, -12. / 65, 8. / 65, 0},
    {0, 1, 0, -97. / 36, 0, 1},
};

INLINE Vec load(const NUMBER *from) {
  Vec v;
  memcpy(&v, from, sizeof v);
  return v;
}
INLINE void store(NUMBER *to, Vec v) { memcpy(to, &v, sizeof v); }

// out = M in M', for a square of vectors; M has OUT rows and IN columns, or is given transposed.
template <int OUT, int IN, bool TRANSPOSED, class Matrix>
INLINE void both_sides(const Matrix &m, const Vec in[IN][IN], Vec out[OUT][OUT]) {
  Vec half[OUT][IN];
#pragma GCC unroll 6
  for (int i = 0; i < OUT; i++)
#pragma GCC unroll 6
    for (int j = 0; j < IN; j++) {
      Vec sum = {};
#pragma GCC unroll 6
      for (int k = 0; k < IN; k++) {
        const NUMBER factor = TRANSPOSED ? m[k][i] : m[i][k];
        if (factor != 0) sum += factor * in[k][j];
      }
      half[i][j] = sum;
    }
#pragma GCC unroll 6
  for (int i = 0; i < OUT; i++)
#pragma GCC unroll 6
    for (int j = 0; j < OUT; j++) {
      Vec sum = {};
#pragma GCC unroll 6
      for (int k = 0; k < IN; k++) {
        const NUMBER factor = TRANSPOSED ? m[k][j] : m[j][k];
        if (factor != 0) sum += factor * half[i][k];
      }
      out[i][j] = sum;
    }
}

struct Shape {
  long n, h, w, c, d;  // images, height, width, channels before and after
  long rows() const { return (h + TILE - 1) / TILE; }
  long columns() const { return (w + TILE - 1) / TILE; }
  long tiles() const { return n * rows() * columns(); }
};

// Distance of the matrices of two points. Without the gap their elements would fall into the same lines of the cache.
INLINE long apart(long size) { return size + 3 * LANES; }

// Put B' x B into `out`, [36][tiles][c].
INLINE void transform_inputs(const Shape &s, long c, const NUMBER *x, NUMBER *out) {
  const long tiles = s.tiles();
#pragma omp for
  for (long t = 0; t < tiles; t++) {
    const long column = t % s.columns(), row = t / s.columns() % s.rows(), image = t / s.columns() / s.rows();
    const long top = row * TILE - 1, left = column * TILE - 1;
    for (long l = 0; l < c; l += LANES) {
      Vec in[SIDE][SIDE], made[SIDE][SIDE];
      for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
          const long y = top + i, z = left + j;
          const bool inside = y >= 0 && y < s.h && z >= 0 && z < s.w;
          in[i][j] = inside ? load(x + ((image * s.h + y) * s.w + z) * c + l) : Vec{};
        }
      both_sides<SIDE, SIDE, false>(B, in, made);
      for (int p = 0; p < POINTS; p++) store(out + p * apart(tiles * c) + t * c + l, made[p / SIDE][p % SIDE]);
    }
  }
}

// Put A dy A' into `out`, [36][d / PANEL][tiles][PANEL].
INLINE void transform_slopes(const Shape &s, const NUMBER *dy, NUMBER *out) {
  const long tiles = s.tiles();
#pragma omp for
  for (long t = 0; t < tiles; t++) {
    const long column = t % s.columns(), row = t / s.columns() % s.rows(), image = t / s.columns() / s.rows();
    for (long l = 0; l < s.d; l += LANES) {
      Vec in[TILE][TILE], made[SIDE][SIDE];
      for (int i = 0; i < TILE; i++)
        for (int j = 0; j < TILE; j++) {
          const long y = row * TILE + i, z = column * TILE + j;
          in[i][j] = y < s.h && z < s.w ? load(dy + ((image * s.h + y) * s.w + z) * s.d + l) : Vec{};
        }
      both_sides<SIDE, TILE, false>(A, in, made);
      for (int p = 0; p < POINTS; p++)
        store(out + p * apart(s.d * tiles) + l / PANEL * PANEL * tiles + t * PANEL + l % PANEL, made[p / SIDE][p % SIDE]);
    }
  }
}

// Put G w G' into `out`, [36][d / PANEL][c][PANEL], from w [3][3][c][d]. `mirrored` turns each 3 x 3 around.
INLINE void transform_weights(long c, long d, const NUMBER *w, bool mirrored, NUMBER *out) {
#pragma omp for
  for (long k = 0; k < c; k++)
    for (long l = 0; l < d; l += LANES) {
      Vec in[3][3], made[SIDE][SIDE];
      for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
          const long place = mirrored ? (2 - i) * 3 + 2 - j : i * 3 + j;
          in[i][j] = load(w + (place * c + k) * d + l);
        }
      both_sides<SIDE, 3, false>(G, in, made);
      for (int p = 0; p < POINTS; p++)
        store(out + p * apart(c * d) + l / PANEL * PANEL * c + k * PANEL + l % PANEL, made[p / SIDE][p % SIDE]);
    }
}

// Put A' m A + b into y, from m [36][tiles][d].
INLINE void results(const Shape &s, const NUMBER *m, const NUMBER *b, NUMBER *y) {
  const long tiles = s.tiles();
#pragma omp for
  for (long t = 0; t < tiles; t++) {
    const long column = t % s.columns(), row = t / s.columns() % s.rows(), image = t / s.columns() / s.rows();
    for (long l = 0; l < s.d; l += LANES) {
      Vec in[SIDE][SIDE], made[TILE][TILE];
      for (int p = 0; p < POINTS; p++) in[p / SIDE][p % SIDE] = load(m + p * apart(tiles * s.d) + t * s.d + l);
      both_sides<TILE, SIDE, true>(A, in, made);
      const Vec shift = b ? load(b + l) : Vec{};
      for (int i = 0; i < TILE; i++)
        for (int j = 0; j < TILE; j++) {
          const long r = row * TILE + i, q = column * TILE + j;
          if (r < s.h && q < s.w) store(y + ((image * s.h + r) * s.w + q) * s.d + l, made[i][j] + shift);
        }
    }
  }
}

// Put G' m G into dw, [3][3][c][d], from m [36][c][d].
INLINE void weight_slopes(const Shape &s, const NUMBER *m, NUMBER *dw) {
#pragma omp for
  for (long k = 0; k < s.c; k++)
    for (long l = 0; l < s.d; l += LANES) {
      Vec in[SIDE][SIDE], made[3][3];
      for (int p = 0; p < POINTS; p++) in[p / SIDE][p % SIDE] = load(m + p * apart(s.c * s.d) + k * s.d + l);
      both_sides<3, SIDE, true>(G, in, made);
      for (int p = 0; p < 9; p++) store(dw + (p * s.c + k) * s.d + l, made[p / 3][p % 3]);
    }
}

// Add to R rows and VECS vectors of c the product of a, whose elements are `row` and `inner` apart, and a part of a
// panel of b.
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

// c [rows][width] = a b for one point and one panel. The inner dimension is summed in parts, whose number and length lose
// little together.
template <bool ALONG>
INLINE void product(long rows, long inner_size, const NUMBER *a, long stride, const NUMBER *b, NUMBER *c, long width) {
  const long row = ALONG ? stride : 1, inner = ALONG ? 1 : stride, PART = inner_size <= 512 ? 16 : 64;
  for (long from = 0; from < inner_size; from += PART) {
    const long size = inner_size - from < PART ? inner_size - from : PART;
    const NUMBER *part = a + from * inner;
    for (long v = 0; v < PANEL; v += VECS * LANES) {
      const NUMBER *right = b + from * PANEL + v;
      long r = 0;
      for (; r + ROWS <= rows; r += ROWS) corner<ROWS>(size, part + r * row, row, inner, right, c + r * width + v, width, from);
      for (; r + 2 <= rows; r += 2) corner<2>(size, part + r * row, row, inner, right, c + r * width + v, width, from);
      for (; r < rows; r++) corner<1>(size, part + r * row, row, inner, right, c + r * width + v, width, from);
    }
  }
}

const long BLOCK = 96;  // rows of a product that one thread computes at a time

}  // namespace

extern "C" {

// Return the numbers that a call needs for work.
long work_size(const Shape *s) { return POINTS * (apart(s->tiles() * s->c) + apart(s->tiles() * s->d) + apart(s->c * s->d)); }

// y [n][h][w][d] = the convolution of x with w [3][3][c][d], plus b if it is given.
void convolve(const Shape *s, const NUMBER *x, const NUMBER *w, const NUMBER *b, long mirrored, NUMBER *work, NUMBER *y) {
  const long tiles = s->tiles(), c = s->c, d = s->d, blocks = (tiles + BLOCK - 1) / BLOCK, panels = d / PANEL;
  NUMBER *left = work, *made = left + POINTS * apart(tiles * c), *right = made + POINTS * apart(tiles * d);
#pragma omp parallel
  {
    transform_weights(c, d, w, mirrored, right);
    transform_inputs(*s, c, x, left);
#pragma omp for collapse(3)
    for (long p = 0; p < POINTS; p++)
      for (long k = 0; k < blocks; k++)
        for (long q = 0; q < panels; q++) {
          const long first = k * BLOCK, rows = tiles - first < BLOCK ? tiles - first : BLOCK;
          product<true>(rows, c, left + p * apart(tiles * c) + first * c, c, right + p * apart(c * d) + q * PANEL * c,
                        made + p * apart(tiles * d) + first * d + q * PANEL, d);
        }
    results(*s, made, b, y);
  }
}

// dw [3][3][c][d] = the gradient with respect to w, from x and the cotangent dy.
void slope(const Shape *s, const NUMBER *x, const NUMBER *dy, NUMBER *work, NUMBER *dw) {
  const long tiles = s->tiles(), c = s->c, d = s->d, blocks = (c + BLOCK - 1) / BLOCK, panels = d / PANEL;
  NUMBER *left = work, *right = left + POINTS * apart(tiles * c), *made = right + POINTS * apart(tiles * d);
#pragma omp parallel
  {
    transform_slopes(*s, dy, right);
    transform_inputs(*s, c, x, left);
#pragma omp for collapse(3)
    for (long p = 0; p < POINTS; p++)
      for (long k = 0; k < blocks; k++)
        for (long q = 0; q < panels; q++) {
          const long first = k * BLOCK, rows = c - first < BLOCK ? c - first : BLOCK;
          product<false>(rows, tiles, left + p * apart(tiles * c) + first, c,
                         right + p * apart(tiles * d) + q * PANEL * tiles,
                         made + p * apart(c * d) + first * d + q * PANEL, d);
        }
    weight_slopes(*s, made, dw);
  }
}
}
