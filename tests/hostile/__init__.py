"""Files and guests that mean ill, through the real commands: a defined exit code, one clear line, bounded
memory and time, no traceback, no partial file.
"""
