#include "pair_mlffd.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"

using namespace LAMMPS_NS;

PairMLFFD::PairMLFFD(LAMMPS *lmp) : Pair(lmp), workers_(1)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  centroidstressflag = CENTROID_AVAIL;
  comm_forward = 1;
}

PairMLFFD::~PairMLFFD()
{
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

/// pair_style mlffd, or pair_style mlffd errors errors.txt
void PairMLFFD::settings(int narg, char **arg)
{
  if (narg != 0 && (narg != 2 || strcmp(arg[0], "errors") != 0))
    error->all(FLERR, "pair_style mlffd takes no arguments, or 'errors errors.txt'");
  errors_file_ = narg ? arg[1] : "";
}

/// pair_coeff * * nep.txt El1 El2 .., an element for each atom type
void PairMLFFD::coeff(int narg, char **arg)
{
  const int n = atom->ntypes;
  if (!allocated) {
    allocated = 1;
    memory->create(setflag, n + 1, n + 1, "pair:setflag");
    memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
    map = new int[n + 1];
  }
  if (narg != 3 + n)
    error->all(FLERR,
               "pair_style mlffd: expected 'pair_coeff * * nep.txt' and the elements of {} atom "
               "types, found {} words",
               n, narg);
  map_element2type(narg - 3, arg + 3);
  try {
    workers_.resize(1);
    workers_[0].model.read(read_file(arg[2]));
  } catch (const std::runtime_error &wrong) {
    error->all(FLERR, "{} cannot be used by pair_style mlffd: {}", arg[2], wrong.what());
  }
  const auto &known = workers_[0].model.elements;
  try {
    if (!errors_file_.empty()) errors_.read(read_file(errors_file_.c_str()), known);
  } catch (const std::runtime_error &wrong) {
    error->all(FLERR, "{} cannot be used by pair_style mlffd: {}", errors_file_, wrong.what());
  }
  kind_.assign(n + 1, -1);
  for (int type = 1; type <= n; type++) {
    if (map[type] < 0) continue;
    const auto found = std::find(known.begin(), known.end(), elements[map[type]]);
    if (found == known.end()) {
      std::string all;
      for (const auto &element : known) all += " " + element;
      error->all(FLERR, "the student in {} does not know {}; it knows{}", arg[2],
                 elements[map[type]], all);
    }
    kind_[type] = found - known.begin();
  }
}

/// The text of a file, read by rank 0 alone.
std::string PairMLFFD::read_file(const char *name)
{
  std::string text;
  int size = -1;
  if (comm->me == 0) {
    std::ifstream file(name);
    if (file) {
      text.assign(std::istreambuf_iterator<char>(file), {});
      size = text.size();
    }
  }
  MPI_Bcast(&size, 1, MPI_INT, 0, world);
  if (size < 0) throw std::runtime_error("it cannot be read");
  text.resize(size);
  MPI_Bcast(&text[0], size, MPI_CHAR, 0, world);
  return text;
}

void PairMLFFD::init_style()
{
  if (strcmp(update->unit_style, "metal") != 0)
    error->all(FLERR, "pair_style mlffd needs 'units metal' (eV and Angstrom), found 'units {}'",
               update->unit_style);
  if (!force->newton_pair)
    error->all(FLERR, "pair_style mlffd needs 'newton on', found newton off for pairs");
  for (int k = 1; k <= 3; k++)
    if (atom->molecular != 0 && force->special_lj[k] != 1.0)
      error->all(FLERR,
                 "pair_style mlffd needs 'special_bonds lj/coul 1 1 1': bonded atoms are "
                 "neighbors as all others are");
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairMLFFD::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "pair_style mlffd: not all pair coeffs are set");
  return workers_[0].model.cutoff(kind_[i], kind_[j]);
}

/// Those of LAMMPS, if this was built with OpenMP; virials of atoms are summed by one.
int PairMLFFD::threads() const
{
#ifdef _OPENMP
  return vflag_atom || cvflag_atom ? 1 : comm->nthreads;
#else
  return 1;
#endif
}

void PairMLFFD::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  const int n_threads = threads(), n = list->inum;
  const int n_forces = 3 * (atom->nlocal + atom->nghost);
  double *const f = n_forces ? atom->f[0] : nullptr;
  if ((int) workers_.size() < n_threads) workers_.resize(n_threads, workers_[0]);
#ifdef _OPENMP
#pragma omp parallel num_threads(n_threads)
#endif
  {
#ifdef _OPENMP
#pragma omp for schedule(static, 1)
#endif
    for (int t = 0; t < n_threads; t++) {
      Worker &own = workers_[t];
      if (t) own.f.assign(n_forces, 0.0);
      const auto bound = [&](bigint k) { return static_cast<int>(k * n / n_threads); };
      share(own, bound(t), bound(t + 1), t ? own.f.data() : f);
    }
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
    for (int k = 0; k < n_forces; k++)    // in the order of the threads: a run can be repeated
      for (int t = 1; t < n_threads; t++) f[k] += workers_[t].f[k];
  }
  double total = 0.0;
  for (int t = 0; t < n_threads; t++) total += workers_[t].energy;
  if (!std::isfinite(total))
    error->one(FLERR, "pair_style mlffd: the energy is not finite; atoms on top of each other?");
  if (eflag_global) eng_vdwl += total;
  if (vflag_fdotr) virial_fdotr_compute();
  if (asked_) estimate();
  asked_ = 0;
}

/// Errors of forces as the student itself estimates them: from how far an atom and its neighbors
/// are from those that trained.
void PairMLFFD::estimate()
{
  const int n_local = atom->nlocal;
  distances_.assign(n_local + atom->nghost, 0.0);
  forces_error_.assign(atom->nmax, 0.0);
  extrapolation_.assign(atom->nmax, 0.0);
  auto &around = workers_[0].around;
  for (int ii = 0; ii < list->inum; ii++) {
    const int i = list->ilist[ii];
    gather(around, i);
    distances_[i] = workers_[0].model.distance(kind_[atom->type[i]], around, errors_);
  }
  comm->forward_comm(this);
  constexpr double MOST = 1e6;    // what is not a number counts as that far
  for (int ii = 0; ii < list->inum; ii++) {
    const int i = list->ilist[ii];
    gather(around, i);
    double total = distances_[i], weights = 1.0;
    for (int k = 0; k < around.n; k++) {
      const double r = std::sqrt(around.rsq[k]);
      if (r >= errors_.reach) continue;
      const double weight = 0.5 + 0.5 * std::cos(mlffd::PI * r / errors_.reach);
      weights += weight;
      total += weight * distances_[around.atom[k]];
    }
    const auto &own = errors_.of[kind_[atom->type[i]]];
    const double gamma = std::sqrt(total / weights) / own.edge;
    extrapolation_[i] = gamma < MOST ? gamma : MOST;
    forces_error_[i] = std::min(own.scale * std::pow(extrapolation_[i], errors_.power), MOST);
  }
}

/// What `fix pair` sets on steps at which it wants estimates.
void *PairMLFFD::extract(const char *name, int &dim)
{
  dim = 0;
  const bool known =
      strcmp(name, "forces_error_flag") == 0 || strcmp(name, "extrapolation_flag") == 0;
  return known ? &asked_ : nullptr;
}

/// Of atoms: forces_error in eV/Angstrom, and extrapolation.
void *PairMLFFD::extract_peratom(const char *name, int &ncol)
{
  ncol = 0;
  auto *const found = strcmp(name, "forces_error") == 0 ? &forces_error_
      : strcmp(name, "extrapolation") == 0              ? &extrapolation_
                                                        : nullptr;
  if (found == nullptr) return nullptr;
  if (errors_file_.empty())
    error->all(FLERR, "no errors are estimated: begin with 'pair_style mlffd errors errors.txt'");
  if ((int) found->size() < atom->nmax) found->resize(atom->nmax, 0.0);
  return found->data();
}

int PairMLFFD::pack_forward_comm(int n, int *list, double *buf, int, int *)
{
  for (int k = 0; k < n; k++) buf[k] = distances_[list[k]];
  return n;
}

void PairMLFFD::unpack_forward_comm(int n, int first, double *buf)
{
  std::copy(buf, buf + n, distances_.begin() + first);
}

/// Energies of a share of the list's atoms, and the forces of these energies.
void PairMLFFD::share(Worker &own, int begin, int end, double *f)
{
  own.energy = 0.0;
  for (int ii = begin; ii < end; ii++) {
    const int i = list->ilist[ii];
    gather(own.around, i);
    const double energy = own.model.compute(kind_[atom->type[i]], own.around);
    own.energy += energy;
    if (eflag_atom) eatom[i] += energy;
    double fx = 0.0, fy = 0.0, fz = 0.0;
    for (int k = 0; k < own.around.n; k++) {
      double g[3], *const fj = f + 3 * own.around.atom[k];
      own.model.gradient(k, g);
      fx += g[0];
      fy += g[1];
      fz += g[2];
      fj[0] -= g[0];
      fj[1] -= g[1];
      fj[2] -= g[2];
    }
    f[3 * i] += fx;
    f[3 * i + 1] += fy;
    f[3 * i + 2] += fz;
    if (vflag_atom || cvflag_atom) tally(own);
  }
}

/// Neighbors of i within the cutoff.
void PairMLFFD::gather(mlffd::Neighborhood &around, int i) const
{
  const double *const *const x = atom->x;
  const int *const type = atom->type, *const neighbors = list->firstneigh[i];
  const int size = list->numneigh[i];
  around.reserve(size);
  const double xi = x[i][0], yi = x[i][1], zi = x[i][2], *const within = cutsq[type[i]];
  int n = 0;
  for (int jj = 0; jj < size; jj++) {
    const int j = neighbors[jj] & NEIGHMASK;
    const double dx = x[j][0] - xi, dy = x[j][1] - yi, dz = x[j][2] - zi;
    const double rsq = dx * dx + dy * dy + dz * dz;
    // Written in any case, kept if it is near: a branch would be guessed wrong too often.
    around.x[n] = dx;
    around.y[n] = dy;
    around.z[n] = dz;
    around.rsq[n] = rsq;
    around.type[n] = kind_[type[j]];
    around.atom[n] = j;
    n += rsq < within[type[j]];
  }
  around.n = n;
}

/// The virial of what the neighbors feel of the energy of i, which counts as theirs:
/// with W_j,ab = sum_i (r_j - r_i)_a F_j(i),b the heat flux of the potential is sum_j W_j v_j.
void PairMLFFD::tally(const Worker &own)
{
  const auto &around = own.around;
  for (int k = 0; k < around.n; k++) {
    const double r[3] = {around.x[k], around.y[k], around.z[k]};
    double g[3];
    own.model.gradient(k, g);
    const int j = around.atom[k];
    constexpr int A[9] = {0, 1, 2, 0, 0, 1, 1, 2, 2}, B[9] = {0, 1, 2, 1, 2, 2, 0, 0, 1};
    if (vflag_atom)
      for (int c = 0; c < 6; c++) vatom[j][c] -= 0.5 * (r[A[c]] * g[B[c]] + r[B[c]] * g[A[c]]);
    if (cvflag_atom)
      for (int c = 0; c < 9; c++) cvatom[j][c] -= r[A[c]] * g[B[c]];
  }
}
