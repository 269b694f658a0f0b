"""The bare machine: the guest runs at privilege 0 on its own tables and its own devices."""
