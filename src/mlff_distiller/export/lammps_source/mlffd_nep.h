// The neuroevolution potential NEP4 of one model's sizes: U_i and dU_i/dr_ij of an atom.

#ifndef MLFFD_NEP_H
#define MLFFD_NEP_H

#include <cmath>
#include <string>
#include <vector>

#include "mlffd_sizes.h"

#include "mlffd_atom.h"

namespace mlffd {

/// Neighbours of one atom within the radial cutoff.
struct Neighborhood {
  int n = 0;
  std::vector<double> x, y, z, rsq;    // r_ij = r_j - r_i, in Angstrom
  std::vector<int> type, atom;

  void reserve(int size)
  {
    if (size <= (int) x.size()) return;
    for (auto *one : {&x, &y, &z, &rsq}) one->resize(size);
    type.resize(size);
    atom.resize(size);
  }
};

/// How far atoms are from those that trained: the student's error model, from its errors.txt.
struct Errors {
  struct Element {
    double edge, scale, mean[NEURONS - 1], whitening[NEURONS - 1][NEURONS - 1];
  };
  double power = 0.0, reach = 0.0;    // Angstrom
  std::vector<Element> of;

  /// Throws std::runtime_error that says what is wrong.
  void read(const std::string &text, const std::vector<std::string> &elements);
};

class NEP {
 public:
  std::vector<std::string> elements;

  /// From the text of a nep.txt. Throws std::runtime_error that says what is wrong.
  void read(const std::string &text);
  /// Angstrom: the radial cutoff of a pair of types, which is the larger one.
  double cutoff(int t, int u) const { return pairs_[t * n_types_ + u].radial; }
  /// U_i in eV of an atom of type t.
  double compute(int t, Neighborhood &around)
  {
    Around seen = view(around);
    return mlffd::atom(seen, &pairs_[t * n_types_], networks_[t], n_types_) - b1_;
  }
  /// The square of the distance of an atom of type t from those that trained.
  double distance(int t, Neighborhood &around, const Errors &errors)
  {
    Around seen = view(around);
    const Network &network = networks_[t];
    const Errors::Element &own = errors.of[t];
    Density s = {};
    double q[N_DESCRIPTORS + WIDTH] = {}, away[NEURONS - 1], total = 0.0;
    descriptors(seen, &pairs_[t * n_types_], n_types_, s, q);
    for (int m = 0; m < NEURONS - 1; m++) {    // the last neuron is the energy of a lone atom
      double sum = -network.b0[m];
      for (int d = 0; d < N_DESCRIPTORS; d++) sum += q[d] * network.w0[d][m];
      away[m] = std::tanh(sum) - own.mean[m];
    }
    for (const auto &row : own.whitening) {
      double along = 0.0;
      for (int m = 0; m < NEURONS - 1; m++) along += row[m] * away[m];
      total += along * along;
    }
    return total;
  }
  /// dU_i/dr_ij in eV/Angstrom of the neighbor k of the last atom.
  void gradient(int k, double *g) const
  {
    const unsigned place = place_[k];
    const double *lane = reinterpret_cast<const double *>(&lanes_[place / WIDTH]) + place % WIDTH;
    for (int axis = 0; axis < 3; axis++) g[axis] = lane[axis * WIDTH];
  }

 private:
  Around view(Neighborhood &around)
  {
    const int n = around.n, most = n / WIDTH + n_types_;
    if (n > (int) place_.size()) place_.resize(2 * n);
    if (most > (int) lanes_.size()) {
      lanes_.resize(2 * most);
      angular_.resize(2 * most);
      within_.resize(2 * most);
    }
    return {n, around.x.data(), around.y.data(), around.z.data(), around.rsq.data(),
            around.type.data(), place_.data(), counts_.data(), groups_.data(), lanes_.data(),
            angular_.data(), within_.data(), 0, 0};
  }

  int n_types_ = 0;
  double b1_ = 0.0;
  std::vector<Pair> pairs_;
  std::vector<Network> networks_;

  // Room for the neighbours of one atom.
  std::vector<Group> groups_;
  std::vector<int> place_, counts_, within_;
  std::vector<Lanes> lanes_;
  std::vector<AngularLanes> angular_;
};

}    // namespace mlffd

#endif
