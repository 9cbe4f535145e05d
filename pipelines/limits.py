"""Numbers that the settings of a pipeline are checked against. Imports nothing."""

# The magnitudes of DALI's tables of augmentations are those of torchvision: 0 to 30.
MAGNITUDE_BINS = 31
