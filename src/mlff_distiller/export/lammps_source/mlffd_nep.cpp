#include "mlffd_nep.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mlffd {

namespace {

constexpr double PI = 3.14159265358979323846;

// C_lm of the three-body invariants, times 2 for m > 0; l = 1..4.
constexpr double C3B[4][5] = {
    {0.238732414637843, 2 * 0.119366207318922},
    {0.099471839432435, 2 * 0.596831036594608, 2 * 0.149207759148652},
    {0.139260575205408, 2 * 0.104445431404056, 2 * 1.044454314040563, 2 * 0.174075719006761},
    {0.011190581936149, 2 * 0.223811638722978, 2 * 0.111905819361489, 2 * 1.566681471060845,
     2 * 0.195835183882606}};
constexpr double C4B[5] = {-0.007499480826664, -0.134990654879954, 0.067495327439977,
                           0.404971964639861, -0.809943929279723};
constexpr double C5B[3] = {0.026596810706114, 0.053193621412227, 0.026596810706114};

/// Of a vector in memory, the lane of a place among all.
inline double &lane(Vec &v, unsigned place)
{
  return reinterpret_cast<double *>(&v)[place % WIDTH];
}

/// A vector that begins anywhere.
inline Vec load(const double *from)
{
  Vec v;
  std::memcpy(&v, from, sizeof(Vec));
  return v;
}

constexpr int lm(int l, int m) { return m ? l * l + 2 * m - 2 : l * l - 1; }    // Im follows Re

/// P_lm(z) and its derivative at [l - 1][m].
struct Legendre {
  Vec p[4][5], slope[4][5];

  explicit Legendre(Vec z)
  {
    const Vec zz = z * z;
    for (int l = 1; l <= L_MAX; l++) {
      p[l - 1][l] = all(1.0);
      slope[l - 1][l] = all(0.0);
      p[l - 1][l - 1] = z;
      slope[l - 1][l - 1] = all(1.0);
    }
    if constexpr (L_MAX >= 2) set(2, 0, 3.0 * zz - 1.0, 6.0 * z);
    if constexpr (L_MAX >= 3) {
      set(3, 0, (5.0 * zz - 3.0) * z, 15.0 * zz - 3.0);
      set(3, 1, 5.0 * zz - 1.0, 10.0 * z);
    }
    if constexpr (L_MAX >= 4) {
      set(4, 0, (35.0 * zz - 30.0) * zz + 3.0, (140.0 * zz - 60.0) * z);
      set(4, 1, (7.0 * zz - 3.0) * z, 21.0 * zz - 3.0);
      set(4, 2, 7.0 * zz - 1.0, 14.0 * z);
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
    re[0] = all(1.0);
    im[0] = all(0.0);
    for (int m = 1; m <= L_MAX; m++) {
      re[m] = re[m - 1] * x - im[m - 1] * y;
      im[m] = re[m - 1] * y + im[m - 1] * x;
    }
  }
};

/// fc(r), its derivative, the argument of the Chebyshev polynomials and its derivative.
struct Cutoff {
  Vec fc, slope, x, x_slope;

  Cutoff(Vec r, double cutoff)
  {
    const double inverse = 1.0 / cutoff;
    Vec u = r * inverse;
    u = choose(u > 1.0, all(1.0), u);    // there fc and its derivative are zero
    const Vec s = sine(0.5 * PI * u), c = sine(0.5 * PI * (1.0 - u));
    fc = c * c;
    slope = -PI * inverse * s * c;
    x = 2.0 * (u - 1.0) * (u - 1.0) - 1.0;
    x_slope = 4.0 * inverse * (u - 1.0);
  }
};

/// T_k(x) and dT_k/dx, k < K.
template <int K> struct Chebyshev {
  Vec t[K], slope[K];

  explicit Chebyshev(Vec x)
  {
    t[0] = all(1.0);
    slope[0] = all(0.0);
    if constexpr (K > 1) {
      t[1] = x;
      slope[1] = all(1.0);
    }
    for (int k = 2; k < K; k++) {
      t[k] = 2.0 * x * t[k - 1] - t[k - 2];
      slope[k] = 2.0 * t[k - 1] + 2.0 * x * slope[k - 1] - slope[k - 2];
    }
  }
};

/// Invariants of s, the descriptors after the radial ones. Writes WIDTH numbers too many.
void invariants(const Density &s, double *q)
{
  Vec found[N_INVARIANTS][ANGULAR_VECTORS];
  for (int v = 0; v < ANGULAR_VECTORS; v++) {
    for (int l = 1; l <= L_MAX; l++) {
      Vec total = all(0.0);
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
      std::memcpy(q + k * N_ANGULAR + v * WIDTH, &found[k][v], sizeof(Vec));
}

/// dU/ds from dU/dq, in place of s. Reads WIDTH numbers too many, for which s is zero.
void invariant_slopes(Density &s, const double *dq)
{
  for (int v = 0; v < vectors(N_ANGULAR); v++) {
    Vec weight[N_INVARIANTS];
    for (int k = 0; k < N_INVARIANTS; k++) weight[k] = load(dq + k * N_ANGULAR + v * WIDTH);
    Vec slope[N_LM];
    for (int l = 1; l <= L_MAX; l++)
      for (int k = l * l - 1; k < (l + 1) * (l + 1) - 1; k++)
        slope[k] = 2.0 * C3B[l - 1][(k - l * l + 2) / 2] * weight[l - 1] * s[k][v];
    if constexpr (HAS_Q222) {
      const Vec w = weight[L_MAX];
      const Vec a = s[3][v], b = s[4][v], c = s[5][v], d = s[6][v], e = s[7][v];
      const Vec bb = b * b, cc = c * c;
      slope[3] += w * (3.0 * C4B[0] * a * a + C4B[1] * (bb + cc) + C4B[2] * (d * d + e * e));
      slope[4] += w * (2.0 * C4B[1] * a * b - 2.0 * C4B[3] * d * b + C4B[4] * c * e);
      slope[5] += w * (2.0 * C4B[1] * a * c + 2.0 * C4B[3] * d * c + C4B[4] * b * e);
      slope[6] += w * (2.0 * C4B[2] * a * d + C4B[3] * (cc - bb));
      slope[7] += w * (2.0 * C4B[2] * a * e + C4B[4] * b * c);
    }
    if constexpr (HAS_Q1111) {
      const Vec w = weight[L_MAX + HAS_Q222];
      const Vec a = s[0][v], b = s[1][v], c = s[2][v];
      const Vec p = b * b + c * c, common = 2.0 * C5B[1] * a * a + 4.0 * C5B[2] * p;
      slope[0] += w * a * (4.0 * C5B[0] * a * a + 2.0 * C5B[1] * p);
      slope[1] += w * common * b;
      slope[2] += w * common * c;
    }
    for (int k = 0; k < N_LM; k++) s[k][v] = slope[k];
  }
}

}    // namespace

void Neighborhood::reserve(int size)
{
  if (size <= (int) x.size()) return;
  for (auto *one : {&x, &y, &z, &rsq}) one->resize(size);
  type.resize(size);
  atom.resize(size);
}

/// Vectors of neighbours by type, those within the angular cutoff first.
void NEP::arrange(int t, const Neighborhood &around)
{
  const int n = around.n;
  const Pair *pairs = &pairs_[t * n_types_];
  counts_.assign(2 * n_types_, 0);    // by type: within the angular cutoff, and beyond
  place_.resize(n);
  for (int k = 0; k < n; k++) {
    const int u = around.type[k];
    const double angular = pairs[u].angular;
    place_[k] = 2 * u + (around.rsq[k] >= angular * angular);
    counts_[place_[k]]++;
  }
  groups_.clear();
  int end = 0;
  for (int u = 0; u < n_types_; u++) {
    const int within = counts_[2 * u], beyond = counts_[2 * u + 1];
    if (within + beyond == 0) continue;
    counts_[2 * u] = end * WIDTH;
    counts_[2 * u + 1] = end * WIDTH + within;
    const int begin = end;
    end += vectors(within + beyond);
    groups_.push_back({u, begin, begin + vectors(within), end});
    if (end > (int) lanes_.size()) {
      lanes_.resize(2 * end);
      angular_.resize(2 * end);
    }
    // The last vector may have places to spare: those are at the cutoff, where nothing is felt.
    Lanes &last = lanes_[end - 1];
    last.x = all(pairs[u].radial);
    last.y = last.z = all(0.0);
  }
  for (int k = 0; k < n; k++) {
    const unsigned place = place_[k] = counts_[place_[k]]++;
    Lanes &lanes = lanes_[place / WIDTH];
    lane(lanes.x, place) = around.x[k];
    lane(lanes.y, place) = around.y[k];
    lane(lanes.z, place) = around.z[k];
  }
}

void NEP::radial_sums(const Pair &pair, const Group &group, double *q)
{
  Vec sums[K_RADIAL] = {};
  for (int v = group.begin; v < group.end; v++) {
    Lanes &lanes = lanes_[v];
    lanes.r = sqrt(lanes.x * lanes.x + lanes.y * lanes.y + lanes.z * lanes.z);
    const Vec inverse = 1.0 / lanes.r;
    lanes.x *= inverse;
    lanes.y *= inverse;
    lanes.z *= inverse;
    const Cutoff cutoff(lanes.r, pair.radial);
    lanes.fc = cutoff.fc;
    lanes.fc_slope = cutoff.slope;
    Vec last = cutoff.fc, now = cutoff.fc * cutoff.x;
    const Vec twice = 2.0 * cutoff.x;
    sums[0] += last;
#pragma GCC unroll 32
    for (int k = 1; k < K_RADIAL; k++) {
      sums[k] += now;
      const Vec next = twice * now - last;
      last = now;
      now = next;
    }
  }
  double f[K_RADIAL];
  for (int k = 0; k < K_RADIAL; k++) f[k] = sum(sums[k]);
  for (int n = 0; n < N_RADIAL; n++) {
    double total = pair.sum_radial[n] * f[0];
    for (int k = 0; k < K_RADIAL; k++) total += pair.c_radial[n][k] * f[k];
    q[n] += total;
  }
}

/// Begins dU_i/dr_ij with the part of the radial descriptors.
void NEP::radial_slopes(const Pair &pair, const Group &group, const double *dq)
{
  double weight[K_RADIAL] = {}, constant = 0.0;
  for (int n = 0; n < N_RADIAL; n++) {
    constant += dq[n] * pair.sum_radial[n];
    for (int k = 0; k < K_RADIAL; k++) weight[k] += dq[n] * pair.c_radial[n][k];
  }
  const double inverse = 1.0 / pair.radial;
  for (int v = group.begin; v < group.end; v++) {
    Lanes &lanes = lanes_[v];
    Vec u = lanes.r * inverse - 1.0;
    u = choose(u > 0.0, all(0.0), u);
    const Vec x = 2.0 * u * u - 1.0, twice = 2.0 * x;
    Vec last = all(1.0), now = x, last_slope = all(0.0), now_slope = all(1.0);
    Vec value = all(constant + weight[0]), slope = all(0.0);
#pragma GCC unroll 32
    for (int k = 1; k < K_RADIAL; k++) {
      value += weight[k] * now;
      slope += weight[k] * now_slope;
      const Vec next = twice * now - last;
      const Vec next_slope = 2.0 * now + twice * now_slope - last_slope;
      last = now;
      now = next;
      last_slope = now_slope;
      now_slope = next_slope;
    }
    const Vec along = value * lanes.fc_slope + 4.0 * inverse * u * slope * lanes.fc;
    lanes.g[0] = along * lanes.x;
    lanes.g[1] = along * lanes.y;
    lanes.g[2] = along * lanes.z;
  }
}

void NEP::angular_functions(const Pair &pair, const Group &group)
{
  for (int v = group.begin; v < group.angular_end; v++) {
    const Lanes &lanes = lanes_[v];
    AngularLanes &own = angular_[within_.size()];
    within_.push_back(v);
    const Cutoff cutoff(lanes.r, pair.angular);
    const Chebyshev<K_ANGULAR> chebyshev(cutoff.x);
    const Vec turn = cutoff.fc * cutoff.x_slope;
    for (int first = 0; first < N_PADDED; first += N_STEP) {
      Vec value[N_STEP], slope[N_STEP];
#pragma GCC unroll 4
      for (int n = 0; n < N_STEP; n++) {
        value[n] = all(pair.sum_angular[first + n] + pair.c_angular[first + n][0]);
        slope[n] = all(0.0);
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
void NEP::density(Density &s) const
{
  const AngularLanes *const begin = angular_.data(), *const end = begin + within_.size();
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
void NEP::angular_slopes(const Density &ds)
{
  for (size_t at = 0; at < within_.size(); at++) {
    const AngularLanes &own = angular_[at];
    Lanes &lanes = lanes_[within_[at]];
    Vec along[N_LM], turn[N_LM];    // sums over n of dU/ds_nlm times g_n' and g_n
    for (int row = 0; row < N_LM; row += LM_STEP) {
      Vec first[LM_STEP] = {}, second[LM_STEP] = {};
#pragma GCC unroll 20
      for (int n = 0; n < N_ANGULAR; n++)
#pragma GCC unroll 4
        for (int k = 0; k < LM_STEP; k++) {
          const double weight = reinterpret_cast<const double *>(ds[row + k])[n];
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
    Vec radial = all(0.0), tx = all(0.0), ty = all(0.0), tz = all(0.0);
#pragma GCC unroll 5
    for (int m = 0; m <= L_MAX; m++) {
      Vec radial_re = all(0.0), radial_im = all(0.0), re = all(0.0), im = all(0.0);
      Vec re_slope = all(0.0), im_slope = all(0.0);
#pragma GCC unroll 4
      for (int l = std::max(1, m); l <= L_MAX; l++) {
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
        const double order = m;
        tx += order * (re * plane.re[m - 1] + im * plane.im[m - 1]);
        ty += order * (im * plane.re[m - 1] - re * plane.im[m - 1]);
      }
    }
    // The unit vector changes across r_ij only.
    const Vec inverse = 1.0 / lanes.r;
    radial -= (tx * lanes.x + ty * lanes.y + tz * lanes.z) * inverse;
    lanes.g[0] += radial * lanes.x + tx * inverse;
    lanes.g[1] += radial * lanes.y + ty * inverse;
    lanes.g[2] += radial * lanes.z + tz * inverse;
  }
}

double NEP::compute(int t, const Neighborhood &around)
{
  arrange(t, around);
  double q[N_DESCRIPTORS + WIDTH] = {}, dq[N_DESCRIPTORS + WIDTH] = {};
  within_.clear();
  for (const Group &group : groups_) {
    const Pair &pair = pairs_[t * n_types_ + group.type];
    radial_sums(pair, group, q);
    angular_functions(pair, group);
  }
  Density s = {};
  density(s);
  invariants(s, q + N_RADIAL);
  const double energy = network(t, q, dq);
  invariant_slopes(s, dq + N_RADIAL);
  for (const Group &group : groups_) radial_slopes(pairs_[t * n_types_ + group.type], group, dq);
  angular_slopes(s);
  return HAS_ZBL ? energy + repulsion(t, around) : energy;
}

double NEP::network(int t, const double *q, double *dq) const
{
  const Network &own = networks_[t];
  Vec energy = all(0.0), push[NEURON_VECTORS];
  for (int begin = 0; begin < NEURON_VECTORS; begin += NEURON_STEP) {
    Vec hidden[NEURON_STEP];
    for (int m = 0; m < NEURON_STEP; m++) hidden[m] = -own.b0[begin + m];
    for (int d = 0; d < N_DESCRIPTORS; d++)
#pragma GCC unroll 16
      for (int m = 0; m < NEURON_STEP; m++) hidden[m] += q[d] * own.w0[d][begin + m];
    for (int m = 0; m < NEURON_STEP; m++) {
      const Vec active = tanh(hidden[m]), w1 = own.w1[begin + m];
      energy += w1 * active;
      push[begin + m] = w1 * (1.0 - active * active);
    }
  }
  for (int d = 0; d < N_DESCRIPTORS; d++) {
    Vec total = all(0.0);
#pragma GCC unroll 32
    for (int m = 0; m < NEURON_VECTORS; m++) total += push[m] * own.w0[d][m];
    dq[d] = sum(total);
  }
  return sum(energy) - b1_;
}

/// Half the screened nuclear repulsion of the atom's pairs; adds its gradients.
double NEP::repulsion(int t, const Neighborhood &around)
{
  double energy = 0.0;
  for (int k = 0; k < around.n; k++) {
    const Pair &pair = pairs_[t * n_types_ + around.type[k]];
    if (around.rsq[k] >= pair.zbl_outer * pair.zbl_outer) continue;
    const double r = std::sqrt(around.rsq[k]);
    double phi = 0.0, slope = 0.0, fc = 1.0, fc_slope = 0.0;
    for (int term = 0; term < 4; term++) {
      const double part = pair.zbl_a[term] * std::exp(-pair.zbl_b[term] * r);
      phi += part;
      slope -= pair.zbl_b[term] * part;
    }
    if (r >= pair.zbl_inner) {
      const double rate = PI / std::max(pair.zbl_outer - pair.zbl_inner, 1e-12);
      fc = 0.5 + 0.5 * std::cos(rate * (r - pair.zbl_inner));
      fc_slope = -0.5 * rate * std::sin(rate * (r - pair.zbl_inner));
    }
    energy += phi * fc / r;
    const double along = (slope * fc + phi * fc_slope - phi * fc / r) / (r * r);
    Lanes &lanes = lanes_[(unsigned) place_[k] / WIDTH];
    lane(lanes.g[0], place_[k]) += along * around.x[k];
    lane(lanes.g[1], place_[k]) += along * around.y[k];
    lane(lanes.g[2], place_[k]) += along * around.z[k];
  }
  return energy;
}

}    // namespace mlffd
