"""Output formats by name; each is imported when first used."""

from __future__ import annotations

from captory_data.formats.base import Format, Layout


def open_format(name: str, layout: Layout) -> Format:
    """The format `name` for a dataset laid out so."""
    if name == "imagefolder":
        from captory_data.formats.imagefolder import ImageFolderFormat

        return ImageFolderFormat(layout)
    if name == "parquet":
        from captory_data.formats.parquet import ParquetFormat

        return ParquetFormat(layout)
    from captory_data.formats.webdataset import WebDatasetFormat

    return WebDatasetFormat(layout)
