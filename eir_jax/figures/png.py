"""Pictures written whole or not at all."""

import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eir_jax.system.errors import UserError
from eir_jax.system.files import replacing


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure beside its place, then move it there.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        with replacing(path) as part, warnings.catch_warnings():
            # Names of classes in scripts that the font lacks are drawn as boxes.
            warnings.filterwarnings("ignore", r"Glyph .* missing from font")
            FigureCanvasAgg(figure).print_png(part)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
