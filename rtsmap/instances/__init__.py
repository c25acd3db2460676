"""From masks on tiles to footprints: seams, polygons, attributes, evaluation. shapely and numpy."""
