// The neuroevolution potential NEP4 of one model's sizes: U_i and dU_i/dr_ij of an atom.

#ifndef MLFFD_NEP_H
#define MLFFD_NEP_H

#include <string>
#include <vector>

#include "mlffd_sizes.h"
#include "mlffd_vector.h"

namespace mlffd {

constexpr int rounded_up(int n, int step) { return (n + step - 1) / step * step; }
constexpr int vectors(int n) { return rounded_up(n, WIDTH) / WIDTH; }

constexpr int N_LM = (L_MAX + 1) * (L_MAX + 1) - 1;    // components b_lm, l = 1..L_MAX
constexpr int N_INVARIANTS = L_MAX + HAS_Q222 + HAS_Q1111;
constexpr int N_DESCRIPTORS = N_RADIAL + N_ANGULAR * N_INVARIANTS;

// Loops run over blocks of N_STEP times LM_STEP sums: as many as there are registers. What a last
// block has too much is zero.
constexpr int N_STEP = 3, LM_STEP = N_LM % 4 ? 3 : 4;
constexpr int N_PADDED = rounded_up(N_ANGULAR, N_STEP);
constexpr int ANGULAR_VECTORS = vectors(N_PADDED);
constexpr int NEURON_BLOCKS = (vectors(NEURONS) + 13) / 14;
constexpr int NEURON_STEP = (vectors(NEURONS) + NEURON_BLOCKS - 1) / NEURON_BLOCKS;
constexpr int NEURON_VECTORS = NEURON_BLOCKS * NEURON_STEP;

/// s_nlm, or dU/ds_nlm; the lanes are n.
typedef Vec Density[N_LM][ANGULAR_VECTORS];

/// Neighbours of one atom within the radial cutoff.
struct Neighborhood {
  int n = 0;
  std::vector<double> x, y, z, rsq;    // r_ij = r_j - r_i, in Angstrom
  std::vector<int> type, atom;
  void reserve(int size);
};

class NEP {
 public:
  std::vector<std::string> elements;

  /// From the text of a nep.txt. Throws std::runtime_error that says what is wrong.
  void read(const std::string &text);
  /// Angstrom: the radial cutoff of a pair of types, which is the larger one.
  double cutoff(int t, int u) const { return pairs_[t * n_types_ + u].radial; }
  /// U_i in eV of an atom of type t.
  double compute(int t, const Neighborhood &around);
  /// dU_i/dr_ij in eV/Angstrom of the neighbor k of the last atom.
  void gradient(int k, double *g) const
  {
    const unsigned place = place_[k];
    const double *lane = reinterpret_cast<const double *>(&lanes_[place / WIDTH]) + place % WIDTH;
    for (int axis = 0; axis < 3; axis++) g[axis] = lane[axis * WIDTH];
  }

 private:
  /// What does not depend on which of the two is the centre.
  struct Radii {
    double radial, angular;                             // cutoffs
    double zbl_inner, zbl_outer, zbl_a[4], zbl_b[4];    // a times K Z_i Z_j / 2; b in 1/Angstrom
  };
  struct Pair : Radii {
    double c_radial[N_RADIAL][K_RADIAL], c_angular[N_PADDED][K_ANGULAR];    // halves
    double sum_radial[N_RADIAL], sum_angular[N_PADDED];                     // over k
  };
  struct Network {
    Vec w0[N_DESCRIPTORS][NEURON_VECTORS];    // scaler included
    Vec b0[NEURON_VECTORS], w1[NEURON_VECTORS];
  };
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

  int n_types_ = 0;
  double b1_ = 0.0;
  std::vector<Pair> pairs_;
  std::vector<Network> networks_;

  // Room for the neighbours of one atom.
  std::vector<Group> groups_;
  std::vector<int> place_, counts_;    // of each neighbour, its lane among all
  std::vector<int> within_;    // of each of `angular_`, its vector in `lanes_`
  std::vector<Lanes> lanes_;
  std::vector<AngularLanes> angular_;

  void arrange(int t, const Neighborhood &around);
  void radial_sums(const Pair &pair, const Group &group, double *q);
  void radial_slopes(const Pair &pair, const Group &group, const double *dq);
  void angular_functions(const Pair &pair, const Group &group);
  void density(Density &s) const;
  void angular_slopes(const Density &ds);
  double network(int t, const double *q, double *dq) const;
  double repulsion(int t, const Neighborhood &around);
};

}    // namespace mlffd

#endif
