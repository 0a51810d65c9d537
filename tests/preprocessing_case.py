"""A planned dataset and its preprocessing, of one case at a time."""

import tiny
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor


class Case:
    """A planned dataset and its preprocessing."""

    def __init__(self, **planned):
        self.plans_manager = PlansManager(tiny.plans(**planned))
        self.configuration_manager = self.plans_manager.get_configuration("3d_fullres")
        self.dataset_json = tiny.dataset_json()

    def managers(self):
        return self.plans_manager, self.configuration_manager, self.dataset_json

    def from_files(self, files, preprocessor=UniMRSegPreprocessor):
        return preprocessor(verbose=False).run_case(files, None, *self.managers())

    def from_array(self, data, preprocessor=UniMRSegPreprocessor, seg=None):
        properties = {"spacing": list(tiny.SPACING)}
        return preprocessor(verbose=False).run_case_npy(data, seg, properties, *self.managers())


def same_bits(first, second):
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()
