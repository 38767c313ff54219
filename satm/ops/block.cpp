// Instance norm, activation and pooling with their first and second derivatives, on maps [n][h][w][c].
//
// The formulas and names are those of block.py. The norm's set is one channel of one image: it stays in the processor's
// cache from the pass of sums to the pass of values. Channels are handled side by side, as many as 64 bytes hold. Sums
// over a set are sums of the sums of rows, so that their rounding grows with the height and not with the area. The
// activation is z where z > 0, else slope * z: slope 0 is ReLU, 1 none.
//
// Compiled with NUMBER, float or double, and POOL, 0: none, 1: average, 2: maximum, over windows of 2 x 2. Nothing is
// included but the C library, so that compiling takes a second.

#include <math.h>
#include <string.h>

#define INLINE inline __attribute__((always_inline))

namespace {

struct Shape {
  long n, h, w, c;  // images, height, width, channels
  double eps, slope;
};

typedef NUMBER Vec __attribute__((vector_size(64)));
const long LANES = 64 / sizeof(NUMBER);

INLINE Vec load(const NUMBER *from, long lanes) {
  Vec v = {};
  memcpy(&v, from, lanes == LANES ? sizeof v : lanes * sizeof(NUMBER));
  return v;
}

INLINE void store(NUMBER *to, Vec v, long lanes) {
  memcpy(to, &v, lanes == LANES ? sizeof v : lanes * sizeof(NUMBER));
}

// An element of a window of pooling; `share` is its part in the result.
struct Element {
  long at;  // its place in the maps
  Vec xh, z, slope, share;
};

// One image and `lanes` of its channels.
struct Set {
  const NUMBER *x;
  long h, w, c, lanes;
  Vec scale, shift, slope, mean, r;

  // Find the elements of the window in row i and column j and return their number. An incomplete window, at an odd last
  // row or column, has no part in the result.
  template <bool COMPLETE> INLINE long window(long i, long j, Element *e) const {
    const long side = POOL ? 2 : 1;
    const long rows = COMPLETE || h - side * i >= side ? side : 1, columns = COMPLETE || w - side * j >= side ? side : 1;
    long count = 0;
    for (long p = 0; p < rows; p++)
      for (long q = 0; q < columns; q++, count++) {
        Element &one = e[count];
        one.at = ((side * i + p) * w + side * j + q) * c;
        one.xh = (load(x + one.at, lanes) - mean) * r;
        one.z = one.xh * scale + shift;
        one.slope = one.z > 0 ? Vec{} + 1 : slope;
        one.share = Vec{} + NUMBER(!COMPLETE ? 0 : POOL == 1 ? 0.25 : 1);
      }
    if (COMPLETE && POOL == 2) {  // the first of the largest
      Vec most = e[0].z, left = Vec{} + 1;
      for (long k = 1; k < 4; k++) most = e[k].z > most ? e[k].z : most;
      for (long k = 0; k < 4; k++) {
        e[k].share = e[k].z == most ? left : Vec{};
        left -= e[k].share;
      }
    }
    return count;
  }

  // Call `body(elements, their number, place in the pooled maps or -1 for an incomplete window)` for each window, and
  // `after()` at the end of each row.
  template <class Body, class After> INLINE void windows(Body body, After after) const {
    const long rows = POOL ? h / 2 : h, columns = POOL ? w / 2 : w;
    Element e[4];
    for (long i = 0; i < rows; i++) {
      for (long j = 0; j < columns; j++) {
        window<true>(i, j, e);
        body(e, POOL ? 4 : 1, (i * columns + j) * c);
      }
      after();
    }
    if (!POOL || (h % 2 == 0 && w % 2 == 0)) return;
    for (long i = 0; 2 * i < h; i++) {
      for (long j = i < rows ? columns : 0; 2 * j < w; j++) {
        const long count = window<false>(i, j, e);
        body(e, count, -1);
      }
      after();
    }
  }

  template <class Value> INLINE Vec average(Value value) const {
    Vec total = {};
    for (long i = 0; i < h; i++) {
      Vec row = {};
      for (long j = 0; j < w; j++) row += value(load(x + (i * w + j) * c, lanes));
      total += row;
    }
    return total / NUMBER(h * w);
  }

  INLINE void forward(NUMBER *y, NUMBER *to_mean, NUMBER *to_r, double eps) {
    mean = average([](Vec v) __attribute__((always_inline)) { return v; });
    const Vec m = mean, v = average([m](Vec v) __attribute__((always_inline)) { return (v - m) * (v - m); });
    for (long k = 0; k < LANES; k++) r[k] = 1 / sqrt(v[k] + eps) + 0 * v[k];  // a variance beyond all numbers gives NaN, not 0
    store(to_mean, mean, lanes);
    store(to_r, r, lanes);
    windows(
        [&](const Element *e, long count, long out) __attribute__((always_inline)) {
          if (out < 0) return;
          Vec pooled = {}, any = {};
          for (long k = 0; k < count; k++) {
            pooled += e[k].share * e[k].slope * e[k].z;
            any += e[k].z;
          }
          store(y + out, POOL == 2 ? pooled + 0 * any : pooled, lanes);  // a NaN is not the largest, but must not be lost
        },
        []() {});
  }

  // dx, and the means of g and g xh over the set.
  INLINE void first(const NUMBER *dy, NUMBER *dx, NUMBER *to_g, NUMBER *to_gx) const {
    const NUMBER area = h * w;
    Vec g = {}, gx = {}, row_g = {}, row_gx = {};
    windows(
        [&](const Element *e, long count, long out) __attribute__((always_inline)) {
          if (out < 0) return;
          const Vec d = load(dy + out, lanes);
          for (long k = 0; k < count; k++) {
            const Vec each = e[k].slope * e[k].share * d;
            row_g += each;
            row_gx += each * e[k].xh;
          }
        },
        [&]() __attribute__((always_inline)) {
          g += row_g;
          gx += row_gx;
          row_g = row_gx = Vec{};
        });
    g /= area;
    gx /= area;
    store(to_g, g, lanes);
    store(to_gx, gx, lanes);
    const Vec rw = r * scale;
    windows(
        [&](const Element *e, long count, long out) __attribute__((always_inline)) {
          const Vec d = out < 0 ? Vec{} : load(dy + out, lanes);
          for (long k = 0; k < count; k++)
            store(dx + e[k].at, rw * (e[k].slope * e[k].share * d - g - e[k].xh * gx), lanes);
        },
        []() {});
  }

  // The gradients with respect to x and dy, and this set's part of that with respect to the scale.
  INLINE void second(const NUMBER *dy, Vec g, Vec gx, const NUMBER *a, Vec cw, Vec cb, NUMBER *grad_x, NUMBER *grad_dy,
                     NUMBER *grad_w) const {
    const NUMBER area = h * w;
    const Vec rw = r * scale;
    Vec ma = {}, max = {}, mag = {}, row_a = {}, row_ax = {}, row_ag = {};
    windows(
        [&](const Element *e, long count, long out) __attribute__((always_inline)) {
          const Vec d = out < 0 ? Vec{} : load(dy + out, lanes);
          for (long k = 0; k < count; k++) {
            const Vec each = load(a + e[k].at, lanes);
            row_a += each;
            row_ax += each * e[k].xh;
            row_ag += each * (e[k].slope * e[k].share * d);
          }
        },
        [&]() __attribute__((always_inline)) {
          ma += row_a;
          max += row_ax;
          mag += row_ag;
          row_a = row_ax = row_ag = Vec{};
        });
    ma /= area;
    max /= area;
    mag /= area;
    const Vec mk = cw * g - rw * (ma * gx + g * max), mkx = cw * gx - 2 * rw * max * gx;
    const Vec spread = r * rw * (mag - ma * g - max * gx);
    store(grad_w, area * r * (mag - g * ma - gx * max), lanes);
    windows(
        [&](const Element *e, long count, long out) __attribute__((always_inline)) {
          const Vec d = out < 0 ? Vec{} : load(dy + out, lanes);
          Vec pooled = {};
          for (long k = 0; k < count; k++) {
            const Vec xh = e[k].xh, each = load(a + e[k].at, lanes), slope = e[k].slope * e[k].share, h = slope * d;
            pooled += slope * (rw * (each - ma - xh * max) + cw * xh + cb);
            store(grad_x + e[k].at, r * (cw * h - rw * (each * gx + h * max) - mk - xh * mkx) - spread * xh, lanes);
          }
          if (out >= 0) store(grad_dy + out, pooled, lanes);
        },
        []() {});
  }
};

// Where a set lies in maps, in pooled maps, in means `[n][c]` and in the scale `[c]`.
struct Place {
  long in, out, mean, channel, lanes;
};

template <class Body> INLINE void one_set(const Shape &s, const NUMBER *x, const NUMBER *w, const NUMBER *b, Place p, Body body) {
  Set set = {x + p.in, s.h, s.w, s.c, p.lanes, load(w + p.channel, p.lanes), load(b + p.channel, p.lanes), Vec{} + NUMBER(s.slope)};
  body(set, p);
}

// Call `body(set, place)` for all sets, on all threads.
template <class Body> INLINE void sets(const Shape &s, const NUMBER *x, const NUMBER *w, const NUMBER *b, Body body) {
  const long count = LANES, blocks = (s.c + count - 1) / count;
  const long area = s.h * s.w, pooled = POOL ? (s.h / 2) * (s.w / 2) : area;
#pragma omp parallel for
  for (long t = 0; t < s.n * blocks; t++) {
    const long n = t / blocks, c = t % blocks * count;
    Place place = {n * area * s.c + c, n * pooled * s.c + c, n * s.c + c, c, count};
    if (s.c - c >= count) {
      one_set(s, x, w, b, place, body);
    } else {
      place.lanes = s.c - c;
      one_set(s, x, w, b, place, body);
    }
  }
}

}  // namespace

extern "C" {

void forward(const Shape *s, const NUMBER *x, const NUMBER *w, const NUMBER *b, NUMBER *y, NUMBER *mean, NUMBER *r) {
  sets(*s, x, w, b, [&](Set &set, Place p) __attribute__((always_inline)) {
    set.forward(y + p.out, mean + p.mean, r + p.mean, s->eps);
  });
}

void first(const Shape *s, const NUMBER *x, const NUMBER *w, const NUMBER *b, const NUMBER *mean, const NUMBER *r,
           const NUMBER *dy, NUMBER *dx, NUMBER *g, NUMBER *gx) {
  sets(*s, x, w, b, [&](Set &set, Place p) __attribute__((always_inline)) {
    set.mean = load(mean + p.mean, p.lanes);
    set.r = load(r + p.mean, p.lanes);
    set.first(dy + p.out, dx + p.in, g + p.mean, gx + p.mean);
  });
}

void second(const Shape *s, const NUMBER *x, const NUMBER *w, const NUMBER *b, const NUMBER *mean, const NUMBER *r,
            const NUMBER *dy, const NUMBER *g, const NUMBER *gx, const NUMBER *a, const NUMBER *cw, const NUMBER *cb,
            NUMBER *grad_x, NUMBER *grad_dy, NUMBER *grad_w) {
  sets(*s, x, w, b, [&](Set &set, Place p) __attribute__((always_inline)) {
    set.mean = load(mean + p.mean, p.lanes);
    set.r = load(r + p.mean, p.lanes);
    set.second(dy + p.out, load(g + p.mean, p.lanes), load(gx + p.mean, p.lanes), a + p.in,
               load(cw + p.channel, p.lanes), load(cb + p.channel, p.lanes), grad_x + p.in, grad_dy + p.out,
               grad_w + p.mean);
  });
}
}
