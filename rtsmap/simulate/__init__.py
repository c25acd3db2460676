"""Physically plausible tundra scenes with slumps, look-alikes, an elevation model and the truth."""
