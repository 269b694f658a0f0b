"""VMI: its interface, its model, its guest-side code and whole guests on it."""
