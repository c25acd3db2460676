"""Everything rtsmap raises on purpose.

    RtsmapError                    the command line prints the message and exits with 1
      InputError (ValueError)      a file or argument of the user's cannot be used
        GridMismatchError          rasters that do not share ground, or shapes that disagree
        BandError                  a band is missing, ambiguous or unknown
        ReadError                  pixels of a file cannot be read, also not when tried again
        WriteError                 a file cannot be written, mostly for want of space
        LabelError                 label polygons that cannot be used
        OptionsError               an impossible or unknown option
      ModelError                   a model bundle cannot be used
        CardError                  card.toml is missing, incomplete or contradicts itself
        WeightsError               weights are missing, altered or do not fit the network
        EngineError                torch or mmdet is missing or broken
      RunError                     a run directory cannot be used
        PlanMismatchError          the directory belongs to a run with other inputs or options
        ShardError                 a shard cannot be read or written

A message says what failed, where, what was got, what was wanted and what to do.
"""

from __future__ import annotations


class RtsmapError(Exception):
    """Root of all errors that rtsmap raises on purpose."""


class InputError(RtsmapError, ValueError):
    """A file or argument given by the user cannot be used."""


class GridMismatchError(InputError):
    """Rasters that do not share ground, or arrays whose shapes disagree."""


class BandError(InputError):
    """A band is missing, ambiguous or unknown."""


class ReadError(InputError):
    """Pixels of a file cannot be read, also not when tried again."""


class WriteError(InputError):
    """A file cannot be written, mostly for want of space."""


class LabelError(InputError):
    """Label polygons that cannot be used."""


class OptionsError(InputError):
    """An option is unknown, or two options cannot hold together."""


class ModelError(RtsmapError):
    """A model bundle cannot be used."""


class CardError(ModelError):
    """card.toml is missing, incomplete or contradicts itself."""


class WeightsError(ModelError):
    """Weights are missing, altered or do not fit the network."""


class EngineError(ModelError):
    """torch or mmdet is missing or broken in this environment."""


class RunError(RtsmapError):
    """A run directory cannot be used."""


class PlanMismatchError(RunError):
    """The run directory was made from other inputs, options or weights."""


class ShardError(RunError):
    """A shard of a run cannot be read or written."""


def why(exc: Exception) -> str:
    """What an exception of others says, for sentences that name the file: without path, number and advice."""
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror[:1].lower() + exc.strerror[1:]
    # pyogrio's, of drivers that nobody here can choose
    return str(exc).partition("; It might help to specify")[0]
