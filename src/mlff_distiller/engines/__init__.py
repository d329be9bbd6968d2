"""What computes a student: its energy, forces and virial, on arrays that stay on the device."""
