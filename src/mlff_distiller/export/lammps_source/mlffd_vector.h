// Several doubles at once, by the vector extensions of GCC and Clang, and functions of them.

#ifndef MLFFD_VECTOR_H
#define MLFFD_VECTOR_H

namespace mlffd {

#if defined(MLFFD_WIDTH)    // for tests: the compiler makes do with narrower registers
constexpr int WIDTH = MLFFD_WIDTH;
#elif defined(__AVX512F__)
constexpr int WIDTH = 8;
#elif defined(__AVX__)
constexpr int WIDTH = 4;
#else
constexpr int WIDTH = 2;
#endif

typedef double Vec __attribute__((vector_size(8 * WIDTH)));
typedef long long Bits __attribute__((vector_size(8 * WIDTH)));

inline Vec all(double value) { return Vec{} + value; }

/// yes where mask is set, no elsewhere.
inline Vec choose(Bits mask, Vec yes, Vec no) { return mask ? yes : no; }

inline double sum(Vec v)
{
  if constexpr (WIDTH == 2) return v[0] + v[1];
  double total = 0.0;
  for (int lane = 0; lane < WIDTH; lane += 4)
    total += (v[lane] + v[lane + 2]) + (v[lane + 1] + v[lane + 3]);
  return total;
}

inline Vec sqrt(Vec v)
{
  Vec root;
  for (int lane = 0; lane < WIDTH; lane++) root[lane] = __builtin_sqrt(v[lane]);
  return root;
}

/// sin(y) for 0 <= y <= pi/2: the Taylor series, complete in double precision there.
inline Vec sine(Vec y)
{
  const Vec z = y * y;
  Vec p = all(1.9572941063391263e-20);    // 1/21!
  p = p * z - 8.2206352466243295e-18;
  p = p * z + 2.8114572543455206e-15;
  p = p * z - 7.6471637318198164e-13;
  p = p * z + 1.6059043836821613e-10;
  p = p * z - 2.5052108385441720e-08;
  p = p * z + 2.7557319223985893e-06;
  p = p * z - 1.9841269841269841e-04;
  p = p * z + 8.3333333333333332e-03;
  p = p * z - 1.6666666666666666e-01;
  return y + y * z * p;
}

/// exp(x) for |x| <= 700.
inline Vec exponential(Vec x)
{
  const double shift = 6755399441055744.0;    // 1.5 * 2^52: leaves a whole number in the low bits
  const Vec shifted = x * 1.4426950408889634 + shift;
  const Vec n = shifted - shift;
  const Vec y = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  Vec p = all(1.6059043836821613e-10);    // 1/13!
  p = p * y + 2.0876756987868100e-09;
  p = p * y + 2.5052108385441720e-08;
  p = p * y + 2.7557319223985888e-07;
  p = p * y + 2.7557319223985893e-06;
  p = p * y + 2.4801587301587302e-05;
  p = p * y + 1.9841269841269841e-04;
  p = p * y + 1.3888888888888889e-03;
  p = p * y + 8.3333333333333332e-03;
  p = p * y + 4.1666666666666664e-02;
  p = p * y + 1.6666666666666666e-01;
  p = p * y + 0.5;
  p = p * y + 1.0;
  p = p * y + 1.0;
  return (Vec) ((Bits) p + ((Bits) shifted << 52));
}

inline Vec tanh(Vec x)
{
  x = choose(x > 20.0, all(20.0), choose(x < -20.0, all(-20.0), x));    // tanh(20) rounds to 1
  return 1.0 - 2.0 / (exponential(2.0 * x) + 1.0);
}

}    // namespace mlffd

#endif
