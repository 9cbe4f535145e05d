"""What a long training run needs around its model: checkpoints, signals, several processes, an output folder.

Nothing in here knows DALI, a model or a data set.
"""
