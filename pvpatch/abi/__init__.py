"""The unified paravirt ABI: its specification (abi.toml), loader, layouts, assembler, pages and generators.

Imports nothing of the rest of the project. Start at `spec.py` for the vocabulary, `layout.py` for what
lies where in memory, `page.py` to build a call page.
"""
