// U_i, the virial and dU_i/dr_ij of each slot, for a Warp kernel on the CPU.
//
// The compiler that comes with Warp has no standard library. Before this: Real, the sizes that
// mlffd_atom.h names, and FORCE_GRID.

#ifndef MLFFD_GRADIENTS_H
#define MLFFD_GRADIENTS_H

#include "mlffd_atom.h"

namespace mlffd {

/// Slots of an atom, in the rows of three arrays.
struct Slots {
  int count;
  const int *neighbors, *images;
  Real *g;    // 3 numbers each
};

#ifndef MLFFD_STACK
#define MLFFD_STACK (1 << 18)
#endif
constexpr int MOST_ON_STACK = MLFFD_STACK;    // bytes; a thread may have no more than 512 kB

/// Hands out one block of memory, in pieces for whole vectors. Without a block it adds them up.
struct Room {
  char *block;
  long long end = 0;

  template <typename T> T *take(long long n)
  {
    T *const piece = reinterpret_cast<T *>(block + end);
    end += (n * (long long) sizeof(T) + BYTES - 1) / BYTES * BYTES;
    return piece;
  }
  /// For up to n neighbours; the number of each one's slot lies in `slot_of`.
  void lay_out(Around &around, int *&slot_of, int n, int n_types)
  {
    const int most = n / WIDTH + n_types;
    around.lanes = take<Lanes>(most);
    around.angular = take<AngularLanes>(most);
    around.within = take<int>(most);
    around.groups = take<Group>(n_types);
    around.counts = take<int>(2 * n_types);
    Real **const reals[] = {&around.x, &around.y, &around.z, &around.rsq};
    int **const whole[] = {&around.type, &around.place, &slot_of};
    for (Real **one : reals) *one = take<Real>(n + 1);
    for (int **one : whole) *one = take<int>(n + 1);
  }
};

/// `positions`, `shifts` and `virial` have 3, 3 and 6 numbers each, in Angstrom and eV; `types` may
/// be null for one type.
__attribute__((noinline)) inline void gradients(int i, const Slots &slots, const double *positions,
                                                const double *shifts, const int *types, int n_types,
                                                const Real *parameters, const Real *networks,
                                                const double *reference, double *energy,
                                                double *virial)
{
  const int n = slots.count;
  const int t = n_types > 1 ? types[i] : 0;
  const Pair *const pairs = reinterpret_cast<const Pair *>(parameters) + t * n_types;
  Around around;
  int *slot_of;
  Room room{nullptr};
  room.lay_out(around, slot_of, n, n_types);
  void *heap = nullptr;
  if (room.end <= MOST_ON_STACK)
    room.block = static_cast<char *>(__builtin_alloca_with_align(room.end, 8 * BYTES));
  else {
    heap = __builtin_malloc(room.end + BYTES);
    const unsigned long long past = reinterpret_cast<unsigned long long>(heap) % BYTES;
    room.block = static_cast<char *>(heap) + (BYTES - past);
  }
  room.end = 0;
  room.lay_out(around, slot_of, n, n_types);
  around.n = 0;
  const double xi = positions[3 * i], yi = positions[3 * i + 1], zi = positions[3 * i + 2];
  for (int slot = 0; slot < n; slot++) {
    const double *const there = positions + 3 * slots.neighbors[slot];
    const double *const shift = shifts + 3 * slots.images[slot];
    const Real x = Real(there[0] - xi + shift[0]), y = Real(there[1] - yi + shift[1]);
    const Real z = Real(there[2] - zi + shift[2]), rsq = x * x + y * y + z * z;
    const int u = n_types > 1 ? types[slots.neighbors[slot]] : 0;
    const Real radial = pairs[u].radial, angular = pairs[u].angular;
    const Real cutoff = radial > angular ? radial : angular;
    // Written in any case, kept if it is near: a branch would be guessed wrong too often.
    around.x[around.n] = x;
    around.y[around.n] = y;
    around.z[around.n] = z;
    around.rsq[around.n] = rsq;
    around.type[around.n] = u;
    slot_of[around.n] = slot;
    around.n += rsq < cutoff * cutoff;
    for (int axis = 0; axis < 3; axis++) slots.g[3 * slot + axis] = 0;
  }
  const Real u = atom(around, pairs, reinterpret_cast<const Network *>(networks)[t], n_types);
  *energy = double(u) + reference[t];

  Vec sums[6] = {};
  const int end = around.n_groups ? around.groups[around.n_groups - 1].end : 0;
  for (int v = 0; v < end; v++) {
    Lanes &lanes = around.lanes[v];
    Vec d[3] = {lanes.x * lanes.r, lanes.y * lanes.r, lanes.z * lanes.r};
    constexpr int A[6] = {0, 1, 2, 1, 0, 0}, B[6] = {0, 1, 2, 2, 2, 1};
    for (int axis = 0; axis < 3; axis++)
      lanes.g[axis] = rounded(lanes.g[axis] * FORCE_GRID) * (1 / FORCE_GRID);
    for (int k = 0; k < 6; k++) sums[k] -= d[A[k]] * lanes.g[B[k]];
  }
  for (int k = 0; k < 6; k++) virial[k] = double(sum(sums[k]));
  for (int k = 0; k < around.n; k++) {
    const unsigned place = around.place[k];
    Lanes &lanes = around.lanes[place / WIDTH];
    for (int axis = 0; axis < 3; axis++)
      slots.g[3 * slot_of[k] + axis] = lane(lanes.g[axis], place);
  }
  __builtin_free(heap);
}

}    // namespace mlffd

#endif
