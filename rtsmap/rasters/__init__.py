"""Rasters on one grid: bands, sources, terrain, tiles and chips. Never imports torch."""
