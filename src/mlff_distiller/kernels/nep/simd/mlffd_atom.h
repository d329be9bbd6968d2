// The neuroevolution potential NEP4 of one model's sizes: U_i and dU_i/dr_ij of an atom.
//
// Neighbours lie in the lanes of vectors. Before it is included: namespace mlffd with Real, N_RADIAL,
// N_ANGULAR (numbers of n), K_RADIAL, K_ANGULAR (numbers of k), L_MAX, HAS_Q222, HAS_Q1111, HAS_ZBL,
// NEURONS, NEURONS_PADDED and N_STEP. The equations are in the README.md of the folder above, the specification is
// reference.py there.

#ifndef MLFFD_ATOM_H
#define MLFFD_ATOM_H

#include "mlffd_vector.h"

namespace mlffd {

constexpr int N_LM = (L_MAX + 1) * (L_MAX + 1) - 1;    // components b_lm, l = 1..L_MAX
constexpr int N_INVARIANTS = L_MAX + HAS_Q222 + HAS_Q1111;
constexpr int N_DESCRIPTORS = N_RADIAL + N_ANGULAR * N_INVARIANTS;

// Loops run over blocks of N_STEP times LM_STEP sums: as many as there are registers. What a last
// block has too much is zero.
constexpr int LM_STEP = N_LM % 4 ? 3 : 4;
constexpr int N_PADDED = rounded_up(N_ANGULAR, N_STEP);
constexpr int ANGULAR_VECTORS = vectors(N_PADDED);
constexpr int NEURON_BLOCKS = (vectors(NEURONS) + 13) / 14;
constexpr int NEURON_STEP = (vectors(NEURONS) + NEURON_BLOCKS - 1) / NEURON_BLOCKS;
constexpr int NEURON_VECTORS = NEURON_BLOCKS * NEURON_STEP;

constexpr Real PI = 3.14159265358979323846;

// C_lm of the three-body invariants, times 2 for m > 0; l = 1..4.
constexpr Real C3B[4][5] = {
    {0.238732414637843, 2 * 0.119366207318922},
    {0.099471839432435, 2 * 0.596831036594608, 2 * 0.149207759148652},
    {0.139260575205408, 2 * 0.104445431404056, 2 * 1.044454314040563, 2 * 0.174075719006761},
    {0.011190581936149, 2 * 0.223811638722978, 2 * 0.111905819361489, 2 * 1.566681471060845,
     2 * 0.195835183882606}};
constexpr Real C4B[5] = {-0.007499480826664, -0.134990654879954, 0.067495327439977,
                         0.404971964639861, -0.809943929279723};
constexpr Real C5B[3] = {0.026596810706114, 0.053193621412227, 0.026596810706114};

/// s_nlm, or dU/ds_nlm; the lanes are n.
typedef Vec Density[N_LM][ANGULAR_VECTORS];

/// What does not depend on which of the two is the centre.
struct Radii {
  Real radial, angular;                             // cutoffs
  Real zbl_inner, zbl_outer, zbl_a[4], zbl_b[4];    // a times K Z_i Z_j / 2; b in 1/Angstrom
};

/// Parameters of a pair of types.
struct Pair : Radii {
  Real c_radial[N_RADIAL][K_RADIAL], c_angular[N_PADDED][K_ANGULAR];    // halves
  Real sum_radial[N_RADIAL], sum_angular[N_PADDED];                     // over k
};

/// Parameters of a type; rows end with zeros.
struct Network {
  Real w0[N_DESCRIPTORS][NEURONS_PADDED];    // scaler included
  Real b0[NEURONS_PADDED], w1[NEURONS_PADDED];
};
static_assert(NEURON_VECTORS * WIDTH <= NEURONS_PADDED, "rows of networks are too short");

/// Neighbours of one type in whole vectors; the first of them hold all within the angular cutoff.
struct Group {
  int type, begin, angular_end, end;    // of vectors
};

/// What a vector of neighbours keeps between the passes.
struct Lanes {
  Vec g[3];            // dU_i/dr_ij
  Vec x, y, z, r;      // r_ij, then its unit vector and length
  Vec fc, fc_slope;    // radial cutoff function
};

struct AngularLanes {
  Vec g[N_PADDED], slope[N_PADDED];    // g_n(r) and its derivative
  Vec b[N_LM];
};

/// Neighbours of an atom within the larger cutoff, and room for what is found for them.
struct Around {
  int n;
  Real *x, *y, *z, *rsq;     // r_ij = r_j - r_i, in Angstrom
  int *type;
  int *place;                // of each neighbour, its lane among all
  int *counts;               // 2 n_types
  Group *groups;             // n_types
  Lanes *lanes;              // n / WIDTH + n_types
  AngularLanes *angular;     // as many
  int *within;               // of each of `angular`, its vector in `lanes`
  int n_groups, n_within;
};

constexpr int lm(int l, int m) { return m ? l * l + 2 * m - 2 : l * l - 1; }    // Im follows Re

/// P_lm(z) and its derivative at [l - 1][m].
struct Legendre {
  Vec p[4][5], slope[4][5];

  explicit Legendre(Vec z)
  {
    const Vec zz = z * z;
    for (int l = 1; l <= L_MAX; l++) {
      p[l - 1][l] = all(1);
      slope[l - 1][l] = all(0);
      p[l - 1][l - 1] = z;
      slope[l - 1][l - 1] = all(1);
    }
    if constexpr (L_MAX >= 2) set(2, 0, Real(3) * zz - Real(1), Real(6) * z);
    if constexpr (L_MAX >= 3) {
      set(3, 0, (Real(5) * zz - Real(3)) * z, Real(15) * zz - Real(3));
      set(3, 1, Real(5) * zz - Real(1), Real(10) * z);
    }
    if constexpr (L_MAX >= 4) {
      set(4, 0, (Real(35) * zz - Real(30)) * zz + Real(3), (Real(140) * zz - Real(60)) * z);
      set(4, 1, (Real(7) * zz - Real(3)) * z, Real(21) * zz - Real(3));
      set(4, 2, Real(7) * zz - Real(1), Real(14) * z);
    }
  }
  void set(int l, int m, Vec value, Vec derivative)
  {
    p[l - 1][m] = value;
    slope[l - 1][m] = derivative;
  }
};

/// Re and Im of (x + iy)^m.
struct Plane {
  Vec re[L_MAX + 1], im[L_MAX + 1];

  Plane(Vec x, Vec y)
  {
    re[0] = all(1);
    im[0] = all(0);
    for (int m = 1; m <= L_MAX; m++) {
      re[m] = re[m - 1] * x - im[m - 1] * y;
      im[m] = re[m - 1] * y + im[m - 1] * x;
    }
  }
};

/// fc(r), its derivative, the argument of the Chebyshev polynomials and its derivative.
struct Cutoff {
  Vec fc, slope, x, x_slope;

  Cutoff(Vec r, Real cutoff)
  {
    const Real inverse = Real(1) / cutoff;
    Vec u = r * inverse;
    u = choose(u > Real(1), all(1), u);    // there fc and its derivative are zero
    const Vec s = sine(PI / 2 * u), c = sine(PI / 2 * (Real(1) - u));
    fc = c * c;
    slope = -PI * inverse * s * c;
    x = Real(2) * (u - Real(1)) * (u - Real(1)) - Real(1);
    x_slope = Real(4) * inverse * (u - Real(1));
  }
};

/// T_k(x) and dT_k/dx, k < K.
template <int K> struct Chebyshev {
  Vec t[K], slope[K];

  explicit Chebyshev(Vec x)
  {
    t[0] = all(1);
    slope[0] = all(0);
    if constexpr (K > 1) {
      t[1] = x;
      slope[1] = all(1);
    }
    for (int k = 2; k < K; k++) {
      t[k] = Real(2) * x * t[k - 1] - t[k - 2];
      slope[k] = Real(2) * t[k - 1] + Real(2) * x * slope[k - 1] - slope[k - 2];
    }
  }
};

/// Invariants of s, the descriptors after the radial ones. Writes WIDTH numbers too many.
inline void invariants(const Density &s, Real *q)
{
  Vec found[N_INVARIANTS][ANGULAR_VECTORS];
  for (int v = 0; v < ANGULAR_VECTORS; v++) {
    for (int l = 1; l <= L_MAX; l++) {
      Vec total = all(0);
      for (int k = l * l - 1; k < (l + 1) * (l + 1) - 1; k++)
        total += C3B[l - 1][(k - l * l + 2) / 2] * s[k][v] * s[k][v];
      found[l - 1][v] = total;
    }
    if constexpr (HAS_Q222) {
      const Vec a = s[3][v], b = s[4][v], c = s[5][v], d = s[6][v], e = s[7][v];
      found[L_MAX][v] = a * (C4B[0] * a * a + C4B[1] * (b * b + c * c) + C4B[2] * (d * d + e * e)) +
          C4B[3] * d * (c * c - b * b) + C4B[4] * b * c * e;
    }
    if constexpr (HAS_Q1111) {
      const Vec aa = s[0][v] * s[0][v], p = s[1][v] * s[1][v] + s[2][v] * s[2][v];
      found[L_MAX + HAS_Q222][v] = aa * (C5B[0] * aa + C5B[1] * p) + C5B[2] * p * p;
    }
  }
  // In this order what a vector has too much is overwritten by the next.
  for (int k = 0; k < N_INVARIANTS; k++)
    for (int v = 0; v < vectors(N_ANGULAR); v++)
      __builtin_memcpy(q + k * N_ANGULAR + v * WIDTH, &found[k][v], sizeof(Vec));
}

/// dU/ds from dU/dq, in place of s. Reads WIDTH numbers too many, for which s is zero.
inline void invariant_slopes(Density &s, const Real *dq)
{
  for (int v = 0; v < vectors(N_ANGULAR); v++) {
    Vec weight[N_INVARIANTS];
    for (int k = 0; k < N_INVARIANTS; k++) weight[k] = load(dq + k * N_ANGULAR + v * WIDTH);
    Vec slope[N_LM];
    for (int l = 1; l <= L_MAX; l++)
      for (int k = l * l - 1; k < (l + 1) * (l + 1) - 1; k++)
        slope[k] = 2 * C3B[l - 1][(k - l * l + 2) / 2] * weight[l - 1] * s[k][v];
    if constexpr (HAS_Q222) {
      const Vec w = weight[L_MAX];
      const Vec a = s[3][v], b = s[4][v], c = s[5][v], d = s[6][v], e = s[7][v];
      const Vec bb = b * b, cc = c * c;
      slope[3] += w * (3 * C4B[0] * a * a + C4B[1] * (bb + cc) + C4B[2] * (d * d + e * e));
      slope[4] += w * (2 * C4B[1] * a * b - 2 * C4B[3] * d * b + C4B[4] * c * e);
      slope[5] += w * (2 * C4B[1] * a * c + 2 * C4B[3] * d * c + C4B[4] * b * e);
      slope[6] += w * (2 * C4B[2] * a * d + C4B[3] * (cc - bb));
      slope[7] += w * (2 * C4B[2] * a * e + C4B[4] * b * c);
    }
    if constexpr (HAS_Q1111) {
      const Vec w = weight[L_MAX + HAS_Q222];
      const Vec a = s[0][v], b = s[1][v], c = s[2][v];
      const Vec p = b * b + c * c, common = 2 * C5B[1] * a * a + 4 * C5B[2] * p;
      slope[0] += w * a * (4 * C5B[0] * a * a + 2 * C5B[1] * p);
      slope[1] += w * common * b;
      slope[2] += w * common * c;
    }
    for (int k = 0; k < N_LM; k++) s[k][v] = slope[k];
  }
}

/// Puts neighbours into vectors by type, those within the angular cutoff first.
inline void arrange(Around &around, const Pair *pairs, int n_types)
{
  int *const counts = around.counts;    // by type: within the angular cutoff, and beyond
  for (int k = 0; k < 2 * n_types; k++) counts[k] = 0;
  for (int k = 0; k < around.n; k++) {
    const Real angular = pairs[around.type[k]].angular;
    around.place[k] = 2 * around.type[k] + (around.rsq[k] >= angular * angular);
    counts[around.place[k]]++;
  }
  around.n_groups = 0;
  int end = 0;
  for (int u = 0; u < n_types; u++) {
    const int within = counts[2 * u], beyond = counts[2 * u + 1];
    if (within + beyond == 0) continue;
    counts[2 * u] = end * WIDTH;
    counts[2 * u + 1] = end * WIDTH + within;
    const int begin = end;
    end += vectors(within + beyond);
    around.groups[around.n_groups++] = {u, begin, begin + vectors(within), end};
    // The last vector may have places to spare: those are at the cutoff, where nothing is felt.
    Lanes &last = around.lanes[end - 1];
    last.x = all(pairs[u].radial > pairs[u].angular ? pairs[u].radial : pairs[u].angular);
    last.y = last.z = all(0);
  }
  for (int k = 0; k < around.n; k++) {
    const unsigned place = around.place[k] = counts[around.place[k]]++;
    Lanes &lanes = around.lanes[place / WIDTH];
    lane(lanes.x, place) = around.x[k];
    lane(lanes.y, place) = around.y[k];
    lane(lanes.z, place) = around.z[k];
  }
}

inline void radial_sums(Around &around, const Pair &pair, const Group &group, Real *q)
{
  Vec sums[K_RADIAL] = {};
  for (int v = group.begin; v < group.end; v++) {
    Lanes &lanes = around.lanes[v];
    lanes.r = sqrt(lanes.x * lanes.x + lanes.y * lanes.y + lanes.z * lanes.z);
    const Vec inverse = Real(1) / lanes.r;
    lanes.x *= inverse;
    lanes.y *= inverse;
    lanes.z *= inverse;
    const Cutoff cutoff(lanes.r, pair.radial);
    lanes.fc = cutoff.fc;
    lanes.fc_slope = cutoff.slope;
    Vec last = cutoff.fc, now = cutoff.fc * cutoff.x;
    const Vec twice = Real(2) * cutoff.x;
    sums[0] += last;
#pragma GCC unroll 32
    for (int k = 1; k < K_RADIAL; k++) {
      sums[k] += now;
      const Vec next = twice * now - last;
      last = now;
      now = next;
    }
  }
  Real f[K_RADIAL];
  for (int k = 0; k < K_RADIAL; k++) f[k] = sum(sums[k]);
  for (int n = 0; n < N_RADIAL; n++) {
    Real total = pair.sum_radial[n] * f[0];
    for (int k = 0; k < K_RADIAL; k++) total += pair.c_radial[n][k] * f[k];
    q[n] += total;
  }
}

/// Begins dU_i/dr_ij with the part of the radial descriptors.
inline void radial_slopes(Around &around, const Pair &pair, const Group &group, const Real *dq)
{
  Real weight[K_RADIAL] = {}, constant = 0;
  for (int n = 0; n < N_RADIAL; n++) {
    constant += dq[n] * pair.sum_radial[n];
    for (int k = 0; k < K_RADIAL; k++) weight[k] += dq[n] * pair.c_radial[n][k];
  }
  const Real inverse = 1 / pair.radial;
  for (int v = group.begin; v < group.end; v++) {
    Lanes &lanes = around.lanes[v];
    Vec u = lanes.r * inverse - Real(1);
    u = choose(u > Real(0), all(0), u);
    const Vec x = Real(2) * u * u - Real(1), twice = Real(2) * x;
    Vec last = all(1), now = x, last_slope = all(0), now_slope = all(1);
    Vec value = all(constant + weight[0]), slope = all(0);
#pragma GCC unroll 32
    for (int k = 1; k < K_RADIAL; k++) {
      value += weight[k] * now;
      slope += weight[k] * now_slope;
      const Vec next = twice * now - last;
      const Vec next_slope = Real(2) * now + twice * now_slope - last_slope;
      last = now;
      now = next;
      last_slope = now_slope;
      now_slope = next_slope;
    }
    const Vec along = value * lanes.fc_slope + 4 * inverse * u * slope * lanes.fc;
    lanes.g[0] = along * lanes.x;
    lanes.g[1] = along * lanes.y;
    lanes.g[2] = along * lanes.z;
  }
}

inline void angular_functions(Around &around, const Pair &pair, const Group &group)
{
  for (int v = group.begin; v < group.angular_end; v++) {
    const Lanes &lanes = around.lanes[v];
    AngularLanes &own = around.angular[around.n_within];
    around.within[around.n_within++] = v;
    const Cutoff cutoff(lanes.r, pair.angular);
    const Chebyshev<K_ANGULAR> chebyshev(cutoff.x);
    const Vec turn = cutoff.fc * cutoff.x_slope;
    for (int first = 0; first < N_PADDED; first += N_STEP) {
      Vec value[N_STEP], slope[N_STEP];
#pragma GCC unroll 4
      for (int n = 0; n < N_STEP; n++) {
        value[n] = all(pair.sum_angular[first + n] + pair.c_angular[first + n][0]);
        slope[n] = all(0);
      }
#pragma GCC unroll 32
      for (int k = 1; k < K_ANGULAR; k++)
#pragma GCC unroll 4
        for (int n = 0; n < N_STEP; n++) {
          value[n] += pair.c_angular[first + n][k] * chebyshev.t[k];
          slope[n] += pair.c_angular[first + n][k] * chebyshev.slope[k];
        }
#pragma GCC unroll 4
      for (int n = 0; n < N_STEP; n++) {
        own.g[first + n] = value[n] * cutoff.fc;
        own.slope[first + n] = value[n] * cutoff.slope + slope[n] * turn;
      }
    }
    const Legendre legendre(lanes.z);
    const Plane plane(lanes.x, lanes.y);
#pragma GCC unroll 4
    for (int l = 1; l <= L_MAX; l++)
#pragma GCC unroll 5
      for (int m = 0; m <= l; m++) {
        own.b[lm(l, m)] = legendre.p[l - 1][m] * plane.re[m];
        if (m) own.b[lm(l, m) + 1] = legendre.p[l - 1][m] * plane.im[m];
      }
  }
}

/// s_nlm, the sum over all neighbours of g_n b_lm.
inline void density(const Around &around, Density &s)
{
  const AngularLanes *const begin = around.angular, *const end = begin + around.n_within;
  for (int first = 0; first < N_PADDED; first += N_STEP)
    for (int row = 0; row < N_LM; row += LM_STEP) {
      Vec sums[LM_STEP][N_STEP] = {};
      for (const AngularLanes *own = begin; own < end; own++)
#pragma GCC unroll 4
        for (int k = 0; k < LM_STEP; k++)
#pragma GCC unroll 4
          for (int n = 0; n < N_STEP; n++) sums[k][n] += own->g[first + n] * own->b[row + k];
#pragma GCC unroll 4
      for (int k = 0; k < LM_STEP; k++)
#pragma GCC unroll 4
        for (int n = 0; n < N_STEP; n++)
          lane(s[row + k][(first + n) / WIDTH], first + n) = sum(sums[k][n]);
    }
}

/// Adds the part of the angular descriptors to dU_i/dr_ij.
inline void angular_slopes(Around &around, const Density &ds)
{
  for (int at = 0; at < around.n_within; at++) {
    const AngularLanes &own = around.angular[at];
    Lanes &lanes = around.lanes[around.within[at]];
    Vec along[N_LM], turn[N_LM];    // sums over n of dU/ds_nlm times g_n' and g_n
    for (int row = 0; row < N_LM; row += LM_STEP) {
      Vec first[LM_STEP] = {}, second[LM_STEP] = {};
#pragma GCC unroll 20
      for (int n = 0; n < N_ANGULAR; n++)
#pragma GCC unroll 4
        for (int k = 0; k < LM_STEP; k++) {
          const Real weight = reinterpret_cast<const Real *>(ds[row + k])[n];
          first[k] += weight * own.slope[n];
          second[k] += weight * own.g[n];
        }
#pragma GCC unroll 4
      for (int k = 0; k < LM_STEP; k++) {
        along[row + k] = first[k];
        turn[row + k] = second[k];
      }
    }
    const Legendre legendre(lanes.z);
    const Plane plane(lanes.x, lanes.y);
    Vec radial = all(0), tx = all(0), ty = all(0), tz = all(0);
#pragma GCC unroll 5
    for (int m = 0; m <= L_MAX; m++) {
      Vec radial_re = all(0), radial_im = all(0), re = all(0), im = all(0);
      Vec re_slope = all(0), im_slope = all(0);
#pragma GCC unroll 4
      for (int l = m ? m : 1; l <= L_MAX; l++) {
        const Vec p = legendre.p[l - 1][m], slope = legendre.slope[l - 1][m];
        const int k = lm(l, m);
        radial_re += along[k] * p;
        re += turn[k] * p;
        re_slope += turn[k] * slope;
        if (m) {
          radial_im += along[k + 1] * p;
          im += turn[k + 1] * p;
          im_slope += turn[k + 1] * slope;
        }
      }
      radial += radial_re * plane.re[m] + radial_im * plane.im[m];
      tz += re_slope * plane.re[m] + im_slope * plane.im[m];
      if (m) {
        const Real order = m;
        tx += order * (re * plane.re[m - 1] + im * plane.im[m - 1]);
        ty += order * (im * plane.re[m - 1] - re * plane.im[m - 1]);
      }
    }
    // The unit vector changes across r_ij only.
    const Vec inverse = Real(1) / lanes.r;
    radial -= (tx * lanes.x + ty * lanes.y + tz * lanes.z) * inverse;
    lanes.g[0] += radial * lanes.x + tx * inverse;
    lanes.g[1] += radial * lanes.y + ty * inverse;
    lanes.g[2] += radial * lanes.z + tz * inverse;
  }
}

/// U of the descriptors, without the constant b1, and dU/dq.
inline Real network(const Network &own, const Real *q, Real *dq)
{
  Vec energy = all(0), push[NEURON_VECTORS];
  for (int begin = 0; begin < NEURON_VECTORS; begin += NEURON_STEP) {
    Vec hidden[NEURON_STEP];
    for (int m = 0; m < NEURON_STEP; m++) hidden[m] = -load(own.b0 + (begin + m) * WIDTH);
    for (int d = 0; d < N_DESCRIPTORS; d++)
#pragma GCC unroll 16
      for (int m = 0; m < NEURON_STEP; m++)
        hidden[m] += q[d] * load(own.w0[d] + (begin + m) * WIDTH);
    for (int m = 0; m < NEURON_STEP; m++) {
      const Vec active = tanh(hidden[m]), w1 = load(own.w1 + (begin + m) * WIDTH);
      energy += w1 * active;
      push[begin + m] = w1 * (Real(1) - active * active);
    }
  }
  for (int d = 0; d < N_DESCRIPTORS; d++) {
    Vec total = all(0);
#pragma GCC unroll 32
    for (int m = 0; m < NEURON_VECTORS; m++) total += push[m] * load(own.w0[d] + m * WIDTH);
    dq[d] = sum(total);
  }
  return sum(energy);
}

/// Half the screened nuclear repulsion of the atom's pairs; adds its gradients.
inline Real repulsion(Around &around, const Pair &pair, const Group &group)
{
  const Real inner = pair.zbl_inner, outer = pair.zbl_outer;
  const Real width = outer - inner > Real(1e-12) ? outer - inner : Real(1e-12), rate = PI / width;
  Vec energy = all(0);
  for (int v = group.begin; v < group.end; v++) {
    Lanes &lanes = around.lanes[v];
    const Bits near = lanes.r < outer;
    if (!any(near)) continue;
    Vec phi = all(0), slope = all(0);
    for (int term = 0; term < 4; term++) {
      const Vec part = pair.zbl_a[term] * exponential(-pair.zbl_b[term] * lanes.r);
      phi += part;
      slope -= pair.zbl_b[term] * part;
    }
    Vec x = (lanes.r - inner) * (1 / width);
    x = choose(x < Real(0), all(0), choose(x > Real(1), all(1), x));
    const Vec s = sine(PI / 2 * x), c = sine(PI / 2 * (Real(1) - x));
    const Vec fc = c * c, fc_slope = -rate * s * c, inverse = Real(1) / lanes.r;
    energy += choose(near, phi * fc * inverse, all(0));
    Vec along = (slope * fc + phi * fc_slope - phi * fc * inverse) * inverse;
    along = choose(near, along, all(0));
    lanes.g[0] += along * lanes.x;
    lanes.g[1] += along * lanes.y;
    lanes.g[2] += along * lanes.z;
  }
  return sum(energy);
}

/// Descriptors q of an atom, and the densities s that the angular ones are made of.
inline void descriptors(Around &around, const Pair *pairs, int n_types, Density &s, Real *q)
{
  arrange(around, pairs, n_types);
  around.n_within = 0;
  for (int k = 0; k < around.n_groups; k++) {
    const Group &group = around.groups[k];
    radial_sums(around, pairs[group.type], group, q);
    angular_functions(around, pairs[group.type], group);
  }
  density(around, s);
  invariants(s, q + N_RADIAL);
}

/// U_i in eV of an atom, less b1; dU_i/dr_ij in eV/Angstrom goes to the lanes of its neighbours.
/// `pairs` are those of the atom's type with each other.
inline Real atom(Around &around, const Pair *pairs, const Network &own, int n_types)
{
  Real q[N_DESCRIPTORS + WIDTH] = {}, dq[N_DESCRIPTORS + WIDTH] = {};
  Density s = {};
  descriptors(around, pairs, n_types, s, q);
  Real energy = network(own, q, dq);
  invariant_slopes(s, dq + N_RADIAL);
  for (int k = 0; k < around.n_groups; k++)
    radial_slopes(around, pairs[around.groups[k].type], around.groups[k], dq);
  angular_slopes(around, s);
  if constexpr (HAS_ZBL)
    for (int k = 0; k < around.n_groups; k++)
      energy += repulsion(around, pairs[around.groups[k].type], around.groups[k]);
  return energy;
}

}    // namespace mlffd

#endif
