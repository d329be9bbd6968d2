"""Integrators, thermostats and barostats on the device. README.md has the equations."""
