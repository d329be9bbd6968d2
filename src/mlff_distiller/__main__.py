"""``python -m mlff_distiller``: the command, for launchers such as torchrun."""

from mlff_distiller.cli.main import main

if __name__ == "__main__":
    main()
