"""Images as pixels, channel first: arrays of them, and JPEG or PNG files decoded when asked for."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def channel_first(path: Path, x: NDArray[Any]) -> NDArray[np.uint8]:
    """Images uint8 [n, H, W] or [n, H, W, 1 or 3] as [n, channels, H, W]."""
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.shape[3] not in (1, 3) or 0 in x.shape:
        raise ValueError(
            f"{path}: images are {x.dtype} {list(x.shape)}; they must be uint8 0..255 [n, H, W] or "
            "[n, H, W, 3]"
        )
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


_STARTS = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n")
_ENDS = (b"\xff\xd9", b"IEND\xaeB`\x82")


class Encoded:
    """JPEG or PNG files, decoded when first asked for and kept as uint8 [n, channels, H, W]."""

    def __init__(self, path: Path, files: list[bytes]):
        self._path, self._files = path, files
        with self._open(0) as image:
            grey = image.mode == "L"
            self.shape = (len(files), 1 if grey else 3, image.height, image.width)
        self._pixels: NDArray[np.uint8] = np.empty(self.shape, np.uint8)
        self._done = np.zeros(len(files), np.bool_)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        for row in rows[~self._done[rows]]:
            self._pixels[row] = self._decode(int(row))
            self._done[row] = True
        return self._pixels[rows]

    def suspects(self) -> NDArray[np.int64]:
        """Rows whose files do not begin or do not end as JPEG and PNG files do; decodes nothing."""
        sound = (f.startswith(_STARTS) and f.endswith(_ENDS) for f in self._files)
        return np.flatnonzero(~np.fromiter(sound, np.bool_, len(self._files)))

    def faults(self, rows: NDArray[np.int64]) -> dict[int, str]:
        """What is wrong by row, of those of `rows` that do not decode or differ from the first."""
        found = {}
        for row in rows.tolist():
            try:
                self[np.array([row])]
            except ValueError as error:
                found[row] = str(error)
        return found

    def _open(self, row: int) -> Image.Image:
        try:
            return Image.open(io.BytesIO(self._files[row]), formats=("JPEG", "PNG"))
        except _UNDECODABLE as error:
            raise self._damaged(row) from error

    def _decode(self, row: int) -> NDArray[np.uint8]:
        channels, height, width = self.shape[1:]
        with self._open(row) as image:
            if (image.height, image.width) != (height, width) or (
                channels == 1 and image.mode != "L"
            ):
                raise ValueError(
                    f"{self._path}: column 'image', row {row} is {image.width}x{image.height} "
                    f"{image.mode}, row 0 is {width}x{height} {'L' if channels == 1 else 'RGB'}; "
                    "all images must have one size and colour mode: convert it or drop the row"
                )
            try:
                pixels = np.asarray(image if channels == 1 else image.convert("RGB"), np.uint8)
            except _UNDECODABLE as error:
                raise self._damaged(row) from error
        return pixels.reshape(height, width, channels).transpose(2, 0, 1)

    def _damaged(self, row: int) -> ValueError:
        return ValueError(
            f"{self._path}: column 'image', row {row} ({len(self._files[row])} bytes) does "
            "not decode as JPEG or PNG; replace or drop the row"
        )


_UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
