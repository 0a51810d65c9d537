"""Segmentations that are either whole or not there, wherever nnU-Net writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.data.whole_image import segmentation_problem
from nnunetv2_unimrseg.nnunet.types import ImageProperties
from nnunetv2_unimrseg.utils.files import file_problem, whole_files


class WholeSegmentationWriter(BaseReaderWriter):
    """nnU-Net's reader and writer, wrapped: it reads back what it wrote before the file takes its place.

    This is needed because ITK reports nothing when the disk is full.

    Args:
        reader_writer: an instance of nnU-Net's class.
    """

    def __init__(self, reader_writer: BaseReaderWriter) -> None:
        self._nnunet = reader_writer

    @classmethod
    def of(cls, nnunet_class: type[BaseReaderWriter]) -> WholeSegmentationWriter:
        """Return one for a class of nnU-Net."""
        return cls(nnunet_class())

    def read_images(self, image_fnames: Sequence[str]) -> tuple[np.ndarray, ImageProperties]:
        images: tuple[np.ndarray, ImageProperties] = self._nnunet.read_images(image_fnames)
        return images

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, ImageProperties]:
        segmentation: tuple[np.ndarray, ImageProperties] = self._nnunet.read_seg(seg_fname)
        return segmentation

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: ImageProperties) -> None:
        """Write a segmentation `(X, Y, Z)`, and the files that belong to it.

        Raises:
            UserError: when it cannot be written or is not whole afterwards; then what was there before is unchanged.
        """
        path = Path(output_fname)

        def find_problem(written: Path) -> str | None:
            if written.name != path.name:
                return file_problem(written)
            return segmentation_problem(written, self._nnunet, seg)

        with whole_files(path.parent, find_problem, failures=(RuntimeError,)) as folder:
            self._nnunet.write_seg(seg, str(folder / path.name), properties)


class WholeSegmentationPlansManager(PlansManager):
    """Plans whose segmentations are whole or not there; see `write_whole_segmentations`."""

    @property
    def image_reader_writer_class(self) -> Callable[[], BaseReaderWriter]:
        """What nnU-Net calls for a reader and writer, in its worker processes too."""
        return partial(WholeSegmentationWriter.of, super().image_reader_writer_class)


def write_whole_segmentations(plans_manager: PlansManager) -> None:
    """Let all code that writes segmentations with this very object, nnU-Net's own commands included, write them whole.

    Only the class of this one object changes; nnU-Net and all other plans stay as they are.
    """
    plans_manager.__class__ = WholeSegmentationPlansManager
