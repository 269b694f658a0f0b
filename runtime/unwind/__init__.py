"""Events inside what a patch added are the guest's at the instruction that the code stands for.

The resident block names, piece by piece, the guest's instruction that its code stands for (the origin
table). How far a piece has come, and where it has put the guest's registers, its own code says: `replay`
follows it with symbols for values. `unwinder` puts both together and gives the registers, stack pointer
and address as they are at that instruction; `places` leads the guest back in when it returns there, and
`steps` makes one single step out of each instruction.
"""
