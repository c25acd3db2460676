"""Options that mean the same in every command: what is read, what looks at it, what is kept, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScenesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Optical scenes with red, green, blue: files, folders, 'quoted*.tif' patterns, or a table "
        "(CSV, GeoParquet, STAC items) with columns scene, dem, date, id, bands."
    ),
]
OverlapsOption = Annotated[
    str,
    typer.Option(help="Where scenes overlap: newest, best, union or keep; see the README."),
]
DemOption = Annotated[
    list[str] | None,
    typer.Option(help="Elevation model, in any CRS; several times, or a 'quoted*.tif' pattern, for tiles."),
]
AoiOption = Annotated[
    list[Path] | None,
    typer.Option(help="Polygons in any CRS: only ground inside them; several times for several files."),
]
ExcludeOption = Annotated[
    list[Path] | None,
    typer.Option(help="Polygons in any CRS, of water or glaciers, say: ground to leave out."),
]
BandFilesOption = Annotated[
    list[str] | None,
    typer.Option("--band", help="A raster of a band that the model wants and the scene lacks: ndvi=FILE."),
]
BandsOption = Annotated[
    str | None,
    typer.Option(help="Which bands are which, from 1, if the file does not tell: red=5,green=3,blue=2."),
]
DateOption = Annotated[
    str | None,
    typer.Option(help="When the scene was taken, if its tags and name do not tell: 2020-07-05."),
]
SceneIdOption = Annotated[str | None, typer.Option(help="What the scene is called on footprints.")]
ModelOption = Annotated[
    str | None, typer.Option(help="Shipped model or folder of a bundle; default: rts-starter.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a map that is there; its reviews are kept.")
]
MinScoreOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="Leave out slumps below this score.")
]
MinAreaOption = Annotated[
    float | None, typer.Option(min=0, help="Leave out slumps smaller than this; default: ten pixels.")
]
SimplifyOption = Annotated[
    float | None,
    typer.Option(
        "--simplify-m", "--simplify", min=0, help="Tolerance of outlines in metres; default: half a pixel."
    ),
]
MinSpeckOption = Annotated[
    int, typer.Option(min=1, help="Leave out pieces and holes of a slump below this many pixels.")
]
ChipOption = Annotated[int | None, typer.Option(help="Side of a chip, instead of the model's.")]
OverlapOption = Annotated[int | None, typer.Option(help="Overlap of chips, instead of the model's.")]
OriginOption = Annotated[int, typer.Option(min=0, help="Where the first full chip begins.")]
ShardTilesOption = Annotated[int, typer.Option(min=1, help="A shard is this many tiles high and wide.")]
BatchOption = Annotated[
    int | None,
    typer.Option(min=1, help="Chips that the network sees at once; default: as many as the device holds."),
]
MinValidOption = Annotated[
    float, typer.Option(min=0, max=1, help="Skip tiles with data in less than this share of pixels.")
]
SecondLookOption = Annotated[
    bool, typer.Option(help="Look at each slump again, on a chip centred on it, which decides.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="auto, fp32, bf16 or fp16. On a CPU auto is fp32; bf16 is for processors that compute in it "
        "(AMX, AVX512-BF16), and many times slower on others."
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Have torch compile the network first, which takes minutes: for runs of hours. On a CPU it "
        "needs a C++ compiler.",
    ),
]
ViewsOption = Annotated[
    int | None,
    typer.Option(
        help="4: each chip is seen in four ways, and what they agree on counts: it finds more on real "
        "imagery, in four times the time. Default: as the model says, usually 1."
    ),
]
ProbabilityOption = Annotated[
    Path | None,
    typer.Option(
        help="Also write how likely a slump is at each pixel, 0 to 1, as a cloud-optimised GeoTIFF."
    ),
]
TimingsOption = Annotated[
    bool,
    typer.Option("--timings", help="Say where the time of this process, not of --workers, went, by stage."),
]
ReadThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Blocks read at the same time; default: half the cores.")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes of this machine that share the work, and its GPUs.")
]
SchedulerOption = Annotated[
    str | None, typer.Option(help="Address of a Dask scheduler whose workers do the work: tcp://host:8786.")
]
RunArgument = Annotated[Path, typer.Argument(help="Run directory, from plan or predict.")]
