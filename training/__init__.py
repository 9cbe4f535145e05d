"""The trainer. Read `recipe` first: what a run does, in its order. Every other file is one of its parts.

========================================== ==================================================================
file                                       what is in it
========================================== ==================================================================
`recipe`, `commands`                       a training; that or an evaluation of weights, with the exit status
`run`                                      epochs: steps, evaluation, what is logged and saved
`learner`, `model`, `optimizers`           a step; model, average, schedule; optimisers, which weights decay
`trial`                                    a pass of the model before anything is written
`loaders`, `bad_files`                     pipelines of DALI, which nothing else here knows; unreadable files
`evaluation`                               top-1, top-5 and loss
`state`, `progress`, `random_states`       what survives a stop: registered parts; counters; generators
`checkpoints`, `resume`                    files that are whole; which of them a run may continue from
`weights`                                  weights of any origin into a model, by the names of their tensors
`weight_files`, `inert_pickle`             what such a file holds; pickles, read without running them
`weight_settings`, `classes`               the architecture, sizes and classes that it names; classes by name
`export`                                   the weights of a checkpoint alone, as safetensors
`output`, `report`                         the output folder; the picture and the table
`signals`, `nonfinite`, `storage`          what ends a run early; folders that go away for a while
`config`, `options`                        settings and their checks, the command line
`mix_schedule`, `optimization`             records of settings: how the mixing changes, how it is optimised
`architectures`, `published`, `inputs`     what is looked at before PyTorch is imported
`ranks`, `distributed`, `hardware`         one process among several; device and precision
`demo`, `revision`                         the run without data; the commit
========================================== ==================================================================
"""
