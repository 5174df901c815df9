"""Many small trainings as one program: a *lane* is one training on the program's leading axis.

`dense` is the fused program for multi-layer perceptrons (hand-derived gradients, no autograd); `vmapped` runs any gated
module under torch.func and is the reference that `dense` is tested against.
"""
