"""What surrounds kernels: here, the recording of graphs."""

import gc

import pytest

from mlff_distiller.kernels.compiling import recording


def test_nothing_is_collected_while_a_graph_is_recorded():
    assert gc.isenabled()
    with recording():
        assert not gc.isenabled()
        with recording():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), recording():
        raise KeyError
    assert gc.isenabled()
