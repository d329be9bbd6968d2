"""What i-PI loads as ``<pes>custom</pes>``."""

from mlff_distiller.deploy.ipi import StudentDriver

__DRIVER_NAME__ = "mlffd"
__DRIVER_CLASS__ = "StudentDriver"
__all__ = ["StudentDriver"]
