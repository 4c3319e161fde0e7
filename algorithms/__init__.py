"""The mathematics of Rayward: pure functions of tensors, with no Ray, no files and no config
objects.

Conventions that hold in every module here:

* Sequences travel ragged. The response (or trained) tokens of all rows of a micro-batch are
  flattened to 1-D tensors of N tokens, so no loss needs a mask; what works per sequence also takes
  `lengths`.
* A loss returns the SUM over tokens (or over rankings or pairs), and the caller divides by the
  global count of the optimizer step. Only so does the result not depend on how rows were cut into
  micro-batches and ranks.
* Every loss accepts zero tokens and returns a zero that is still connected to the graph: a rank
  with an empty micro-batch must be able to call backward, or its peers wait for ever in a
  collective.
"""
