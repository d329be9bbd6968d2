// pair_style mlffd: a nep student of MLFF Distiller in LAMMPS.

#ifdef PAIR_CLASS
// clang-format off
PairStyle(mlffd,PairMLFFD);
// clang-format on
#else

#ifndef LMP_PAIR_MLFFD_H
#define LMP_PAIR_MLFFD_H

#include "mlffd_nep.h"
#include "pair.h"

namespace LAMMPS_NS {

class PairMLFFD : public Pair {
 public:
  explicit PairMLFFD(class LAMMPS *);
  ~PairMLFFD() override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;

 private:
  mlffd::NEP model_;
  mlffd::Neighborhood around_;
  std::vector<int> kind_;    // of each atom type, its type in the model; -1 if it has none

  std::string read_file(const char *name);
  void gather(int i);
  void tally();
};

}    // namespace LAMMPS_NS

#endif
#endif
