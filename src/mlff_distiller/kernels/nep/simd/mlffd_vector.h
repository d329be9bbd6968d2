// Several numbers at once, by the vector extensions of GCC and Clang, and functions of them.
//
// Real is float or double; nothing else is needed, not even the standard library.

#ifndef MLFFD_VECTOR_H
#define MLFFD_VECTOR_H

namespace mlffd {

#if defined(MLFFD_BYTES)    // for tests: the compiler makes do with other registers
constexpr int BYTES = MLFFD_BYTES;
#elif defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

template <typename T> struct Integer;
template <> struct Integer<float> {
  typedef int type;
};
template <> struct Integer<double> {
  typedef long long type;
};

constexpr bool DOUBLE = sizeof(Real) == 8;
constexpr int WIDTH = BYTES / sizeof(Real);
constexpr int rounded_up(int n, int step) { return (n + step - 1) / step * step; }
constexpr int vectors(int n) { return rounded_up(n, WIDTH) / WIDTH; }

typedef Real Vec __attribute__((vector_size(BYTES)));
typedef Integer<Real>::type Bits __attribute__((vector_size(BYTES)));

inline Vec all(Real value) { return Vec{} + value; }

/// yes where mask is set, no elsewhere.
inline Vec choose(Bits mask, Vec yes, Vec no) { return mask ? yes : no; }

/// Of a vector in memory, the lane of a place among all.
inline Real &lane(Vec &v, unsigned place) { return reinterpret_cast<Real *>(&v)[place % WIDTH]; }

/// A vector that begins anywhere.
inline Vec load(const Real *from)
{
  Vec v;
  __builtin_memcpy(&v, from, sizeof(Vec));
  return v;
}

inline Real sum(Vec v)
{
  Real part[WIDTH];
  __builtin_memcpy(part, &v, sizeof(Vec));
  for (int half = WIDTH / 2; half > 0; half /= 2)
    for (int k = 0; k < half; k++) part[k] += part[k + half];
  return part[0];
}

inline bool any(Bits mask)
{
  Integer<Real>::type found = 0;
  for (int k = 0; k < WIDTH; k++) found |= mask[k];
  return found != 0;
}

inline Vec sqrt(Vec v)
{
  Vec root;
  for (int k = 0; k < WIDTH; k++)
    root[k] = DOUBLE ? __builtin_sqrt(v[k]) : __builtin_sqrtf((float) v[k]);
  return root;
}

/// The nearest whole number of each.
inline Vec rounded(Vec v)
{
  Vec whole;
  for (int k = 0; k < WIDTH; k++)
    whole[k] = DOUBLE ? __builtin_rint(v[k]) : __builtin_rintf((float) v[k]);
  return whole;
}

/// sin(y) for 0 <= y <= pi/2: the Taylor series, complete in either precision there.
inline Vec sine(Vec y)
{
  const Vec z = y * y;
  Vec p = all(-2.5052108385441720e-08);    // 1/11!
  if constexpr (DOUBLE) {
    p = all(1.9572941063391263e-20);    // 1/21!
    p = p * z - Real(8.2206352466243295e-18);
    p = p * z + Real(2.8114572543455206e-15);
    p = p * z - Real(7.6471637318198164e-13);
    p = p * z + Real(1.6059043836821613e-10);
    p = p * z - Real(2.5052108385441720e-08);
  }
  p = p * z + Real(2.7557319223985893e-06);
  p = p * z - Real(1.9841269841269841e-04);
  p = p * z + Real(8.3333333333333332e-03);
  p = p * z - Real(1.6666666666666666e-01);
  return y + y * z * p;
}

/// exp(x); x beyond +-80 (+-700 in double precision) counts as that.
inline Vec exponential(Vec x)
{
  const Real largest = DOUBLE ? 700 : 80;
  x = choose(x > largest, all(largest), choose(x < -largest, all(-largest), x));
  // Leaves a whole number in the low bits: 1.5 * 2^52, or 2^23.
  const Real shift = DOUBLE ? 6755399441055744.0 : 12582912.0;
  const Vec shifted = x * Real(1.4426950408889634) + shift;
  const Vec n = shifted - shift;
  const Real high = DOUBLE ? 6.93147180369123816490e-01 : 0.693359375;
  const Real low = DOUBLE ? 1.90821492927058770002e-10 : -2.12194440054690582e-4;
  const Vec y = (x - n * high) - n * low;
  Vec p = all(1.9841269841269841e-04);    // 1/7!
  if constexpr (DOUBLE) {
    p = all(1.6059043836821613e-10);    // 1/13!
    p = p * y + Real(2.0876756987868100e-09);
    p = p * y + Real(2.5052108385441720e-08);
    p = p * y + Real(2.7557319223985888e-07);
    p = p * y + Real(2.7557319223985893e-06);
    p = p * y + Real(2.4801587301587302e-05);
    p = p * y + Real(1.9841269841269841e-04);
  }
  p = p * y + Real(1.3888888888888889e-03);
  p = p * y + Real(8.3333333333333332e-03);
  p = p * y + Real(4.1666666666666664e-02);
  p = p * y + Real(1.6666666666666666e-01);
  p = p * y + Real(0.5);
  p = p * y + Real(1.0);
  p = p * y + Real(1.0);
  return (Vec) ((Bits) p + ((Bits) shifted << (DOUBLE ? 52 : 23)));
}

inline Vec tanh(Vec x)
{
  x = choose(x > Real(20), all(20), choose(x < Real(-20), all(-20), x));    // tanh(20) rounds to 1
  return Real(1) - Real(2) / (exponential(Real(2) * x) + Real(1));
}

}    // namespace mlffd

#endif
