"""GFN1-xTB, a semi-empirical method, as a teacher: ``ase:benchmarks.tblite_gfn1:gfn1``."""


def gfn1():
    from tblite.ase import TBLite

    return TBLite(method="GFN1-xTB", verbosity=0)
