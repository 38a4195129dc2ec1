"""The ops in plain torch: the specification of every kernel, the oracle of its tests, and what runs where no kernel
can.

One module per op, named as the op; its functions take modes as ints, work in any floating dtype and are differentiable.
"""
