"""Codes of the faults found while mixing. Imports nothing heavy."""

SIZES_DIFFER, LAYOUT_DIFFERS, CHANNELS_DIFFER, MASK_DIFFERS, IMAGES_MOVED = range(1, 6)
