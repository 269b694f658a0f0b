"""A hunt for inputs that the product does not stand: mutated images, forged patched files, hostile guests.

`make campaign BUDGET=SECONDS SEED=NUMBER` runs cases until the budget is spent; CI runs the first few of each
kind. A case is made from its seed alone, and each command of it runs twice.
"""
