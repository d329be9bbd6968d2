"""How much the errors of an atom weigh: by its frame, and by what a committee disagrees on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.frames import Frames

_ATOMS_OF_MEDIAN = 2**20


class FrameWeights:
    """``of_frames`` each, 1 by default, over ``1 + (disagreement s/m)^2``; see `Minibatches`."""

    def __init__(
        self, frames: Frames, of_frames: Sequence[float] | None, disagreement: float
    ) -> None:
        self._of_frames, self._disagreement, self._median = of_frames, disagreement, 0.0
        if disagreement:
            spreads = [np.zeros(0), *(_spread(frame) for frame in frames.thinned(_ATOMS_OF_MEDIAN))]
            known = np.concatenate(spreads)
            known = known[~np.isnan(known)]
            self._median = max(float(np.median(known)), 1e-9) if len(known) else 0.0

    def of(self, number: int, frame: Batch, dtype: torch.dtype) -> Tensor:
        """(n_atoms,) of ``frame``, the one of that number."""
        own = np.full(frame.n_atoms, 1.0 if self._of_frames is None else self._of_frames[number])
        if self._median:
            spread = np.nan_to_num(_spread(frame), nan=self._median)
            own /= 1.0 + (self._disagreement * spread / self._median) ** 2
        return torch.from_numpy(own).to(dtype)


def _spread(frame: Batch) -> np.ndarray:
    """(n_atoms,) eV/Å float64, NaN where it is unknown."""
    unknown = torch.tensor(torch.nan).expand(frame.n_atoms)
    return frame.labels.get("forces_spread", unknown).double().cpu().numpy()
