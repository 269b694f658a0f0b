"""What hypervisors that run a kernel below privilege 0 share."""
