"""Every guest on every backend its width allows, one patched file in each column (`make matrix`)."""
