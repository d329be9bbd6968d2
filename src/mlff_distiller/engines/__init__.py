"""What computes a student: its energy, forces and virial, on the host or on the device."""
