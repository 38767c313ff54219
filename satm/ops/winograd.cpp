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
// Compiled with NUMBER, float or double.

#include "product.h"

namespace {

const long PART = 320;  // tiles that are handled at a time, so that what is made of them stays in the cache
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
  long part() const { return tiles() < PART ? tiles() : PART; }
};

// Some tiles, from the first one on.
struct Tiles {
  long first, count;
};

// Distance of the matrices of two points. Without the gap their elements would fall into the same lines of the cache.
INLINE long apart(long size) { return size + 3 * LANES; }

// Put B' x B into `out`, [36][tiles][c].
INLINE void transform_inputs(const Shape &s, Tiles some, long c, const NUMBER *x, NUMBER *out) {
  const long tiles = some.count;
#pragma omp for
  for (long t = 0; t < tiles; t++) {
    const long at = some.first + t, column = at % s.columns(), row = at / s.columns() % s.rows();
    const long image = at / s.columns() / s.rows();
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
INLINE void transform_slopes(const Shape &s, Tiles some, const NUMBER *dy, NUMBER *out) {
  const long tiles = some.count;
#pragma omp for
  for (long t = 0; t < tiles; t++) {
    const long at = some.first + t, column = at % s.columns(), row = at / s.columns() % s.rows();
    const long image = at / s.columns() / s.rows();
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
INLINE void results(const Shape &s, Tiles some, const NUMBER *m, const NUMBER *b, NUMBER *y) {
  const long tiles = some.count;
#pragma omp for
  for (long t = 0; t < tiles; t++) {
    const long at = some.first + t, column = at % s.columns(), row = at / s.columns() % s.rows();
    const long image = at / s.columns() / s.rows();
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

}  // namespace

extern "C" {

// Return the numbers that a call needs for work.
long work_size(const Shape *s) {
  return POINTS * (apart(s->part() * s->c) + apart(s->part() * s->d) + 2 * apart(s->c * s->d));
}

// y [n][h][w][d] = the convolution of x with w [3][3][c][d], plus b if it is given.
void convolve(const Shape *s, const NUMBER *x, const NUMBER *w, const NUMBER *b, long mirrored, NUMBER *work, NUMBER *y) {
  const long c = s->c, d = s->d, part = s->part(), panels = d / PANEL;
  NUMBER *left = work, *made = left + POINTS * apart(part * c), *right = made + POINTS * apart(part * d);
#pragma omp parallel
  {
    transform_weights(c, d, w, mirrored, right);
    for (long from = 0; from < s->tiles(); from += part) {
      const Tiles some = {from, s->tiles() - from < part ? s->tiles() - from : part};
      const long blocks = (some.count + BLOCK - 1) / BLOCK;
      transform_inputs(*s, some, c, x, left);
#pragma omp for collapse(3)
      for (long p = 0; p < POINTS; p++)
        for (long k = 0; k < blocks; k++)
          for (long q = 0; q < panels; q++) {
            const long first = k * BLOCK, rows = some.count - first < BLOCK ? some.count - first : BLOCK;
            product<true>(rows, c, left + p * apart(some.count * c) + first * c, c,
                          right + p * apart(c * d) + q * PANEL * c,
                          made + p * apart(some.count * d) + first * d + q * PANEL, d, false);
          }
      results(*s, some, made, b, y);
    }
  }
}

// dw [3][3][c][d] = the gradient with respect to w, from x and the cotangent dy.
void slope(const Shape *s, const NUMBER *x, const NUMBER *dy, NUMBER *work, NUMBER *dw) {
  const long c = s->c, d = s->d, part = s->part(), blocks = (c + BLOCK - 1) / BLOCK, panels = d / PANEL;
  NUMBER *left = work, *right = left + POINTS * apart(part * c), *made = right + POINTS * apart(part * d);
  NUMBER *total = made + POINTS * apart(c * d);
#pragma omp parallel
  {
    for (long from = 0; from < s->tiles(); from += part) {
      const Tiles some = {from, s->tiles() - from < part ? s->tiles() - from : part};
      transform_slopes(*s, some, dy, right);
      transform_inputs(*s, some, c, x, left);
#pragma omp for collapse(3)
      for (long p = 0; p < POINTS; p++)
        for (long k = 0; k < blocks; k++)
          for (long q = 0; q < panels; q++) {
            const long first = k * BLOCK, rows = c - first < BLOCK ? c - first : BLOCK;
            NUMBER *to = made + p * apart(c * d) + first * d + q * PANEL;
            product<false>(rows, some.count, left + p * apart(some.count * c) + first, c,
                           right + p * apart(some.count * d) + q * PANEL * some.count, to, d, false);
            if (s->tiles() > part)  // the sum of the parts
              for (long r = 0; r < rows; r++)
                for (long l = 0; l < PANEL; l += LANES) {
                  NUMBER *sum = to + POINTS * apart(c * d) + r * d + l;
                  store(sum, from ? load(sum) + load(to + r * d + l) : load(to + r * d + l));
                }
          }
    }
    weight_slopes(*s, s->tiles() > part ? total : made, dw);
  }
}
}
