"""Vector files: the only folder that imports geopandas and pyogrio."""
