"""The stackless form: from images whose code has no stack to their runs on every backend."""
