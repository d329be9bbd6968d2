// `plugin load mlffdplugin.so`, as the developer's guide of LAMMPS describes it.

#include "error.h"
#include "lammps.h"
#include "pair_mlffd.h"

using namespace LAMMPS_NS;

namespace {

struct Plugin {
  const char *version, *style, *name, *info, *author;
  void *(*creator)(void *);
  void *handle;
};
typedef void (*Register)(Plugin *, void *);

void *create(void *lmp) { return new PairMLFFD(static_cast<LAMMPS *>(lmp)); }

}    // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *register_plugin)
{
  auto *lammps = static_cast<LAMMPS *>(lmp);
  if (lammps->num_ver != MLFFD_LAMMPS)
    lammps->error->all(FLERR,
                       "mlffdplugin.so was built for LAMMPS {}, and this is {}: run build.py again",
                       MLFFD_LAMMPS, lammps->num_ver);
  Plugin plugin = {lammps->version, "pair",         "mlffd", "a nep student of MLFF Distiller",
                   "MLFF Distiller", create, handle};
  ((Register) register_plugin)(&plugin, lmp);
}
