"""Every guest on every backend that its width allows, the same patched file in each column (`make matrix`)."""
