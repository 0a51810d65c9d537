"""Three conventions for the scores of a label that is empty in the reference or in the prediction.

| reference | prediction | `brats` | `skip` | `nan` |
|---|---|---|---|---|
| empty | empty | Dice 1, 0 mm | left out | Dice and distances undefined |
| empty | not empty | Dice 0, image diagonal | left out | Dice 0, distances undefined |
| not empty | empty | Dice 0, image diagonal | Dice 0, image diagonal | Dice 0, distances undefined |

`brats` is the convention of the BraTS challenge. Its penalty of 373.13 mm is the diagonal of its 240 x 240 x 155 mm
image; here the penalty is the diagonal of the case's own image. `skip` leaves a case out of all means of a label that
its reference lacks. `nan` is nnU-Net's convention: undefined scores are left out of means. Scores that are left out or
undefined are NaN in the tables.
"""

from __future__ import annotations

import math

BRATS, SKIP, NAN = "brats", "skip", "nan"
EMPTY_CONVENTIONS = (BRATS, SKIP, NAN)

FAILURE_DICE = 0.1
"""A case whose Dice is lower has failed."""

DESCRIPTIONS = {
    BRATS: "BraTS: both empty is Dice 1 and 0 mm; one empty is Dice 0 and the image's diagonal in mm",
    SKIP: "cases without the label are left out; a label not found is Dice 0 and the image's diagonal in mm",
    NAN: "nnU-Net: Dice undefined where both are empty, distances where one is; undefined is left out of means",
}


def with_convention(
    dice: float, hd95_mm: float, asd_mm: float, volume_difference_ml: float, *, reference: float, prediction: float,
    diagonal_mm: float, empty: str,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Return Dice, HD95, ASD and volume difference of one label of one case under a convention.

    Args:
        dice, hd95_mm, asd_mm, volume_difference_ml: as measured; NaN where undefined.
        reference, prediction: volumes (or voxels) of the label; 0 is empty.
        diagonal_mm: of the case's image.
        empty: one of `EMPTY_CONVENTIONS`.
    """
    if reference > 0 and prediction > 0:
        return dice, hd95_mm, asd_mm, volume_difference_ml
    if empty == NAN:
        return (math.nan if reference == prediction else 0.0), math.nan, math.nan, volume_difference_ml
    if reference == 0 and empty == SKIP:
        return math.nan, math.nan, math.nan, math.nan
    if reference == prediction:
        return 1.0, 0.0, 0.0, volume_difference_ml
    return 0.0, diagonal_mm, diagonal_mm, volume_difference_ml
