// The gradient of images of few channels through a convolution of 3 x 3 with stride 1 and padding 1, on maps [n][h][w][c].
//
// Each pixel of dy gives 9 c numbers, a product of matrices; each pixel of dx is the sum of those that its neighbours have
// for it. Compiled with NUMBER, float or double.

#include "product.h"

namespace {

struct Shape {
  long n, h, w, c, d;  // images, height, width, channels before and after
  long pixels() const { return n * h * w; }
  long panels() const { return (9 * c + PANEL - 1) / PANEL; }
};

}  // namespace

extern "C" {

// Return the columns of the weights, 9 c and some zeros.
long columns(const Shape *s) { return s->panels() * PANEL; }

// dx [n][h][w][c] from dy [n][h][w][d] and w [columns / PANEL][d][PANEL], whose column k c + i is that of channel i and of
// element k of 3 x 3. `work` holds [pixels][columns] numbers.
void image_slope(const Shape *s, const NUMBER *dy, const NUMBER *w, NUMBER *work, NUMBER *dx) {
  const long pixels = s->pixels(), panels = s->panels(), width = panels * PANEL, blocks = (pixels + BLOCK - 1) / BLOCK;
#pragma omp parallel
  {
#pragma omp for
    for (long k = 0; k < blocks; k++) {
      const long first = k * BLOCK, rows = pixels - first < BLOCK ? pixels - first : BLOCK;
      for (long q = 0; q < panels; q++)
        product<true>(rows, s->d, dy + first * s->d, s->d, w + q * s->d * PANEL, work + first * width + q * PANEL, width, false);
    }
#pragma omp for
    for (long line = 0; line < s->n * s->h; line++) {
      const long y = line % s->h;
      for (long x = 0; x < s->w; x++)
        for (long i = 0; i < s->c; i++) {
          NUMBER sum = 0;
          for (long p = 0; p < 3; p++)
            for (long q = 0; q < 3; q++) {
              const long row = y + 1 - p, column = x + 1 - q;
              if (row >= 0 && row < s->h && column >= 0 && column < s->w)
                sum += work[((line + 1 - p) * s->w + column) * width + (p * 3 + q) * s->c + i];
            }
          dx[(line * s->w + x) * s->c + i] = sum;
        }
    }
  }
}
}
