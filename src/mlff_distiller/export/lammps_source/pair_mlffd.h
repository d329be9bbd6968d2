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
  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;
  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;

 private:
  /// What a thread has for itself.
  struct Worker {
    mlffd::NEP model;
    mlffd::Neighborhood around;
    std::vector<double> f;    // of all atoms; the first one's are LAMMPS' own
    double energy;
  };
  std::vector<Worker> workers_;
  std::vector<int> kind_;    // of each atom type, its type in the model; -1 if it has none

  /// Estimates of the errors of forces, for `fix pair`.
  std::string errors_file_;
  mlffd::Errors errors_;
  int asked_ = 0;                   // by a fix, of this step
  std::vector<double> distances_;    // squares; of ghosts too
  std::vector<double> forces_error_, extrapolation_;

  std::string read_file(const char *name);
  void estimate();
  int threads() const;
  void share(Worker &own, int begin, int end, double *f);
  void gather(mlffd::Neighborhood &around, int i) const;
  void tally(const Worker &own);
};

}    // namespace LAMMPS_NS

#endif
#endif
