"""The command line as its users meet it: exit codes, streams, files, terminals, interrupts."""
